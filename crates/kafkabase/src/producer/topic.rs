//! A topic as the producer knows it.
//!
//! Invariant: its name is a label once an event went to it. Before that it may be any name that a
//! sender invented, while Kafka is away.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::Notify;

use super::SendError;
use crate::{TopicId, outstanding::Outstanding};

/// What stands for names that no event went to.
const NO_NAME: &str = "other";

/// A topic as the producer knows it. Looked up once, used for each event.
pub struct ProducerTopic {
    name: String,
    id: Option<TopicId>,
    outstanding: Mutex<Outstanding>,
    /// Told when something was settled that a replay waits for.
    pub(super) settled: Notify,
    /// Told when events that were held may go on.
    pub(super) released: Notify,
    produced: OnceLock<IntCounter>,
    delivered: OnceLock<IntCounter>,
    messages: IntCounterVec,
}

impl ProducerTopic {
    /// The topic's name, as Kafka has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn new(name: &str, prefix: &str, messages: &IntCounterVec) -> ProducerTopic {
        let id = TopicId::parse(prefix, name);
        ProducerTopic {
            name: name.to_owned(),
            outstanding: Mutex::default(),
            settled: Notify::new(),
            released: Notify::new(),
            produced: OnceLock::new(),
            delivered: OnceLock::new(),
            messages: messages.clone(),
            id,
        }
    }

    /// Short critical sections without I/O: the lock is never held across an await or a call to
    /// Kafka.
    pub(super) fn outstanding(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an event that is handed over.
    pub(super) fn count_produced(&self) {
        self.produced.get_or_init(|| self.counter("produced", "")).inc();
    }

    /// Counts an event that Kafka has.
    pub(super) fn count_delivered(&self) {
        self.delivered.get_or_init(|| self.counter("delivered", "")).inc();
    }

    /// Counts an event that is not in Kafka.
    pub(super) fn count(&self, error: &SendError) {
        self.counter("error", &error.error_type()).inc();
    }

    fn counter(&self, status: &str, error_type: &str) -> IntCounter {
        let is_named = status != "error" || self.produced.get().is_some();
        let labels = labels(&self.name, self.id.as_ref(), is_named, status, error_type);
        self.messages.with_label_values(&labels)
    }
}

fn labels<'a>(
    name: &'a str,
    id: Option<&'a TopicId>,
    is_named: bool,
    status: &'a str,
    error_type: &'a str,
) -> [&'a str; 6] {
    let (destination_id, mode, table) =
        id.map_or(("", "", ""), |id| (&id.destination_id, id.mode.as_str(), &id.table));
    let (name, table) = if is_named { (name, table) } else { (NO_NAME, NO_NAME) };
    [name, destination_id, mode, table, status, error_type]
}
