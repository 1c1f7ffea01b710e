//! Counters that the binary names and owns.

use prometheus::{IntCounter, IntCounterVec};

use crate::event::EventType;

/// What operators see of the log.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    /// Failures of the log. Label: `errorType`.
    pub errors: IntCounterVec,
    /// Entries that were not stored; an event of level error is an entry of two streams. Labels:
    /// `type`, `reason` (`full`, `memory`, `refused`).
    pub dropped: IntCounterVec,
}

/// Why an entry is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The stream has what it keeps.
    Full,
    /// The log holds as much memory as it may.
    Memory,
    /// The store does not take it, now or later.
    Refused,
}

impl LogMetrics {
    pub(crate) fn error(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }
}

/// The counters of dropped entries, looked up once: a full stream drops many a second.
#[derive(Debug)]
pub(crate) struct Dropped([[IntCounter; 3]; EventType::ALL.len()]);

impl Dropped {
    pub(crate) fn new(metrics: &LogMetrics) -> Dropped {
        Dropped(EventType::ALL.map(|kind| {
            ["full", "memory", "refused"]
                .map(|reason| metrics.dropped.with_label_values(&[kind.as_str(), reason]))
        }))
    }

    pub(crate) fn of(&self, kind: EventType, reason: Reason) -> &IntCounter {
        &self.0[kind as usize][reason as usize]
    }
}
