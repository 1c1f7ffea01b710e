//! A topic as the producer knows it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::Notify;

use super::SendError;
use crate::{TopicId, outstanding::Outstanding};

/// A topic as the producer knows it. Looked up once, used for each event.
pub struct ProducerTopic {
    name: String,
    id: Option<TopicId>,
    outstanding: Mutex<Outstanding>,
    /// Told when something was settled that a replay waits for.
    pub(super) settled: Notify,
    /// Told when events that were held may go on.
    pub(super) released: Notify,
    pub(super) produced: IntCounter,
    pub(super) delivered: IntCounter,
    messages: IntCounterVec,
}

impl ProducerTopic {
    /// The topic's name, as Kafka has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn new(name: &str, prefix: &str, messages: &IntCounterVec) -> ProducerTopic {
        let id = TopicId::parse(prefix, name);
        let counter = |status| messages.with_label_values(&labels(name, id.as_ref(), status, ""));
        ProducerTopic {
            name: name.to_owned(),
            outstanding: Mutex::default(),
            settled: Notify::new(),
            released: Notify::new(),
            produced: counter("produced"),
            delivered: counter("delivered"),
            messages: messages.clone(),
            id,
        }
    }

    /// Short critical sections without I/O: the lock is never held across an await or a call to
    /// Kafka.
    pub(super) fn outstanding(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, error: &SendError) {
        let error_type = error.error_type();
        let labels = labels(&self.name, self.id.as_ref(), "error", &error_type);
        self.messages.with_label_values(&labels).inc();
    }
}

fn labels<'a>(
    name: &'a str,
    id: Option<&'a TopicId>,
    status: &'a str,
    error_type: &'a str,
) -> [&'a str; 6] {
    let (destination_id, mode, table) =
        id.map_or(("", "", ""), |id| (&id.destination_id, id.mode.as_str(), &id.table));
    [name, destination_id, mode, table, status, error_type]
}
