//! Refused events: what a load does with them, and the mover that brings them back to the topic.
//!
//! The states are those of the origins table; only a load's transaction changes them.

use super::{
    Model,
    rules::Rule,
    world::{Copied, EVENTS, Effect, Loader, OriginState, Record, Row, Steps, World},
};

/// What a load decides about one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    loads: bool,
    state: Option<OriginState>,
    /// The copy that is parked; beyond the last attempt it is a dead letter.
    parked: Option<Copied>,
}

const DROPPED: Verdict = Verdict { loads: false, state: None, parked: None };

/// What the load of the loader's batch does, with the table and the states as they are now.
pub(super) fn effect(model: &Model, world: &World, me: &Loader) -> Effect {
    let known = me.row.expect("a loader past its start has a row");
    let row = world.database.row.unwrap_or(known);
    let mut effect = Effect {
        to: Row { next: me.batch_next, topic_id: known.topic_id, ..row },
        rows: [0; EVENTS],
        origins: [None; EVENTS],
        parked: [None; 2],
        dead: [false; EVENTS],
    };
    for record in me.batch.into_iter().flatten() {
        let (event, verdict) = match record {
            Record::Event(event) => (event, first_reading(model, world, event)),
            Record::Copy(copied) => {
                // two copies of one event may lie in one batch
                let written = effect.origins[usize::from(copied.event)];
                let state = written.or(world.database.origins[usize::from(copied.event)]);
                (copied.event, returning(model, world, (row, state), copied))
            }
            Record::Marker => continue,
        };
        let event = usize::from(event);
        effect.rows[event] += u8::from(verdict.loads);
        effect.origins[event] = verdict.state.or(effect.origins[event]);
        match verdict.parked {
            Some(copied) if copied.attempt >= model.attempts => effect.dead[event] = true,
            Some(copied) => {
                let free = effect.parked.iter_mut().find(|place| place.is_none());
                *free.expect("a batch has few refused rows") = Some(copied);
            }
            None => {}
        }
    }
    effect
}

fn first_reading(model: &Model, world: &World, event: u8) -> Verdict {
    let known = world.database.origins[usize::from(event)];
    let verdict = if is_refused(model, world, event) {
        refused(model, Copied { event, attempt: 0, is_foreign: false })
    } else {
        let settles = known == Some(OriginState::Refused);
        Verdict { loads: true, state: settles.then_some(OriginState::Loaded), parked: None }
    };
    match known {
        // nobody reads for the first time what is settled, unless the reset forgot to forget
        Some(OriginState::Loaded | OriginState::Dead) => Verdict { state: None, ..verdict },
        Some(OriginState::Refused) | None => verdict,
    }
}

fn returning(
    model: &Model,
    world: &World,
    (row, state): (Row, Option<OriginState>),
    copied: Copied,
) -> Verdict {
    let settled = matches!(state, Some(OriginState::Loaded | OriginState::Dead));
    if settled && model.rules.has(Rule::SettledCopiesAreDropped) {
        return DROPPED;
    }
    let is_known = state.is_some()
        || !model.rules.has(Rule::RefusalsAreWritten)
        || (!is_covered(world, row, copied) && model.rules.has(Rule::UncoveredCopiesLoad));
    if !is_known {
        // that refusal never committed: the event was loaded then, or refused anew
        return DROPPED;
    }
    if is_refused(model, world, copied.event) {
        return refused(model, copied);
    }
    Verdict { loads: true, state: Some(OriginState::Loaded), parked: None }
}

fn refused(model: &Model, copied: Copied) -> Verdict {
    let parked = Copied { attempt: copied.attempt + 1, ..copied };
    let state = if !model.rules.has(Rule::OriginsOfLoadedRowsOnly) {
        Some(OriginState::Loaded)
    } else if parked.attempt >= model.attempts {
        Some(OriginState::Dead)
    } else {
        model.rules.has(Rule::RefusalsAreWritten).then_some(OriginState::Refused)
    };
    Verdict { loads: false, state, parked: Some(parked) }
}

pub(super) fn is_refused(model: &Model, world: &World, event: u8) -> bool {
    world.is_table_broken && model.fragile.contains(&event)
}

/// Whether our row has passed the origin, so that a refusal would be written if it had committed.
fn is_covered(world: &World, row: Row, copied: Copied) -> bool {
    let place = world.places[usize::from(copied.event)];
    !copied.is_foreign
        && place.is_some_and(|(id, offset)| id != row.topic_id || offset >= row.began)
}

/// Whether an event is a dead letter that counts.
pub(super) fn is_dead(model: &Model, world: &World, event: usize) -> bool {
    let state = world.database.origins[event];
    world.dead_letters[event]
        && (state == Some(OriginState::Dead) || !model.rules.has(Rule::DeadLettersCountByState))
}

/// The mover brings the next parked copy back to the topic, at least once.
pub(super) fn mover_steps(world: &World, steps: &mut Steps) {
    let Some(Some(copied)) = world.parked.get(usize::from(world.moved)) else {
        return;
    };
    if world.original.is_live {
        return; // it is ours, and starts with us
    }
    let mut next = *world;
    next.topic.push(Record::Copy(*copied));
    if next.budget.repeated_moves > 0 {
        let mut again = next;
        again.budget.repeated_moves -= 1;
        steps.push("mover", "brings a copy back and is killed before it notes so", again);
    }
    next.moved += 1;
    steps.push("mover", "brings a copy back", next);
}
