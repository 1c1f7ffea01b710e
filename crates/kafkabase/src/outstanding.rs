//! What of a topic Kafka has not acknowledged yet, how old it is, and where the topic's next event
//! goes.
//!
//! Invariants: once the oldest event that Kafka has not acknowledged is older than the wait, or
//! while events of the topic are in the spool, none is admitted to librdkafka. So its queue never
//! fills with attempts that were answered otherwise, and no event overtakes an older one in the
//! spool.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Stands for one admitted event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Where an event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// To librdkafka.
    Direct(Ticket),
    /// Not to librdkafka: older events of the topic wait for Kafka.
    Diverted,
    /// Nowhere before this moment, unless it is released earlier: the last events of the spool are
    /// on their way.
    Held(Instant),
}

/// An admitted event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// Since when.
    Waiting(Instant),
    /// The same, with the number of its copy in the spool.
    Copied(Instant, u64),
    Settled,
}

/// The admitted events of one topic, oldest first; settled ones stay until all before them are
/// settled.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// The ticket of the front.
    first: u64,
    slots: VecDeque<Slot>,
    /// Events of the topic are in the spool, or on their way there, and a replay is at work.
    is_diverted: bool,
    held_until: Option<Instant>,
}

impl Outstanding {
    /// Takes an event in, unless older ones wait.
    pub(crate) fn admit(&mut self, now: Instant, wait: Duration) -> Admission {
        if self.is_diverted {
            return match self.held_until {
                Some(until) if self.is_held(now) => Admission::Held(until),
                _ => Admission::Diverted,
            };
        }
        if self.is_blocked(now, wait) {
            return Admission::Diverted;
        }
        self.slots.push_back(Slot::Waiting(now));
        Admission::Direct(Ticket(self.first + self.slots.len() as u64 - 1))
    }

    /// The event was acknowledged, or will never be. Returns the number of its copy in the spool.
    pub(crate) fn settle(&mut self, ticket: Ticket) -> Option<u64> {
        let copy = self.slot(ticket).and_then(|slot| {
            let copy = if let Slot::Copied(_, seq) = *slot { Some(seq) } else { None };
            *slot = Slot::Settled;
            copy
        });
        while let Some(Slot::Settled) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
        copy
    }

    /// Whether the event is not settled yet.
    pub(crate) fn is_waiting(&mut self, ticket: Ticket) -> bool {
        self.slot(ticket).is_some_and(|slot| *slot != Slot::Settled)
    }

    /// The event has a copy in the spool.
    pub(crate) fn set_copied(&mut self, ticket: Ticket, seq: u64) {
        if let Some(slot) = self.slot(ticket)
            && let Slot::Waiting(since) = *slot
        {
            *slot = Slot::Copied(since, seq);
        }
    }

    /// Whether the oldest event waits for longer than `wait`.
    pub(crate) fn is_blocked(&self, now: Instant, wait: Duration) -> bool {
        match self.slots.front() {
            Some(Slot::Waiting(oldest) | Slot::Copied(oldest, _)) => {
                now.saturating_duration_since(*oldest) > wait
            }
            _ => false,
        }
    }

    /// Whether librdkafka has none of the topic's events (those that a replay sends aside).
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn is_diverted(&self) -> bool {
        self.is_diverted
    }

    /// From now on events go to the spool. True if they did not before: then the caller has to
    /// replay.
    pub(crate) fn divert(&mut self) -> bool {
        !std::mem::replace(&mut self.is_diverted, true)
    }

    /// The spool has nothing of the topic any more.
    pub(crate) fn switch_back(&mut self) {
        self.is_diverted = false;
        self.held_until = None;
    }

    /// New events wait for the switch back, until then at most. `None`: they do not.
    pub(crate) fn hold(&mut self, until: Option<Instant>) {
        self.held_until = until;
    }

    pub(crate) fn is_held(&self, now: Instant) -> bool {
        self.is_diverted && self.held_until.is_some_and(|until| now < until)
    }

    fn slot(&mut self, ticket: Ticket) -> Option<&mut Slot> {
        // below the front: settled long ago
        let index = usize::try_from(ticket.0.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(1);

    fn admitted(outstanding: &mut Outstanding, now: Instant) -> Ticket {
        match outstanding.admit(now, WAIT) {
            Admission::Direct(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_topic_is_blocked_by_its_oldest_event_until_that_is_settled() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        let first = admitted(&mut outstanding, start);
        let second = admitted(&mut outstanding, start + WAIT / 2);
        let later = start + WAIT + Duration::from_millis(1);
        assert_eq!(outstanding.admit(later, WAIT), Admission::Diverted);
        outstanding.settle(second);
        assert_eq!(outstanding.admit(later, WAIT), Admission::Diverted, "the oldest still waits");
        outstanding.settle(first);
        admitted(&mut outstanding, later);
    }

    #[test]
    fn settling_in_any_order_leaves_what_is_not_settled() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        let tickets: Vec<_> = (0..5).map(|_| admitted(&mut outstanding, start)).collect();
        for index in [3, 0, 4, 1] {
            outstanding.settle(tickets[index]);
        }
        assert!(outstanding.is_blocked(start + 2 * WAIT, WAIT), "the third still waits");
        assert!(outstanding.is_waiting(tickets[2]) && !outstanding.is_waiting(tickets[0]));
        outstanding.settle(tickets[2]);
        assert!(!outstanding.is_blocked(start + 2 * WAIT, WAIT));
        assert!(outstanding.is_empty(), "nothing is kept of settled events");
        assert_eq!(admitted(&mut outstanding, start), Ticket(5), "tickets are not used twice");
        assert_eq!(outstanding.settle(tickets[1]), None, "settling twice does nothing");
    }

    #[test]
    fn the_copy_of_a_settled_event_is_told_once() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        let (first, second) =
            (admitted(&mut outstanding, start), admitted(&mut outstanding, start));
        outstanding.set_copied(second, 7);
        outstanding.settle(first);
        outstanding.set_copied(first, 8);
        assert_eq!(outstanding.settle(second), Some(7));
        assert_eq!(outstanding.settle(second), None);
    }

    #[test]
    fn a_diverted_topic_admits_nothing_until_it_switches_back() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        assert!(outstanding.divert(), "the first one has to replay");
        assert!(!outstanding.divert(), "one is enough");
        assert_eq!(outstanding.admit(start, WAIT), Admission::Diverted);
        outstanding.hold(Some(start + WAIT));
        assert_eq!(outstanding.admit(start, WAIT), Admission::Held(start + WAIT));
        let later = start + WAIT;
        assert_eq!(outstanding.admit(later, WAIT), Admission::Diverted, "not held for ever");
        outstanding.switch_back();
        admitted(&mut outstanding, start);
    }
}
