//! What handlers share.

use std::{sync::Arc, time::Duration};

use appbase::auth::TokenAuth;
use kafkabase::AckProducer;
use tokio::sync::watch;

use crate::{destinations::Destinations, loading::LoaderStatus, tables::Tables, topics::Topics};

/// Handles of the parts that requests need. Handlers share one, so that a request copies no handle.
pub struct AppState {
    pub auth: Arc<TokenAuth>,
    pub destinations: Arc<Destinations>,
    pub topics: Arc<Topics>,
    pub tables: Arc<Tables>,
    pub producer: AckProducer,
    pub loader: watch::Receiver<LoaderStatus>,
    pub limits: Limits,
}

/// What requests are measured against.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of an event.
    pub body: usize,
    /// Events in the producer's queue above which no traffic is wanted.
    pub producer_queue: usize,
    /// Age of the last look at the cluster above which no traffic is wanted.
    pub topics_age: Duration,
    pub topic_prefix: String,
    /// How long a request waits until its topic is made, where its event can go to the spool instead.
    pub topic_wait: Duration,
}
