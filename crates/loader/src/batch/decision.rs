//! What becomes of the events of one batch: decided once, when its rows are staged and their
//! refusals known.
//!
//! Invariant: every event of the batch ends in exactly one place, decided by one transaction: in
//! the table, merged into another event's row, waiting in the retry topic, on the dead letter
//! topic, or dropped as the copy of an event that was decided before. What a refused event does to
//! the ledger and where it is produced to come from the same decision.

use std::{collections::HashMap, sync::Arc};

use kafkabase::Message;
use warehouse::{
    Batch, EventChange, EventState, LedgerChanges, LoadReport, Origin, RefusedRow, Tally,
};

use super::{
    groups::{RowGroup, Unparsable},
    reader::Held,
};
use crate::{
    outcome::{EventCounts, Outcome},
    retry::{
        envelope::Envelope,
        refused_producer::{Place, RefusalRoute, RefusedEvent},
    },
};

/// An event that returned from the retry topic and is loaded.
#[derive(Debug, Clone)]
pub(crate) struct Returning {
    pub(crate) origin: Origin,
    /// Nothing was known of it: it counts as received here.
    pub(crate) is_new: bool,
}

/// The events of one batch while their rows are on their way.
pub(crate) struct BatchEvents {
    pub(crate) next_offset: i64,
    pub(crate) last_timestamp_ms: Option<i64>,
    /// The table that the topic's events are for.
    pub(crate) table: String,
    /// The origin of first readings, but for the offset.
    pub(crate) origin: Origin,
    /// Whether somebody judges events by their origins when they return; else they carry none.
    pub(crate) has_ledger: bool,
    /// What is known before anything is refused.
    pub(crate) counts: EventCounts,
    pub(super) groups: Vec<EventGroup>,
    pub(super) unparsable: Vec<(Unparsable, Option<Returning>)>,
    /// Given back with the messages.
    pub(super) _held: Held,
}

/// The messages of one batch of rows: row `n` is message `n`.
pub(super) struct EventGroup {
    messages: Vec<Message>,
    /// One for each message, in a batch of returning events.
    returning: Option<Vec<Returning>>,
}

/// What becomes of the events of a batch.
#[derive(Default)]
pub(crate) struct BatchDecision {
    /// What the ledger has to say of it.
    pub(crate) changes: LedgerChanges,
    /// What has to be produced before the commit.
    pub(crate) refused: Vec<RefusedEvent>,
    pub(crate) counts: EventCounts,
    /// What the first refusal is called; for logs, so without any value of a row.
    pub(crate) first_reason: Option<String>,
}

impl BatchDecision {
    /// Refused events that turned out to have no more attempts, by their index.
    pub(crate) fn have_no_attempt(&mut self, refused: &[usize]) {
        for index in refused {
            // states of refused events are written in their order, before all others
            let Some(change) = self.changes.events.get_mut(*index) else {
                continue;
            };
            change.state = EventState::Dead;
            self.changes.tally.waiting -= 1;
            self.changes.tally.dead += 1;
            self.counts.sent_to_retry -= 1;
            self.counts.dead += 1;
        }
    }
}

impl BatchEvents {
    /// Keeps the messages of returning events; answers their rows.
    pub(crate) fn add_returning(&mut self, group: RowGroup<Returning>) -> Batch {
        let RowGroup { batch, messages, notes } = group;
        self.groups.push(EventGroup { messages, returning: Some(notes) });
        batch
    }

    /// Keeps the messages of first readings; answers their rows.
    pub(crate) fn add(&mut self, group: RowGroup<()>) -> Batch {
        let RowGroup { batch, messages, .. } = group;
        self.groups.push(EventGroup { messages, returning: None });
        batch
    }

    /// Keeps an event that cannot become a row.
    pub(crate) fn add_unparsable(&mut self, event: Unparsable, returning: Option<Returning>) {
        self.unparsable.push((event, returning));
    }

    /// Decides, from what the warehouse said of the rows. `route` says where an event goes that is
    /// refused after it returned so many times.
    pub(crate) fn decide(
        &self,
        report: &LoadReport,
        route: impl Fn(u32) -> RefusalRoute,
    ) -> BatchDecision {
        let mut deciding = Deciding::new(self, report, route);
        let returning_of = |group: &EventGroup| group.returning.as_ref().map_or(0, Vec::len);
        let mut is_refused: Vec<Vec<bool>> =
            self.groups.iter().map(|group| vec![false; returning_of(group)]).collect();
        for RefusedRow { batch, row, error } in &report.refused {
            let group = self.groups.get(*batch);
            let Some(message) = group.and_then(|group| group.messages.get(*row)) else {
                continue; // rows and messages are pushed together
            };
            if let Some(refused) = is_refused[*batch].get_mut(*row) {
                *refused = true;
            }
            let returning = group.and_then(|group| group.returning.as_ref()?.get(*row));
            let at = (Place::Row(*batch, *row), message);
            deciding.refuse(at, returning, &error.sqlstate, &error.full_text);
        }
        for (index, (unparsable, returning)) in self.unparsable.iter().enumerate() {
            let Unparsable { message, code, reason } = unparsable;
            let at = (Place::NoRow(index), message);
            deciding.refuse(at, returning.as_ref(), code, reason);
        }
        for (group, is_refused) in self.groups.iter().zip(is_refused) {
            for (returning, is_refused) in group.returning.iter().flatten().zip(is_refused) {
                if !is_refused {
                    deciding.load_returning(returning);
                }
            }
        }
        let mut decision = deciding.decision;
        decision.first_reason = match report.refused.first() {
            Some(row) => Some(row.error.to_string()),
            None => self.unparsable.first().map(|(unparsable, _)| unparsable.code.clone()),
        };
        decision
    }

