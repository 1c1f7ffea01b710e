//! How long a refused event waits before it is tried again.

use std::time::Duration;

const MINUTE: f64 = 60.0;

/// The pauses of a refused event.
#[derive(Debug, Clone, Copy)]
pub struct RetryBackoff {
    growth: Growth,
    longest: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Growth {
    /// Before the n-th attempt the n-th power of a base, in whole minutes.
    Powers { base: f64 },
    /// The longest one before each attempt.
    None,
}

impl RetryBackoff {
    /// Growing pauses, up to a longest one. Both in minutes, as the variables have them. Numbers
    /// below zero, and what is no number, count as zero.
    pub fn from_minutes(base: f64, longest: f64) -> RetryBackoff {
        RetryBackoff { growth: Growth::Powers { base }, longest: minutes(longest) }
    }

    /// The same pause before each attempt.
    pub fn always(pause: Duration) -> RetryBackoff {
        RetryBackoff { growth: Growth::None, longest: pause }
    }

    /// No pause is longer.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The pause before an attempt; `attempt` counts from 1.
    pub fn delay(&self, attempt: u32) -> Duration {
        match self.growth {
            Growth::Powers { base } => minutes(base.powf(f64::from(attempt))).min(self.longest),
            Growth::None => self.longest,
        }
    }
}

/// Whole minutes; as many as fit.
fn minutes(minutes: f64) -> Duration {
    let seconds = minutes.trunc().max(0.0) * MINUTE;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_by_powers_in_whole_minutes() {
        let minutes = |base, attempt| {
            RetryBackoff::from_minutes(base, 1440.0).delay(attempt).as_secs_f64() / MINUTE
        };
        let defaults: Vec<_> = (1..=5).map(|attempt| minutes(5.0, attempt)).collect();
        assert_eq!(defaults, [5.0, 25.0, 125.0, 625.0, 1440.0]);
        assert_eq!(minutes(0.0, 1), 0.0);
        assert_eq!(minutes(0.5, 1), 0.0, "less than a minute is none");
        assert_eq!(minutes(1.5, 2), 2.0);
        assert_eq!(minutes(-3.0, 1), 0.0);
        assert_eq!(minutes(1e300, 9), 1440.0, "more than can be counted");
    }

    #[test]
    fn a_pause_that_is_set_is_the_same_before_each_attempt() {
        let pause = Duration::from_secs(3);
        let backoff = RetryBackoff::always(pause);
        assert_eq!([1, 2, 9].map(|attempt| backoff.delay(attempt)), [pause; 3]);
        assert_eq!(backoff.longest(), pause);
    }
}
