//! The back-off of the suite: how long to wait before something that failed is tried again.
//!
//! It only counts. The caller sleeps, or writes down when the next try is due; so a test needs no
//! clock, and a dropped wait loses nothing. There is no randomness: the parts that use it are few
//! and do not fail in step.

use std::time::Duration;

/// Pauses that double, from the first to the last, until something succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    failures: u32,
}

impl Backoff {
    /// Nothing has failed yet. `last` is the longest pause, also where `first` is longer.
    pub const fn new(first: Duration, last: Duration) -> Backoff {
        Backoff { first, last, failures: 0 }
    }

    /// Counts a failure and returns the pause after it. (Not `next`: that is an iterator's.)
    pub fn next_pause(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.pause_after(self.failures)
    }

    /// The pause after this many failures in a row, whatever was counted here: `first`, twice that,
    /// and so on up to `last`. Zero while nothing failed.
    pub fn pause_after(&self, failures: u32) -> Duration {
        if failures == 0 || self.first.is_zero() {
            return Duration::ZERO;
        }
        let mut pause = self.first;
        for _ in 1..failures {
            if pause >= self.last {
                break;
            }
            pause = pause.saturating_mul(2);
        }
        pause.min(self.last)
    }

    /// Failures since the start or the last [`Backoff::reset`].
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// After a success: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_last_and_stay_there() {
        let mut backoff = Backoff::new(SECOND, 30 * SECOND);
        let pauses: Vec<u64> = (0..7).map(|_| backoff.next_pause().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(backoff.failures(), 7);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(SECOND, 30 * SECOND);
        backoff.next_pause();
        backoff.next_pause();
        backoff.reset();
        assert_eq!(backoff, Backoff::new(SECOND, 30 * SECOND));
        assert_eq!(backoff.next_pause(), SECOND);
    }

    #[test]
    fn the_pause_after_a_number_of_failures_needs_no_counting() {
        let millis = Duration::from_millis;
        let cases = [
            (0, Duration::ZERO),
            (1, millis(50)),
            (2, millis(100)),
            (6, millis(1600)),
            (7, millis(2000)),
            (u32::MAX, millis(2000)),
        ];
        for (failures, pause) in cases {
            let backoff = Backoff::new(millis(50), millis(2000));
            assert_eq!(backoff.pause_after(failures), pause, "{failures}");
            assert_eq!(backoff.failures(), 0);
        }
    }

    #[test]
    fn extreme_bounds_neither_overflow_nor_hang() {
        let longest = Backoff::new(SECOND, Duration::MAX);
        assert_eq!(longest.pause_after(u32::MAX), Duration::MAX);
        assert_eq!(Backoff::new(Duration::ZERO, SECOND).pause_after(u32::MAX), Duration::ZERO);
        assert_eq!(Backoff::new(30 * SECOND, SECOND).pause_after(1), SECOND);
    }
}
