//! What replays of all topics share, and how they begin.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rdkafka::ClientConfig;
use tokio::sync::Semaphore;
use tracing::info;

use super::{AckProducer, ProducerTopic, lookup::LookUp, replay::Replay};
use crate::{Spool, SpoolError};

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
    /// It could not be made at the moment.
    #[error("the topic cannot be made at the moment")]
    Later,
}

/// Makes a topic, unless it is there, before spooled events are sent to it.
pub trait TopicMaker: Send + Sync + 'static {
    /// Makes `topic` unless it is there. Called again after a pause where the answer is
    /// [`NotMade::Later`]; [`NotMade::Refused`] puts the topic's events into quarantine.
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

impl AckProducer {
    /// Takes a topic's events out of the quarantine and sends them; those of all topics where none
    /// is named. Returns how many topics have some; they are sent in the background. Dropped, some
    /// topics may be released.
    pub async fn replay_quarantine(&self, topic: Option<&str>) -> Result<usize, SpoolError> {
        let Some(replayer) = &self.shared.replayer else { return Ok(0) };
        let topics = replayer.spool().release(topic).await?;
        topics.iter().for_each(|name| self.replay(name));
        Ok(topics.len())
    }

    /// Starts with what a former process left.
    pub(super) fn replay_what_is_there(&self) {
        let Some(replayer) = &self.shared.replayer else { return };
        let topics = replayer.spool().waiting_topics();
        if !topics.is_empty() {
            let events: usize = topics.iter().map(|(_, count)| count).sum();
            info!(topics = topics.len(), events, "the spool has events; they are sent now");
        }
        topics.iter().for_each(|(name, _)| self.replay(name));
    }

    fn replay(&self, topic: &str) {
        let topic = self.topic(topic);
        let is_first = topic.outstanding().divert();
        if is_first {
            self.start_replay(&topic);
        }
    }

    /// Called by the sender that diverted the topic.
    pub(super) fn start_replay(&self, topic: &Arc<ProducerTopic>) {
        let (producer, topic) = (self.clone(), topic.clone());
        tokio::spawn(async move {
            if let Some(replayer) = &producer.shared.replayer {
                Replay::new(&producer, replayer, &topic).run().await;
            }
        });
    }
}
