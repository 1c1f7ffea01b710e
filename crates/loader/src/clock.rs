//! The time of day, which may step: an operator sets it, a machine sleeps, a virtual one is moved.
//!
//! Invariant: nothing waits longer than it may because the clock went back. Whoever compares a time
//! in the future with now knows how far it can lie ahead, and takes one beyond that for due.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use jiff::{SignedDuration, Timestamp};

/// The machine's clock, or one that was set ahead of it or behind it; clones step together.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Seconds; only tests set it.
    ahead: Arc<AtomicI64>,
}

impl Clock {
    /// Sets the clock so many seconds ahead of the machine's.
    pub fn set_ahead(&self, seconds: i64) {
        self.ahead.store(seconds, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        now.checked_add(ahead).unwrap_or(now)
    }

    /// Seconds since 1970.
    pub(crate) fn unix_seconds(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        seconds.saturating_add(self.ahead.load(Ordering::Relaxed))
    }
}
