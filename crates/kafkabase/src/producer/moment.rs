//! When an event was handed over, by two clocks that each err in their own way.
//!
//! Invariant: no record that was made after a moment bears an earlier time than the moment tells,
//! where one machine's clock stamps it. Otherwise the look for an event would start behind it, not
//! find it, and it would be sent twice. The clock of the wall is set, back and forth; the other
//! one stands still while the machine is suspended. So the earlier of both counts.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(super) fn now() -> Moment {
        Moment { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// On the clock of the wall; told now.
    pub(super) fn on_the_wall(&self) -> SystemTime {
        self.told_at(&Moment::now())
    }

    fn told_at(&self, now: &Moment) -> SystemTime {
        let elapsed = now.monotonic.saturating_duration_since(self.monotonic);
        self.wall.min(now.wall.checked_sub(elapsed).unwrap_or(UNIX_EPOCH))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_moment_is_never_told_later_than_it_was_stamped() {
        let before = Moment::now();
        let later =
            |by_monotonic, wall| Moment { monotonic: before.monotonic + by_monotonic, wall };
        let cases = [
            ("all is well", later(SECOND, before.wall + SECOND), before.wall),
            ("suspended", later(SECOND, before.wall + HOUR), before.wall),
            ("set forth", later(SECOND, before.wall + SECOND + HOUR), before.wall),
            ("set back", later(SECOND, before.wall + SECOND - HOUR), before.wall - HOUR),
        ];
        for (what, now, told) in cases {
            assert_eq!(before.told_at(&now), told, "{what}");
        }
    }
}
