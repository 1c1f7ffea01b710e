//! What handlers share.

use std::{sync::Arc, time::Duration};

use appbase::auth::TokenAuth;
use eventslog::EventsLog;
use kafkabase::AckProducer;
use tokio::sync::watch;

use crate::{
    destinations::{ConfigurationStatus, Destinations},
    intake::table_topics::TableTopics,
    loading::{LoadTarget, LoaderStatus, Pauses, Stats, Targets},
    routes::BulkPermits,
    routes::FailedEvents,
    topics::Topics,
};

/// Handles of the parts that requests need. Handlers share one, so that a request copies no handle.
pub struct AppState {
    pub auth: Arc<TokenAuth>,
    pub destinations: Arc<Destinations>,
    pub configuration: watch::Receiver<ConfigurationStatus>,
    pub targets: Arc<Targets>,
    pub bulk: BulkPermits,
    pub topics: Arc<Topics>,
    pub tables: Arc<TableTopics>,
    pub producer: AckProducer,
    pub loader: watch::Receiver<LoaderStatus>,
    pub pauses: Arc<Pauses>,
    pub stats: Arc<Stats>,
    pub failed_events: FailedEvents,
    pub http: reqwest::Client,
    /// Empty: there is none.
    pub prometheus_url: String,
    pub events_log: EventsLog,
    pub limits: Limits,
}

impl AppState {
    /// The open destination of this id. Whoever holds it keeps its connections open.
    pub fn target(&self, destination_id: &str) -> Option<Arc<LoadTarget>> {
        self.targets.get(destination_id)
    }
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
