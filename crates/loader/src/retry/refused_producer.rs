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
    ALL_TABLES, Admin, AdminError, ConfirmedProducer, Record, TopicMode, TopicSettings,
    Unconfirmed, topic_name,
};
use warehouse::Origin;

use super::{
    backoff::RetryBackoff,
    envelope::{Envelope, ORIGINAL_TOPIC, RETRIES},
    letter,
};
use crate::{clock::Clock, topic::OwnedTopic};

/// Bytes of refused events that are copied and on their way at a time: beside the batch that they
/// are of, whose bytes are counted.
const BYTES_AT_ONCE: usize = 8 << 20;

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
    clock: Clock,
    /// Topics that this process made, or found to be there.
    made: Mutex<HashSet<String>>,
}

/// An event that the warehouse refused, or that cannot be parsed.
#[derive(Debug, Clone)]
pub(crate) struct RefusedEvent {
    /// Which of its batch's messages it is.
    pub(crate) place: Place,
    /// What the message holds.
    pub(crate) bytes: usize,
    /// `None`: there is no ledger to judge it by.
    pub(crate) origin: Option<Origin>,
    /// How often it had returned.
    pub(crate) attempts: u32,
    /// Where it goes, as its batch decided.
    pub(crate) route: RefusalRoute,
    /// The whole reason. May quote the event, so it goes with it and nowhere else.
    pub(crate) error: String,
}

/// A message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Of a row, by the index of the row's group, and its own in the group.
    Row(usize, usize),
    /// Of what is no row, by its index.
    NoRow(usize),
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
        clock: Clock,
    ) -> RefusedProducer {
        RefusedProducer { producer, admin, config, clock, made: Mutex::default() }
    }

    /// The longest pause before an attempt.
    pub(crate) fn longest_pause(&self) -> SignedDuration {
        SignedDuration::try_from(self.config.backoff.longest()).unwrap_or(SignedDuration::MAX)
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

    /// Sends the events where they go next, and waits until Kafka has them. `copy` answers the
    /// message at a place, with all that travels with it; a few are copied at a time. The answer: those, by
    /// their index, that the retry topic will never take, which have no more attempts; they are on
    /// the dead letter topic.
    ///
    /// Dropped half way, some of them may be in Kafka; the load that waits is to be rolled back.
    pub(crate) async fn produce(
        &self,
        topic: &OwnedTopic,
        events: &[RefusedEvent],
        mut copy: impl FnMut(Place) -> Option<Envelope> + Send,
    ) -> Result<Vec<usize>, ProduceError> {
        let mut unfit = Vec::new();
        let (mut from, mut bytes) = (0, 0);
        for (index, event) in events.iter().enumerate() {
            bytes += event.bytes;
            if bytes >= BYTES_AT_ONCE || index + 1 == events.len() {
                let chunk = &events[from..=index];
                self.produce_some(topic, (from, chunk), &mut copy, &mut unfit).await?;
                (from, bytes) = (index + 1, 0);
            }
        }
        Ok(unfit)
    }

    /// `first`: the index of the first of them.
    async fn produce_some(
        &self,
        topic: &OwnedTopic,
        (first, events): (usize, &[RefusedEvent]),
        copy: &mut (impl FnMut(Place) -> Option<Envelope> + Send),
        unfit: &mut Vec<usize>,
    ) -> Result<(), ProduceError> {
        let retry_topic = self.retry_topic(&topic.destination_id);
        let (mut indexes, mut copies, mut letters) = (Vec::new(), Vec::new(), Vec::new());
        for (index, event) in (first..).zip(events) {
            let Some(envelope) = copy(event.place) else {
                continue; // the places are those of the batch
            };
            match event.route {
                RefusalRoute::Retry => {
                    indexes.push(index);
                    copies.push(self.record(topic, event, envelope, &retry_topic));
                }
                RefusalRoute::DeadLetter => {
                    let target = &self.config.dead_letter_topic;
                    letters.push(self.record(topic, event, envelope, target));
                }
            }
        }
        if !copies.is_empty() {
            self.ensure(&retry_topic, &self.config.retry_settings).await?;
            let results = self.producer.send_all(&copies).await;
            for ((index, mut record), result) in indexes.into_iter().zip(copies).zip(results) {
                match result {
                    Err(error) if error.is_too_large() => {
                        record.topic.clone_from(&self.config.dead_letter_topic);
                        letters.push(record);
                        unfit.push(index);
                    }
                    result => self.confirm(&retry_topic, result)?,
                }
            }
        }
        if !letters.is_empty() {
            self.ensure_dead_letter_topic().await?;
            for result in self.send_dead_letters(letters).await {
                self.confirm(&self.config.dead_letter_topic, result)?;
            }
        }
        Ok(())
    }

    /// The event with why and when it comes again.
    fn record(
        &self,
        topic: &OwnedTopic,
        event: &RefusedEvent,
        mut envelope: Envelope,
        target: &str,
    ) -> Record {
        let RefusedEvent { origin, attempts, error, .. } = event;
        let delay = self.config.backoff.delay(attempts.saturating_add(1));
        let delay = SignedDuration::try_from(delay).unwrap_or_default();
        let now = self.clock.now();
        envelope.make_key_unique();
        envelope.set_error(error);
        envelope.set(ORIGINAL_TOPIC, &topic.name);
        envelope.set(RETRIES, &attempts.to_string());
        envelope.set_retry_time(now.checked_add(delay).unwrap_or(Timestamp::MAX));
        envelope.set_origin(origin.as_ref());
        envelope.into_record(target)
    }

    fn confirm(&self, topic: &str, result: Result<(), Unconfirmed>) -> Result<(), ProduceError> {
        let Err(source) = result else {
            return Ok(());
        };
        if source.is_unknown_topic() {
            self.forget(topic);
        }
        Err(ProduceError::Produce { topic: topic.to_owned(), source })
    }

    /// Sends records of the dead letter topic, which has to be there. One that it does not take for
    /// its size is sent without the headers of others, and if need be without its event: the letter
    /// says where that lies. The answers are in the order of the records.
    pub(crate) async fn send_dead_letters(
        &self,
        records: Vec<Record>,
    ) -> Vec<Result<(), Unconfirmed>> {
        let mut results = self.producer.send_all(&records).await;
        for (record, result) in records.into_iter().zip(&mut results) {
            let mut record = record;
            for shorten in [letter::keep_own_headers, letter::keep_place_only] {
                if result.is_err_and(Unconfirmed::is_too_large) {
                    shorten(&mut record);
                    *result = self.producer.send_all(std::slice::from_ref(&record)).await[0];
                }
            }
        }
        results
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
