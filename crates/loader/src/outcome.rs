//! What became of a batch and of each of its events.

use warehouse::LoadReport;

/// What a load did to its batch.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) report: LoadReport,
    pub(crate) counts: EventCounts,
}

/// Events of one batch by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EventCounts {
    /// Records read.
    pub(crate) consumed: u64,
    /// Bytes of their values.
    pub(crate) bytes: u64,
    /// Events that had been refused and returned.
    pub(crate) retried: u64,
    /// Of those, the ones that were decided before.
    pub(crate) dropped: u64,
    /// Refused, and sent to the retry topic.
    pub(crate) sent_to_retry: u64,
    /// Refused for the last time, and sent to the dead letter topic.
    pub(crate) dead: u64,
}

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome<'a> {
    Loaded,
    /// With the reason, as it goes with the event.
    Refused(&'a str),
}
