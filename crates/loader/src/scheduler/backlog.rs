//! How long the oldest event of a topic waits to be loaded.
//!
//! Sweeps and runs look at the end of the topic; each growth is remembered with the time when it
//! was seen, and forgotten once the topic is loaded that far. So the age counts from when we first
//! saw the event, also while nothing is read.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Growths that are remembered; beyond it the newest are merged, which never makes the age smaller.
const REMEMBERED: usize = 64;

/// The unloaded part of one topic.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Ends that were seen, each with the time of its first sight; oldest first.
    growths: VecDeque<(i64, Instant)>,
    next_offset: i64,
    end: i64,
}

impl Backlog {
    /// The topic was seen to end here.
    pub(super) fn seen(&mut self, end: i64, now: Instant) {
        if end < self.end {
            self.shrunk_to(end);
        }
        self.end = end;
        if end <= self.next_offset || self.growths.back().is_some_and(|(seen, _)| *seen >= end) {
            return;
        }
        if self.growths.len() < REMEMBERED {
            self.growths.push_back((end, now));
        } else if let Some(newest) = self.growths.back_mut() {
            newest.0 = end;
        }
    }

    /// A smaller end is another topic of the same name, a truncated one, or an answer that was
    /// overtaken by a newer one: what is left of the backlog keeps its age.
    fn shrunk_to(&mut self, end: i64) {
        let oldest = self.growths.front().map(|(_, seen)| *seen);
        self.growths.retain(|(seen, _)| *seen <= end);
        if self.growths.is_empty() && end > self.next_offset {
            self.growths.extend(oldest.map(|oldest| (end, oldest)));
        }
    }

    /// The topic is loaded up to this offset. It may go back: a reset.
    pub(super) fn loaded(&mut self, next_offset: i64, now: Instant) {
        let went_back = next_offset < self.next_offset;
        self.next_offset = next_offset;
        while self.growths.front().is_some_and(|(end, _)| *end <= next_offset) {
            self.growths.pop_front();
        }
        if went_back && self.growths.is_empty() && self.end > next_offset {
            self.growths.push_back((self.end, now));
        }
    }

    /// Age of the oldest event that is not loaded; zero when all are.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.growths
            .front()
            .map_or(Duration::ZERO, |(_, seen)| now.saturating_duration_since(*seen))
    }

    /// Offsets that are not loaded yet.
    pub(super) fn size(&self) -> i64 {
        (self.end - self.next_offset).max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_age_counts_from_the_first_sight_of_the_oldest_unloaded_event() {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        backlog.seen(10, start);
        backlog.seen(20, start + SECOND);
        assert_eq!(backlog.age(start + 3 * SECOND), 3 * SECOND);
        backlog.loaded(10, start + 3 * SECOND);
        assert_eq!(
            backlog.age(start + 3 * SECOND),
            2 * SECOND,
            "the second growth waits since 1 s"
        );
        backlog.loaded(20, start + 3 * SECOND);
        assert_eq!(backlog.age(start + 9 * SECOND), Duration::ZERO);
    }

    #[test]
    fn a_topic_that_is_loaded_to_its_end_has_no_age() {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        backlog.loaded(10, start);
        backlog.seen(10, start);
        assert_eq!(backlog.age(start + SECOND), Duration::ZERO);
        assert_eq!(backlog.size(), 0);
    }

    #[test]
    fn more_growths_than_are_remembered_never_make_the_age_smaller() {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        for end in 1..=200 {
            backlog.seen(end, start + SECOND * u32::try_from(end).unwrap());
        }
        backlog.loaded(150, start + 200 * SECOND);
        assert!(backlog.age(start + 200 * SECOND) >= 50 * SECOND);
    }

    #[test]
    fn an_answer_that_comes_late_does_not_make_the_age_smaller() {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        backlog.seen(10, start);
        backlog.seen(8, start + SECOND);
        backlog.seen(10, start + SECOND);
        assert_eq!(backlog.age(start + 3 * SECOND), 3 * SECOND);
    }

    #[test]
    fn a_reset_backward_makes_the_loaded_part_a_backlog_again() {
        let start = Instant::now();
        let mut backlog = Backlog::default();
        backlog.seen(10, start);
        backlog.loaded(10, start);
        backlog.loaded(4, start + SECOND);
        assert_eq!(backlog.size(), 6);
        assert_eq!(backlog.age(start + 2 * SECOND), SECOND);
    }
}
