//! What is known of a retry topic between two runs over it. Nothing of it is kept beyond the
//! process: the offset that is committed says where to look again.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// What is known of a retry topic between two runs.
#[derive(Debug, Default)]
pub(crate) struct RetryState {
    /// Whether the topic was looked at.
    pub(crate) is_known: bool,
    /// The offset that we committed last. Another one in Kafka is an operator's decision, and all
    /// else is forgotten.
    pub(crate) committed: Option<i64>,
    /// Whether what is committed says [`super::mover::OUT_OF_ORDER`].
    pub(crate) says_out_of_order: bool,
    /// The first offset that was not looked at.
    pub(crate) next: i64,
    /// Events that are not due, with the time when they are.
    pub(crate) waiting: BTreeMap<i64, Timestamp>,
    /// The last event that was moved.
    pub(crate) last_moved: Option<i64>,
}

impl RetryState {
    /// The first offset that is still needed.
    pub(crate) fn needed_from(&self) -> i64 {
        let first_waiting = self.waiting.first_key_value().map(|(offset, _)| *offset);
        first_waiting.map_or(self.next, |offset| offset.min(self.next))
    }

    pub(crate) fn first_due(&self, now: Timestamp) -> Option<i64> {
        self.waiting.iter().find(|(_, due)| **due <= now).map(|(offset, _)| *offset)
    }

    /// Whether moved events lie behind waiting ones, so that no single offset says what is left.
    pub(crate) fn has_gaps(&self) -> bool {
        self.last_moved.is_some_and(|moved| moved > self.needed_from())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn the_first_offset_that_is_still_needed_is_committed() {
        let mut state = RetryState { next: 10, ..RetryState::default() };
        assert_eq!(state.needed_from(), 10);
        state.waiting.insert(4, at(100));
        state.waiting.insert(7, at(50));
        assert_eq!(state.needed_from(), 4);
    }

    #[test]
    fn an_event_that_could_not_be_moved_is_needed_although_later_ones_wait() {
        // given a chunk of two: 10 is due, and its target does not take it; 11 is not due
        let mut state = RetryState { next: 10, ..RetryState::default() };
        state.waiting.insert(11, at(100));
        // then `next` has not moved on, and 10 must not be committed past
        assert_eq!(state.needed_from(), 10);
    }

    #[test]
    fn what_is_due_may_lie_behind_what_is_not() {
        let mut state = RetryState { next: 10, ..RetryState::default() };
        state.waiting.insert(4, at(100));
        state.waiting.insert(7, at(50));
        assert_eq!(state.first_due(at(49)), None);
        assert_eq!(state.first_due(at(50)), Some(7));
        assert_eq!(state.first_due(at(100)), Some(4));
    }

    #[test]
    fn moved_events_behind_waiting_ones_are_a_gap() {
        let mut state = RetryState { next: 10, ..RetryState::default() };
        assert!(!state.has_gaps());
        state.last_moved = Some(9);
        assert!(!state.has_gaps(), "nothing waits before it");
        state.waiting.insert(4, at(100));
        assert!(state.has_gaps());
        state.last_moved = Some(3);
        assert!(!state.has_gaps(), "the waiting one lies behind it");
    }
}
