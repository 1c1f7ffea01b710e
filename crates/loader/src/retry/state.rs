//! What is known of a retry topic between two runs over it. Nothing of it is kept beyond the
//! process: the offset that is committed says where to look again.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use jiff::Timestamp;
use warehouse::Origin;

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
    /// Events that are not known to be elsewhere, with the time when they are due.
    pub(crate) waiting: BTreeMap<i64, Timestamp>,
    /// Events that went to the dead letter topic although their states say that they wait.
    pub(crate) unnoted: BTreeMap<i64, Unnoted>,
    /// The last event that was moved.
    pub(crate) last_moved: Option<i64>,
}

/// An event whose ledger does not know yet that it is a dead letter.
#[derive(Debug, Clone)]
pub(crate) struct Unnoted {
    pub(crate) origin: Origin,
    /// How often the copy had been refused that the letter was made of.
    pub(crate) refusals: u32,
    pub(crate) destination_id: String,
}

impl RetryState {
    /// The first offset that is still needed.
    pub(crate) fn needed_from(&self) -> i64 {
        let first_waiting = self.waiting.first_key_value().map(|(offset, _)| *offset);
        let first_unnoted = self.unnoted.first_key_value().map(|(offset, _)| *offset);
        let needed = [first_waiting, first_unnoted];
        needed.into_iter().flatten().fold(self.next, i64::min)
    }

    /// What a process knows before it looked at anything: it goes on where the group stands, or
    /// begins at the first record that Kafka still has.
    pub(crate) fn beginning(committed: Option<i64>, low: i64) -> RetryState {
        let next = committed.unwrap_or(low);
        RetryState { is_known: true, committed, next, ..RetryState::default() }
    }

    /// Where a run begins to look, in a topic that ends at `end`; `None`: nothing is due, and
    /// nothing is new.
    pub(crate) fn looks_from(&self, end: i64, now: Timestamp) -> Option<i64> {
        self.first_due(now).or((self.next < end).then_some(self.next))
    }

    /// A chunk was read that ends before `next`, and these of it are to be moved now. Until each is
    /// known to be elsewhere it waits: a run may be ended at any point.
    pub(crate) fn take_up(&mut self, offsets: &[i64], next: i64, now: Timestamp) {
        self.waiting.extend(offsets.iter().map(|offset| (*offset, now)));
        self.next = self.next.max(next);
    }

    /// Kafka confirmed the event at this offset elsewhere.
    pub(crate) fn moved(&mut self, offset: i64) {
        self.waiting.remove(&offset);
        self.last_moved = self.last_moved.max(Some(offset));
    }

    /// Where events lie that a clean stop appends anew: moved ones lie behind them, so that no
    /// single offset says what is left.
    pub(crate) fn to_append(&self) -> Option<Range<i64>> {
        let from = self.needed_from();
        self.last_moved.filter(|moved| *moved > from).map(|moved| from..moved + 1)
    }

    /// Nothing waits longer than until this time: what was to wait longer was written before the
    /// clock went back, or by others.
    pub(crate) fn pull_near(&mut self, furthest: Timestamp) {
        for due in self.waiting.values_mut() {
            *due = (*due).min(furthest);
        }
    }

    /// Whether the event at this offset waits, and for nothing any more.
    pub(crate) fn is_due(&self, offset: i64, now: Timestamp) -> bool {
        self.waiting.get(&offset).is_some_and(|due| *due <= now)
    }

    /// Where a run goes on that has looked at everything before `from`: at the next event that is
    /// due, or at the first that no run looked at before this one, which began at `first_new`.
    pub(crate) fn next_to_look_at(&self, from: i64, first_new: i64, now: Timestamp) -> i64 {
        if from >= first_new {
            return from;
        }
        let mut waiting = self.waiting.range(from..first_new);
        waiting.find(|(_, due)| **due <= now).map_or(first_new, |(offset, _)| *offset)
    }

    /// Forgets what waits in this range and was not found there; answers how many.
    pub(crate) fn forget_missing(&mut self, range: Range<i64>, found: &HashSet<i64>) -> u64 {
        let waiting = self.waiting.range(range).map(|(offset, _)| *offset);
        let gone: Vec<_> = waiting.filter(|offset| !found.contains(offset)).collect();
        for offset in &gone {
            self.waiting.remove(offset);
        }
        gone.len() as u64
    }

    fn first_due(&self, now: Timestamp) -> Option<i64> {
        self.waiting.iter().find(|(_, due)| **due <= now).map(|(offset, _)| *offset)
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
    fn events_wait_no_longer_because_the_clock_went_back() {
        let mut state = RetryState { next: 10, ..RetryState::default() };
        state.waiting.insert(4, at(90_000));
        state.waiting.insert(7, at(50));
        state.pull_near(at(60));
        assert_eq!(state.first_due(at(50)), Some(7));
        assert_eq!(state.first_due(at(60)), Some(4));
    }

    #[test]
    fn a_run_looks_only_at_what_is_due_before_it_reads_what_is_new() {
        let mut state = RetryState { next: 100, ..RetryState::default() };
        state.waiting.extend([(4, at(10)), (7, at(99)), (50, at(10))]);
        assert_eq!(state.next_to_look_at(5, 100, at(20)), 50);
        assert_eq!(state.next_to_look_at(51, 100, at(20)), 100);
        assert_eq!(state.next_to_look_at(120, 100, at(20)), 120);
    }

    #[test]
    fn what_waits_and_is_no_longer_there_is_forgotten() {
        let mut state = RetryState { next: 100, ..RetryState::default() };
        state.waiting.extend([(4, at(10)), (7, at(99)), (50, at(10))]);
        assert_eq!(state.forget_missing(0..10, &HashSet::from([7])), 1);
        assert_eq!(state.waiting.into_keys().collect::<Vec<_>>(), [7, 50]);
    }

    #[test]
    fn an_event_that_is_a_dead_letter_is_needed_until_its_state_says_so() {
        let mut state = RetryState { next: 10, ..RetryState::default() };
        let origin = Origin {
            cluster: "c".to_owned(),
            topic: "t".to_owned(),
            topic_id: None,
            partition: 0,
            offset: 1,
        };
        let destination_id = "pg".to_owned();
        state.unnoted.insert(3, Unnoted { origin, refusals: 1, destination_id });
        assert_eq!(state.needed_from(), 3);
    }

    #[test]
    fn what_waits_before_a_moved_event_is_appended_anew() {
        let mut state = RetryState { next: 10, ..RetryState::default() };
        assert_eq!(state.to_append(), None);
        state.moved(9);
        assert_eq!(state.to_append(), None, "nothing waits before it");
        state.waiting.insert(4, at(100));
        assert_eq!(state.to_append(), Some(4..10));
        state.last_moved = Some(3);
        assert_eq!(state.to_append(), None, "the waiting one lies behind it");
    }

    #[test]
    fn a_chunk_is_needed_until_each_of_its_events_is_elsewhere() {
        let mut state = RetryState::beginning(Some(3), 0);
        assert_eq!(state.looks_from(3, at(0)), None, "nothing is new");
        assert_eq!(state.looks_from(5, at(0)), Some(3));
        state.take_up(&[3, 4], 5, at(0));
        state.moved(4);
        assert_eq!((state.needed_from(), state.looks_from(5, at(0))), (3, Some(3)));
        state.moved(3);
        assert_eq!((state.needed_from(), state.looks_from(5, at(0))), (5, None));
    }
}
