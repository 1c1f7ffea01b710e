//! Where refused events go: to the destination's retry topic, or, when no attempt is left, to the
//! dead letter topic.
//!
//! Invariant: `produce` is `Ok` only when Kafka has every event on all in-sync replicas. It is
//! called while the load's rows are staged, before they are committed; what is produced for a load
//! that then fails are copies whose refusal never committed, and their origins' states make them
//! harmless.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use kafkabase::{
    ALL_TABLES, Admin, AdminError, ConfirmedProducer, TopicMode, TopicSettings, Unconfirmed,
    topic_name,
};
use warehouse::Origin;

use super::{
    backoff::RetryBackoff,
    envelope::{Envelope, ORIGINAL_TOPIC, RETRIES},
};
use crate::topic::OwnedTopic;

/// How often an event is tried, and where it goes meanwhile.
#[derive(Debug, Clone)]
pub struct RefusalConfig {
    /// What names of topics start with.
    pub topic_prefix: String,
    /// Its name.
    pub dead_letter_topic: String,
    /// Of the retry topics, where they are missing.
    pub retry_settings: TopicSettings,
    /// Of the dead letter topic, where it is missing.
    pub dead_letter_settings: TopicSettings,
    /// Times that an event is sent back to its topic before it is a dead letter.
    pub retry_count: u32,
    /// The pauses before that.
    pub backoff: RetryBackoff,
}

/// The way out for refused events.
pub(crate) struct RefusedProducer {
    producer: ConfirmedProducer,
    admin: Admin,
    config: RefusalConfig,
    /// Topics that this process made, or found to be there.
    made: Mutex<HashSet<String>>,
}

/// An event that the warehouse refused, or that cannot be parsed.
#[derive(Debug, Clone)]
pub(crate) struct RefusedEvent {
    pub(crate) envelope: Envelope,
    pub(crate) origin: Origin,
    /// How often it had returned.
    pub(crate) attempts: u32,
    /// Where it goes, as its batch decided.
    pub(crate) route: RefusalRoute,
    /// The whole reason. May quote the event, so it goes with it and nowhere else.
    pub(crate) error: String,
}

/// Where a refused event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalRoute {
    Retry,
    DeadLetter,
}

/// Why refused events are not known to be in Kafka. The load is rolled back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProduceError {
    #[error("topic {topic} cannot be made")]
    Topic {
        topic: String,
        #[source]
        source: AdminError,
    },
    #[error("topic {topic} does not take refused events")]
    Produce {
        topic: String,
        #[source]
        source: Unconfirmed,
    },
}

impl RefusedProducer {
    pub(crate) fn new(
        producer: ConfirmedProducer,
        admin: Admin,
        config: RefusalConfig,
    ) -> RefusedProducer {
        RefusedProducer { producer, admin, config, made: Mutex::default() }
    }

    pub(crate) fn producer(&self) -> &ConfirmedProducer {
        &self.producer
    }

    pub(crate) fn dead_letter_topic(&self) -> &str {
        &self.config.dead_letter_topic
    }

    /// Where an event goes that is refused after it returned `attempts` times.
    pub(crate) fn route(&self, attempts: u32) -> RefusalRoute {
        match attempts >= self.config.retry_count {
            true => RefusalRoute::DeadLetter,
            false => RefusalRoute::Retry,
        }
    }

    /// The topic where refused events of a destination wait.
    pub(crate) fn retry_topic(&self, destination_id: &str) -> String {
        topic_name(&self.config.topic_prefix, destination_id, TopicMode::Retry, ALL_TABLES, 0)
    }

    /// Sends the events where they go next, and waits until Kafka has them.
    ///
    /// Dropped half way, some of them may be in Kafka; the load that waits is to be rolled back.
    pub(crate) async fn produce(
        &self,
        topic: &OwnedTopic,
        events: Vec<RefusedEvent>,
    ) -> Result<(), ProduceError> {
        if events.is_empty() {
            return Ok(());
        }
        let retry_topic = self.retry_topic(&topic.destination_id);
        let mut records = Vec::with_capacity(events.len());
        for event in events {
            let RefusedEvent { mut envelope, origin, attempts, route, error } = event;
            let delay = self.config.backoff.delay(attempts + 1);
            let delay = SignedDuration::try_from(delay).unwrap_or_default();
            envelope.make_key_unique();
            envelope.set_error(&error);
            envelope.set(ORIGINAL_TOPIC, &topic.name);
            envelope.set(RETRIES, &attempts.to_string());
            envelope.set_retry_time(Timestamp::now() + delay);
            envelope.set_origin(&origin);
            let target = match route {
                RefusalRoute::Retry => retry_topic.as_str(),
                RefusalRoute::DeadLetter => self.config.dead_letter_topic.as_str(),
            };
            records.push(envelope.into_record(target));
        }
        for (target, settings) in [
            (retry_topic.as_str(), &self.config.retry_settings),
            (self.config.dead_letter_topic.as_str(), &self.config.dead_letter_settings),
        ] {
            if records.iter().any(|record| record.topic == target) {
                self.ensure(target, settings).await?;
            }
        }
        let results = self.producer.send_all(&records).await;
        for (record, result) in records.iter().zip(results) {
            if let Err(source) = result {
                if source.is_unknown_topic() {
                    self.forget(&record.topic);
                }
                return Err(ProduceError::Produce { topic: record.topic.clone(), source });
            }
        }
        Ok(())
    }

    /// Makes the dead letter topic where it is missing.
    pub(crate) async fn ensure_dead_letter_topic(&self) -> Result<(), ProduceError> {
        self.ensure(&self.config.dead_letter_topic, &self.config.dead_letter_settings).await
    }

    async fn ensure(&self, topic: &str, settings: &TopicSettings) -> Result<(), ProduceError> {
        if self.made().contains(topic) {
            return Ok(());
        }
        self.admin
            .create_topic(topic, settings)
            .await
            .map_err(|source| ProduceError::Topic { topic: topic.to_owned(), source })?;
        self.made().insert(topic.to_owned());
        Ok(())
    }

    /// The topic was deleted: it is made again when it is needed next.
    pub(crate) fn forget(&self, topic: &str) {
        self.made().remove(topic);
    }

    fn made(&self) -> MutexGuard<'_, HashSet<String>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
