//! What replays of all topics share.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rdkafka::ClientConfig;
use tokio::sync::Semaphore;

use super::lookup::LookUp;
use crate::Spool;

/// Topics that send more than one event at a time.
const SENDERS: usize = 16;
/// Topics whose events are read from the disk at a time.
const READERS: usize = 8;
/// Brokers that are asked for topics at a time.
const PROBES: usize = 4;

/// Why a topic is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    /// It is not to be made, or Kafka will never make it.
    #[error("{0}")]
    Refused(String),
    /// Another topic's name keeps it from being made, as the text says. No fault of its events:
    /// they wait.
    #[error("{0}")]
    Collides(String),
    /// It could not be made at the moment.
    #[error("the topic cannot be made at the moment")]
    Later,
}

/// Makes a topic, unless it is there, before spooled events are sent to it.
pub trait TopicMaker: Send + Sync + 'static {
    /// Makes `topic` unless it is there. Called again after a pause where the answer is
    /// [`NotMade::Later`] or [`NotMade::Collides`]; [`NotMade::Refused`] puts the topic's events
    /// into quarantine.
    fn ensure<'a>(
        &'a self,
        topic: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), NotMade>> + Send + 'a>>;
}

/// A spool, and what it takes to replay it.
#[derive(Clone)]
pub struct SpoolUse {
    /// Where the events are.
    pub spool: Spool,
    /// Makes their topics.
    pub topics: Arc<dyn TopicMaker>,
    /// How long after Kafka answers again a record may still surface that was handed over before.
    pub lookup_wait: Duration,
}

/// What all replays share.
pub(super) struct Replayer {
    pub(super) using: SpoolUse,
    pub(super) look_up: LookUp,
    pub(super) senders: Arc<Semaphore>,
    pub(super) readers: Semaphore,
    pub(super) probes: Semaphore,
    /// When a broker last did not answer: all other topics take it from there.
    pub(super) silent_at: Mutex<Option<Instant>>,
}

impl Replayer {
    pub(super) fn new(using: SpoolUse, config: ClientConfig) -> Replayer {
        Replayer {
            look_up: LookUp::new(config, using.lookup_wait),
            using,
            senders: Arc::new(Semaphore::new(SENDERS)),
            readers: Semaphore::new(READERS),
            probes: Semaphore::new(PROBES),
            silent_at: Mutex::default(),
        }
    }

    pub(super) fn spool(&self) -> &Spool {
        &self.using.spool
    }
}
