//! What is reported of events that were loaded or refused: records in the events log, for people,
//! and counts for the `metrics` destination.
//!
//! Reporting is never in the way of loading: nothing here waits, what cannot be kept is dropped and
//! counted there.

use std::{collections::HashMap, sync::Arc, time::Duration};

use eventslog::{BatchBody, EventType, EventsLog, Level, StreamBody, StreamStatus};
use jiff::Timestamp;
use kafkabase::{ConfirmedProducer, Message, Record, TopicMode, headers};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tracing::debug;
use uuid::Uuid;
use warehouse::bulk::{BulkMode, Representation, State};

use crate::{
    outcome::{Loaded, Outcome},
    progress::TopicProgress,
    topic::OwnedTopic,
};

/// Counts that are on their way at a time; further ones are dropped.
const COUNTS_AT_ONCE: usize = 16;

/// Names the topic of the `metrics` destination, if there is one.
pub type MetricsTopic = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Where loads are reported to.
pub struct Reporter {
    events_log: EventsLog,
    metrics_topic: MetricsTopic,
    producer: ConfirmedProducer,
    permits: Arc<Semaphore>,
}

impl Reporter {
    /// Reports to this log, and to the topic that `metrics_topic` names, if it names one.
    pub fn new(
        events_log: EventsLog,
        metrics_topic: MetricsTopic,
        producer: ConfirmedProducer,
    ) -> Reporter {
        let permits = Arc::new(Semaphore::new(COUNTS_AT_ONCE));
        Reporter { events_log, metrics_topic, producer, permits }
    }

    /// A load is done. `messages` are those that it decided on.
    pub(crate) fn loaded<'a>(
        &self,
        topic: &OwnedTopic,
        progress: &TopicProgress,
        loaded: &Loaded,
        took: Duration,
        messages: impl Iterator<Item = (&'a Message, Outcome<'a>)> + Clone,
    ) {
        let counts = loaded.counts;
        let state = || {
            let mode = mode_of(topic);
            let mut state = State::of_load(&topic.table, mode, counts.consumed, &loaded.report);
            state.processed_bytes = counts.bytes;
            state.processing_time_sec = took.as_secs_f64();
            state.queue_size = progress.queue_size();
            state
        };
        if topic.mode == TopicMode::Stream {
            self.log_messages((topic, progress), &state().representation, messages.clone());
        } else {
            self.log_batch(topic, counts.sent_to_retry + counts.dead, state);
        }
        self.count(topic, messages);
    }

    /// A load failed; nothing of it is stored, and it is tried again.
    pub(crate) fn failed(
        &self,
        topic: &OwnedTopic,
        progress: &TopicProgress,
        events: u64,
        error: String,
    ) {
        let mode = mode_of(topic);
        self.events_log.post(&topic.destination_id, EventType::BulkerBatch, Level::Error, || {
            let mut state = State::of_failed_load(&topic.table, mode, events, error);
            state.queue_size = progress.queue_size();
            BatchBody { state, last_mapped_row: None::<()> }
        });
    }

    fn log_batch(&self, topic: &OwnedTopic, refused: u64, state: impl FnOnce() -> State) {
        let level = if refused > 0 { Level::Error } else { Level::Info };
        self.events_log.post(&topic.destination_id, EventType::BulkerBatch, level, || {
            let mut state = state();
            if refused > 0 {
                state.error = Some(format!("{refused} events were refused; the others are loaded"));
            }
            BatchBody { state, last_mapped_row: None::<()> }
        });
    }

    fn log_messages<'a>(
        &self,
        (topic, progress): (&OwnedTopic, &TopicProgress),
        representation: &Representation,
        messages: impl Iterator<Item = (&'a Message, Outcome<'a>)>,
    ) {
        let (speed, queue_size) = (progress.speed(), progress.queue_size());
        for (message, outcome) in messages {
            let (level, status, error) = match outcome {
                Outcome::Loaded => (Level::Info, StreamStatus::Success, None),
                Outcome::Refused(reason) => (Level::Error, StreamStatus::Failed, Some(reason)),
            };
            self.events_log.post(&topic.destination_id, EventType::BulkerStream, level, || {
                StreamBody {
                    // what is no text cannot be shown as one
                    original: std::str::from_utf8(message.payload()).unwrap_or_default(),
                    status,
                    queue_size,
                    speed,
                    representation: Some(representation),
                    mapped_data: None::<()>,
                    error,
                }
            });
        }
    }

    /// Sends the counts of a load to the `metrics` destination, for each `metrics_meta` by itself.
    fn count<'a>(
        &self,
        topic: &OwnedTopic,
        messages: impl Iterator<Item = (&'a Message, Outcome<'a>)>,
    ) {
        let Some(metrics_topic) = (self.metrics_topic)() else {
            return;
        };
        let mut counts: HashMap<(&[u8], &str), u64> = HashMap::new();
        for (message, outcome) in messages {
            let Some(meta) = message.header(headers::METRICS_META).filter(|meta| !meta.is_empty())
            else {
                continue;
            };
            let is_retry = message.header(headers::RETRIES).is_some();
            let status = match outcome {
                Outcome::Loaded => "success",
                Outcome::Refused(_) if is_retry => "retry_error",
                Outcome::Refused(_) => "error",
            };
            *counts.entry((meta, status)).or_default() += 1;
        }
        let minute = this_minute();
        let records: Vec<_> = counts
            .into_iter()
            .filter_map(|((meta, status), events)| {
                let value = count_of(meta, status, events, &minute)?;
                let key = Some(Uuid::new_v4().to_string().into_bytes());
                let topic = metrics_topic.clone();
                Some(Record { topic, key, value: Some(value), headers: Vec::new() })
            })
            .collect();
        if records.is_empty() {
            return;
        }
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            debug!(topic = topic.name, "counts of a load dropped: too many are on their way");
            return;
        };
        let producer = self.producer.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let _ = producer.send_all(&records).await; // counts are worth one attempt
        });
    }
}

