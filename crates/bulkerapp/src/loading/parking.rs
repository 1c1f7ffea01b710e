//! Where refused events go: to the destination's retry topic, or, when no attempt is left, to the dead letter topic.
//!
//! Invariant: `park` is `Ok` only when Kafka has every event on all in-sync replicas. It is called inside the load's
//! transaction, before the offsets row moves; what is parked by a load that then fails are copies whose refusal never
//! committed, and their origins' states make them harmless.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use kafkabase::{
    ALL_TABLES, Admin, AdminError, ConfirmedProducer, TopicMode, TopicSettings, Unconfirmed,
    topic_name,
};

use super::{
    envelope::{Backoff, Envelope, ORIGINAL_TOPIC, Origin, RETRIES},
    target::OwnedTopic,
};

/// How often an event is tried, and where it goes meanwhile.
#[derive(Debug, Clone)]
pub struct ParkingConfig {
    /// What names of topics start with.
    pub topic_prefix: String,
    pub dead_letter_topic: String,
    pub retry_settings: TopicSettings,
    pub dead_letter_settings: TopicSettings,
    /// Times that an event is sent back to its topic before it is a dead letter.
    pub retry_count: u32,
    /// Minutes; the pause before the n-th attempt is their n-th power.
    pub backoff_base: f64,
    /// Minutes.
    pub backoff_max: f64,
}

/// The way out for refused events.
pub(super) struct Parking {
    producer: ConfirmedProducer,
    admin: Admin,
    config: ParkingConfig,
    /// Topics that this process made, or found to be there.
    made: Mutex<HashSet<String>>,
}

/// An event that the warehouse refused, or that nobody can parse.
#[derive(Debug, Clone)]
pub(super) struct RefusedEvent {
    pub(super) envelope: Envelope,
    pub(super) origin: Origin,
    /// The whole reason. May quote the event, so it goes with it and nowhere else.
    pub(super) error: String,
}

/// Where a refused event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Retry,
    Dead,
}

/// Why refused events are not known to be parked. The load is rolled back.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParkError {
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

impl Parking {
    pub(super) fn new(producer: ConfirmedProducer, admin: Admin, config: ParkingConfig) -> Parking {
        Parking { producer, admin, config, made: Mutex::default() }
    }

    pub(super) fn producer(&self) -> &ConfirmedProducer {
        &self.producer
    }

    pub(super) fn dead_letter_topic(&self) -> &str {
        &self.config.dead_letter_topic
    }

    /// What becomes of an event that is refused after it came back `attempts` times.
    pub(super) fn fate(&self, attempts: u32) -> Fate {
        if attempts >= self.config.retry_count { Fate::Dead } else { Fate::Retry }
    }

    /// The topic where refused events of a destination wait.
    pub(super) fn retry_topic(&self, destination_id: &str) -> String {
        topic_name(&self.config.topic_prefix, destination_id, TopicMode::Retry, ALL_TABLES, 0)
    }

    /// Sends the events where they go next, and waits until Kafka has them.
    pub(super) async fn park(
        &self,
        topic: &OwnedTopic,
        events: Vec<RefusedEvent>,
    ) -> Result<(), ParkError> {
        let retry_topic = self.retry_topic(&topic.destination_id);
        let mut records = Vec::with_capacity(events.len());
        for event in events {
            let RefusedEvent { mut envelope, origin, error } = event;
            let attempts = envelope.attempt().unwrap_or(0);
            let backoff =
                Backoff { base: self.config.backoff_base, max_minutes: self.config.backoff_max };
            let delay = SignedDuration::try_from(backoff.delay(attempts + 1)).unwrap_or_default();
            envelope.make_key_unique();
            envelope.set_error(&error);
            envelope.set(ORIGINAL_TOPIC, &topic.name);
            envelope.set(RETRIES, &attempts.to_string());
            envelope.set_retry_time(Timestamp::now() + delay);
            envelope.set_origin(&origin);
            let target = match self.fate(attempts) {
                Fate::Retry => retry_topic.as_str(),
                Fate::Dead => self.config.dead_letter_topic.as_str(),
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
                return Err(ParkError::Produce { topic: record.topic.clone(), source });
            }
        }
        Ok(())
    }

    /// Makes the dead letter topic where it is missing.
    pub(super) async fn ensure_dead_letter_topic(&self) -> Result<(), ParkError> {
        self.ensure(&self.config.dead_letter_topic, &self.config.dead_letter_settings).await
    }

    async fn ensure(&self, topic: &str, settings: &TopicSettings) -> Result<(), ParkError> {
        if self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(topic) {
            return Ok(());
        }
        self.admin
            .create_topic(topic, settings)
            .await
            .map_err(|source| ParkError::Topic { topic: topic.to_owned(), source })?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned());
        Ok(())
    }

    /// Somebody deleted the topic.
    pub(super) fn forget(&self, topic: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }
}