    /// The message at a place of this batch.
    pub(crate) fn message(&self, place: Place) -> Option<&Message> {
        match place {
            Place::Row(group, row) => self.groups.get(group)?.messages.get(row),
            Place::NoRow(index) => self.unparsable.get(index).map(|(event, _)| &event.message),
        }
    }

    /// Every message with what became of it. Refused ones come in the order of the report.
    pub(crate) fn outcomes<'a>(
        &'a self,
        report: &'a LoadReport,
    ) -> impl Iterator<Item = (&'a Message, Outcome<'a>)> + Clone {
        let reasons: HashMap<(usize, usize), &str> = report
            .refused
            .iter()
            .map(|refused| ((refused.batch, refused.row), refused.error.full_text.as_str()))
            .collect();
        let reasons = Arc::new(reasons);
        let rows = self.groups.iter().enumerate().flat_map(move |(batch, group)| {
            let reasons = reasons.clone();
            group.messages.iter().enumerate().map(move |(row, message)| {
                let reason = reasons.get(&(batch, row)).copied();
                (message, reason.map_or(Outcome::Loaded, Outcome::Refused))
            })
        });
        let others = self.unparsable.iter().map(|(unparsable, _)| {
            (&unparsable.message, Outcome::Refused(unparsable.reason.as_str()))
        });
        rows.chain(others)
    }
}

/// A decision that is being made.
struct Deciding<'a, R> {
    events: &'a BatchEvents,
    route: R,
    decision: BatchDecision,
}

impl<'a, R: Fn(u32) -> RefusalRoute> Deciding<'a, R> {
    fn new(events: &'a BatchEvents, report: &LoadReport, route: R) -> Deciding<'a, R> {
        let counts = events.counts;
        let tally = Tally {
            received: i64::try_from(counts.consumed - counts.retried).unwrap_or(i64::MAX),
            loaded: i64::try_from(report.counts.loaded).unwrap_or(i64::MAX),
            merged: i64::try_from(report.counts.merged).unwrap_or(i64::MAX),
            ..Tally::default()
        };
        let changes = LedgerChanges {
            next_offset: events.next_offset,
            last_timestamp_ms: events.last_timestamp_ms,
            tally,
            table: events.table.clone(),
            events: Vec::new(),
        };
        let decision = BatchDecision { changes, counts, ..BatchDecision::default() };
        Deciding { events, route, decision }
    }

    fn load_returning(&mut self, returning: &Returning) {
        self.count_returning(returning);
        self.decision.changes.events.push(EventChange {
            origin: returning.origin.clone(),
            state: EventState::Loaded,
            refusals: 0,
            reason: String::new(),
        });
    }

    fn refuse(
        &mut self,
        (place, message): (Place, &Message),
        returning: Option<&Returning>,
        reason: &str,
        error: &str,
    ) {
        let attempts = Envelope::attempts_of(message).unwrap_or(0);
        let route = (self.route)(attempts);
        if let Some(returning) = returning {
            self.count_returning(returning);
        }
        let BatchDecision { changes, counts, .. } = &mut self.decision;
        let state = match route {
            RefusalRoute::Retry => {
                counts.sent_to_retry += 1;
                changes.tally.waiting += 1;
                EventState::Refused
            }
            RefusalRoute::DeadLetter => {
                counts.dead += 1;
                changes.tally.dead += 1;
                EventState::Dead
            }
        };
        let first_reading = || Origin { offset: message.offset(), ..self.events.origin.clone() };
        let origin = returning.map_or_else(first_reading, |returning| returning.origin.clone());
        changes.events.push(EventChange {
            origin: origin.clone(),
            state,
            refusals: attempts + 1,
            reason: reason.to_owned(),
        });
        let error = error.to_owned();
        let origin = self.events.has_ledger.then_some(origin);
        self.decision.refused.push(RefusedEvent {
            place,
            bytes: message.held_bytes(),
            origin,
            attempts,
            route,
            error,
        });
    }

    fn count_returning(&mut self, returning: &Returning) {
        let tally = &mut self.decision.changes.tally;
        match returning.is_new {
            true => tally.received += 1,
            false => tally.waiting -= 1,
        }
    }
}
