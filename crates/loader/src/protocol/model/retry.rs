//! Refused events: what a load does with them, and with the copies that come back.
//!
//! The states are those of the origins table; only a load's transaction changes them.

use warehouse::{EventState, Origin, PartitionKey};

use super::{
    super::returning::{Verdict as Judged, judge},
    Model,
    rules::Rule,
    world::{Copied, EVENTS, Effect, Known, Loader, Record, Row, World, uuid},
};

/// What a load decides about one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    loads: bool,
    state: Option<EventState>,
    /// The copy that goes to the retry topic; beyond the last attempt it is a dead letter.
    in_retry: Option<Copied>,
}

const DROPPED: Verdict = Verdict { loads: false, state: None, in_retry: None };

/// What the load of the loader's batch does, with the table and the states as they are now.
pub(super) fn effect(model: &Model, world: &World, me: &Loader) -> Effect {
    let known = me.row.expect("a loader past its start has a row");
    let row = world.database.row.unwrap_or(known);
    let mut effect = Effect {
        to: Row { next: me.batch_next, topic_id: known.topic_id, ..row },
        rows: [0; EVENTS],
        origins: [None; EVENTS],
        in_retry: [None; 2],
        dead: [false; EVENTS],
        moves_row: !me.by_group,
    };
    let states = me.states.unwrap_or(world.database.origins);
    let mut seen = [[false; 2]; EVENTS];
    for record in me.batch.into_iter().flatten() {
        let (event, verdict) = match record {
            Record::Event(event) if me.by_group => {
                let first = Copied { event, attempt: 0, is_foreign: false };
                (event, without_ledger(model, world, first))
            }
            Record::Copy(copied) if me.by_group => {
                (copied.event, without_ledger(model, world, copied))
            }
            Record::Event(event) => (event, first_reading(model, world, event)),
            // moved twice, by a mover that was killed: one of them is enough
            Record::Copy(Copied { event, is_foreign, .. })
                if seen[usize::from(event)][usize::from(is_foreign)] =>
            {
                (event, DROPPED)
            }
            Record::Copy(copied) => {
                let event = usize::from(copied.event);
                seen[event][usize::from(copied.is_foreign)] = true;
                (
                    copied.event,
                    returning(model, world, (row, states[event].map(|known| known.state)), copied),
                )
            }
            Record::Marker => continue,
        };
        let event = usize::from(event);
        effect.rows[event] += u8::from(verdict.loads);
        if let Some(state) = verdict.state {
            let refusals = verdict.in_retry.map_or(0, |copied| copied.attempt);
            effect.origins[event] = Some(Known { state, refusals });
        }
        match verdict.in_retry {
            Some(copied) if copied.attempt >= model.attempts => effect.dead[event] = true,
            Some(copied) => {
                let free = effect.in_retry.iter_mut().find(|place| place.is_none());
                *free.expect("a batch has few refused rows") = Some(copied);
            }
            None => {}
        }
    }
    effect
}

fn first_reading(model: &Model, world: &World, event: u8) -> Verdict {
    if is_refused(model, world, event) {
        return refused(model, Copied { event, attempt: 0, is_foreign: false });
    }
    Verdict { loads: true, state: None, in_retry: None }
}

/// Nothing is judged, so nothing is written that could be: whatever comes back from here looks as
/// if the original had refused it.
fn without_ledger(model: &Model, world: &World, copied: Copied) -> Verdict {
    let loads = !is_refused(model, world, copied.event);
    let has_origin = !model.rules.has(Rule::OriginsOnlyWhereJudged) && !copied.is_foreign;
    let again = Copied { attempt: copied.attempt + 1, is_foreign: !has_origin, ..copied };
    Verdict { loads, state: None, in_retry: (!loads).then_some(again) }
}

fn returning(
    model: &Model,
    world: &World,
    (row, state): (Row, Option<EventState>),
    copied: Copied,
) -> Verdict {
    let has = |rule| model.rules.has(rule);
    let loads = match state {
        Some(EventState::Loaded | EventState::Dead) if !has(Rule::SettledCopiesAreDropped) => true,
        None if !has(Rule::RefusalsAreWritten) => true,
        None if !has(Rule::UncoveredCopiesLoad) => false,
        None if is_of_earlier_topic(world, row, copied) && !has(Rule::EarlierTopicsAreCovered) => {
            true
        }
        state => judge(state, &origin(world, copied), &key(), &row.to_position()) != Judged::Drop,
    };
    if !loads {
        DROPPED
    } else if is_refused(model, world, copied.event) {
        refused(model, copied)
    } else {
        Verdict { loads, state: Some(EventState::Loaded), in_retry: None }
    }
}

fn is_of_earlier_topic(world: &World, row: Row, copied: Copied) -> bool {
    let place = world.places[usize::from(copied.event)];
    !copied.is_foreign && place.is_some_and(|(id, _)| id != row.topic_id)
}

fn key() -> PartitionKey {
    PartitionKey { cluster_id: "cluster".to_owned(), topic: "topic".to_owned(), partition: 0 }
}

/// What the headers of a copy say of the place where its event was read first.
pub(super) fn origin(world: &World, copied: Copied) -> Origin {
    let PartitionKey { cluster_id: cluster, topic, partition } = key();
    let (topic_id, offset) = world.places[usize::from(copied.event)].unwrap_or_default();
    let topic = if copied.is_foreign { "retry topic".to_owned() } else { topic };
    Origin { cluster, topic, topic_id: Some(uuid(topic_id)), partition, offset: i64::from(offset) }
}

fn refused(model: &Model, copied: Copied) -> Verdict {
    let in_retry = Copied { attempt: copied.attempt + 1, ..copied };
    let state = if !model.rules.has(Rule::OriginsOfLoadedRowsOnly) {
        Some(EventState::Loaded)
    } else if in_retry.attempt >= model.attempts {
        Some(EventState::Dead)
    } else {
        model.rules.has(Rule::RefusalsAreWritten).then_some(EventState::Refused)
    };
    Verdict { loads: false, state, in_retry: Some(in_retry) }
}

pub(super) fn is_refused(model: &Model, world: &World, event: u8) -> bool {
    world.is_table_broken && model.fragile.contains(&event)
}

/// Whether an event is a dead letter that counts.
pub(super) fn is_dead(model: &Model, world: &World, event: usize) -> bool {
    let letters = world.dead_letters[event];
    let counts = |known: Known| known.state == EventState::Dead && letters.contains(known.refusals);
    let has_any = !letters.is_empty() && !model.rules.has(Rule::DeadLettersCountByState);
    world.plain_letters[event] || has_any || world.database.origins[event].is_some_and(counts)
}
