//! What of a topic Kafka has not acknowledged yet, and how old it is.
//!
//! Invariant: once the oldest event that Kafka has not acknowledged is older than the wait, no event is
//! admitted until that one is settled. So the queue of the client never fills with attempts whose senders
//! have been told no.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Stands for one admitted event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// The admitted events of one topic, oldest first; settled ones stay until all before them are settled.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// The ticket of the front.
    first: u64,
    admitted_at: VecDeque<Option<Instant>>,
}

impl Outstanding {
    /// Takes an event in, unless the oldest one waits for longer than `wait`.
    pub(crate) fn admit(&mut self, now: Instant, wait: Duration) -> Option<Ticket> {
        if self.is_blocked(now, wait) {
            return None;
        }
        self.admitted_at.push_back(Some(now));
        Some(Ticket(self.first + self.admitted_at.len() as u64 - 1))
    }

    /// The event was acknowledged, or will never be.
    pub(crate) fn settle(&mut self, ticket: Ticket) {
        let index = usize::try_from(ticket.0 - self.first).unwrap_or(usize::MAX);
        if let Some(entry) = self.admitted_at.get_mut(index) {
            *entry = None;
        }
        while let Some(None) = self.admitted_at.front() {
            self.admitted_at.pop_front();
            self.first += 1;
        }
    }

    /// Whether the oldest event waits for longer than `wait`.
    pub(crate) fn is_blocked(&self, now: Instant, wait: Duration) -> bool {
        match self.admitted_at.front() {
            Some(Some(oldest)) => now.saturating_duration_since(*oldest) > wait,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(1);

    #[test]
    fn a_topic_is_blocked_by_its_oldest_event_until_that_is_settled() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        let first = outstanding.admit(start, WAIT).unwrap();
        let second = outstanding.admit(start + WAIT / 2, WAIT).unwrap();
        let later = start + WAIT + Duration::from_millis(1);
        assert!(outstanding.admit(later, WAIT).is_none());
        outstanding.settle(second);
        assert!(outstanding.admit(later, WAIT).is_none(), "the oldest still waits");
        outstanding.settle(first);
        assert!(outstanding.admit(later, WAIT).is_some());
    }

    #[test]
    fn settling_in_any_order_leaves_what_is_not_settled() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        let tickets: Vec<_> = (0..5).map(|_| outstanding.admit(start, WAIT).unwrap()).collect();
        for index in [3, 0, 4, 1] {
            outstanding.settle(tickets[index]);
        }
        assert!(outstanding.is_blocked(start + 2 * WAIT, WAIT), "the third still waits");
        outstanding.settle(tickets[2]);
        assert!(!outstanding.is_blocked(start + 2 * WAIT, WAIT));
        assert!(outstanding.admitted_at.is_empty(), "nothing is kept of settled events");
        let next = outstanding.admit(start, WAIT).unwrap();
        assert_eq!(next, Ticket(5), "tickets are not used twice");
    }
}