/// What the account of a load calls the topic's mode.
fn mode_of(topic: &OwnedTopic) -> BulkMode {
    match topic.mode {
        TopicMode::Stream => BulkMode::Stream,
        _ => BulkMode::Batch,
    }
}

/// The meta object with what is counted. `None`: it is no object.
fn count_of(meta: &[u8], status: &str, events: u64, minute: &str) -> Option<Vec<u8>> {
    let mut object: Map<String, Value> = serde_json::from_slice(meta).ok()?;
    object.insert("status".to_owned(), status.into());
    object.insert("events".to_owned(), events.into());
    object.insert("timestamp".to_owned(), minute.into());
    serde_json::to_vec(&object).ok()
}

/// The current minute in UTC, `YYYY-MM-DDTHH:MM:00.000000Z`.
fn this_minute() -> String {
    let now = Timestamp::now().as_second();
    let minute = Timestamp::from_second(now - now.rem_euclid(60)).unwrap_or_default();
    format!("{minute:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_the_meta_object_with_three_more_fields() {
        let count =
            count_of(br#"{"workspaceId":"w"}"#, "success", 7, "2026-11-24T10:00:00.000000Z");
        assert_eq!(
            String::from_utf8(count.unwrap()).unwrap(),
            r#"{"workspaceId":"w","status":"success","events":7,"timestamp":"2026-11-24T10:00:00.000000Z"}"#
        );
        assert_eq!(count_of(b"[]", "success", 7, ""), None);
    }

    #[test]
    fn a_minute_has_no_seconds() {
        let minute = this_minute();
        assert!(minute.ends_with(":00.000000Z"), "{minute}");
        assert_eq!(minute.len(), "2026-11-24T10:00:00.000000Z".len());
    }
}
