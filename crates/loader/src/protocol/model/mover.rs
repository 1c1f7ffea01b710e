//! The mover of the retry topic, a process of its own: it takes a chunk, tries to bring its copies
//! back one after another, and commits the first offset that it still needs.
//!
//! What it knows is the real [`RetryState`], rebuilt from small numbers for each step. Everything is
//! due: what waits is what could not be moved.

use std::collections::BTreeMap;

use jiff::Timestamp;
use warehouse::EventState;

use super::{
    Model, retry,
    rules::Rule,
    world::{Copied, Mover, Record, Right, SmallSet, Steps, World},
};
use crate::retry::state::{RetryState, Unnoted};

/// Copies that are read at a time.
const CHUNK: i64 = 2;
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

const MOVES: (&str, &str) = ("brings a copy back", "brings a copy back and is killed");
const FAILS: (&str, &str) =
    ("cannot bring a copy back at the moment", "cannot bring a copy back, and is killed");
const WRITES_LETTER: (&str, &str) = (
    "writes the letter of a copy that cannot return",
    "writes the letter of a copy that cannot return and is killed",
);
const NOTES: (&str, &str) = (
    "lets a state say that there is a letter",
    "lets a state say that there is a letter, is killed",
);
const APPENDS: (&str, &str) = (
    "appends anew what waits before a moved event",
    "appends anew what waits before a moved event and is killed",
);

/// The first step is the one without a fault.
pub(super) fn steps(model: &Model, world: &World, steps: &mut Steps) {
    if world.original.is_live {
        return; // it is ours, and starts with us
    }
    let mover = world.mover;
    if mover.has_nothing_to_do(world) {
        return;
    }
    let mut turn = Turn { model, world, steps };
    if let Some(offset) = mover.unlettered.first() {
        turn.write_letter_late(offset);
    } else if let Some(offset) = mover.in_hand.first() {
        turn.try_to_move(*world, offset);
    } else if mover.is_stopping {
        turn.stop();
    } else {
        turn.go_on();
    }
}

struct Turn<'a> {
    model: &'a Model,
    world: &'a World,
    steps: &'a mut Steps,
}

impl Turn<'_> {
    /// Between two chunks.
    fn go_on(&mut self) {
        let mover = self.world.mover;
        if !mover.unnoted.is_empty() && may_write_states(self.world) {
            let mut next = *self.world;
            for offset in mover.unnoted.iter() {
                note(self.model, &mut next, offset);
            }
            next.mover.unnoted = SmallSet::default();
            self.push(NOTES, next);
            return;
        }
        self.take_chunk();
        if self.world.budget.mover_stops > 0 {
            let mut next = *self.world;
            next.budget.mover_stops -= 1;
            next.mover.is_stopping = true;
            self.steps.push("mover", "begins to stop", next);
        }
    }

    fn take_chunk(&mut self) {
        let mut state = state_of(self.world);
        let end = self.world.in_retry.iter().flatten().map(|_| 1).sum();
        let Some(from) = state.looks_from(end, NOW) else {
            return;
        };
        let (first_new, until) = (state.next, end.min(from + CHUNK));
        let is_due = |offset: &i64| *offset >= first_new || state.is_due(*offset, NOW);
        let chunk: Vec<_> = (from..until).filter(is_due).collect();
        state.take_up(&chunk, until, NOW);
        let mut next = *self.world;
        remember(&mut next.mover, &state);
        next.mover.in_hand = chunk.into_iter().map(small).collect();
        // nobody sees what it has read
        if let Some(offset) = next.mover.in_hand.first() {
            self.try_to_move(next, offset);
        }
    }

    fn try_to_move(&mut self, mut world: World, offset: u8) {
        let copied = copy_at(&world, offset);
        world.mover.in_hand.remove(offset);

        let mut moved = world;
        moved.topic.push(Record::Copy(copied));
        is_elsewhere(&mut moved, offset);
        self.push(MOVES, moved);

        if world.budget.failed_moves > 0 {
            let mut failed = world;
            failed.budget.failed_moves -= 1;
            self.push(FAILS, failed);
        }
        if world.budget.unreturnable == 0 || copied.is_foreign {
            return;
        }
        world.budget.unreturnable -= 1;
        if self.model.rules.has(Rule::LetterBeforeItsState) {
            write_letter(&mut world, offset);
            world.mover.unnoted.insert(offset);
            self.push(WRITES_LETTER, world);
        } else if may_write_states(&world) {
            note(self.model, &mut world, offset);
            world.mover.unlettered.insert(offset);
            self.push(NOTES, world);
        }
    }

    fn write_letter_late(&mut self, offset: u8) {
        let mut next = *self.world;
        next.mover.unlettered.remove(offset);
        write_letter(&mut next, offset);
        self.push(WRITES_LETTER, next);
    }

    /// A clean stop: what waits before a moved event is appended anew, then the group is committed.
    fn stop(&mut self) {
        let mover = self.world.mover;
        let mut next = *self.world;
        let gaps = state_of(self.world).to_append();
        let waits = gaps.and_then(|gaps| {
            mover.waiting.iter().find(|offset| gaps.contains(&i64::from(*offset)))
        });
        if let Some(offset) = waits {
            next.retry(copy_at(self.world, offset));
            is_elsewhere(&mut next, offset);
            self.push(APPENDS, next);
        } else {
            next.mover = beginning(self.to_commit(&next));
            self.steps.push("mover", "commits what it needs and stops; another starts", next);
        }
    }

    fn to_commit(&self, world: &World) -> u8 {
        if self.model.rules.has(Rule::NothingCommittedPastUnmoved) {
            small(state_of(world).needed_from())
        } else {
            world.mover.next
        }
    }

    /// Adds a step, and the same with a kill after it. Nobody sees what the mover knows, so a later
    /// kill would come to the same; and the commit after a chunk is no step of its own.
    fn push(&mut self, (what, and_is_killed): (&'static str, &'static str), mut next: World) {
        let mut killed = World { mover: beginning(next.mover.committed), ..next };
        let mover = next.mover;
        if mover.in_hand.is_empty() && mover.unlettered.is_empty() && !mover.is_stopping {
            next.mover.committed = self.to_commit(&next);
        }
        self.steps.push("mover", what, next);
        if killed.budget.mover_kills > 0 {
            killed.budget.mover_kills -= 1;
            self.steps.push("mover", and_is_killed, killed);
        }
    }
}

impl Mover {
    fn has_nothing_to_do(self, world: &World) -> bool {
        let is_idle = self.waiting.is_empty() && self.unnoted.is_empty() && !self.is_stopping;
        let has_new = world.in_retry.get(usize::from(self.next)).is_some_and(Option::is_some);
        is_idle && !has_new && world.budget.mover_stops == 0
    }
}

/// A process that knows nothing but what its group says.
fn beginning(committed: u8) -> Mover {
    let mut mover = Mover { committed, ..Mover::default() };
    remember(&mut mover, &RetryState::beginning(Some(i64::from(committed)), 0));
    mover
}

fn state_of(world: &World) -> RetryState {
    let mover = world.mover;
    let unnoted = mover.unnoted.iter().map(|offset| {
        let origin = retry::origin(world, copy_at(world, offset));
        let refusals = u32::from(copy_at(world, offset).attempt);
        let destination_id = "destination".to_owned();
        (i64::from(offset), Unnoted { origin, refusals, destination_id })
    });
    RetryState {
        is_known: true,
        committed: Some(i64::from(mover.committed)),
        next: i64::from(mover.next),
        waiting: mover.waiting.iter().map(|offset| (i64::from(offset), NOW)).collect(),
        unnoted: unnoted.collect::<BTreeMap<_, _>>(),
        last_moved: mover.last_moved.map(i64::from),
        ..RetryState::default()
    }
}

fn remember(mover: &mut Mover, state: &RetryState) {
    mover.next = small(state.next);
    mover.waiting = state.waiting.keys().map(|offset| small(*offset)).collect();
    mover.unnoted = state.unnoted.keys().map(|offset| small(*offset)).collect();
    mover.last_moved = state.last_moved.map(small);
}

fn is_elsewhere(world: &mut World, offset: u8) {
    let mut state = state_of(world);
    state.moved(i64::from(offset));
    remember(&mut world.mover, &state);
}

fn write_letter(world: &mut World, offset: u8) {
    let Copied { event, attempt, .. } = copy_at(world, offset);
    world.dead_letters[usize::from(event)].insert(attempt);
    is_elsewhere(world, offset);
}

/// The states are written under the lock of the row, and only those that say that an event waits.
fn may_write_states(world: &World) -> bool {
    !world.is_row_locked() && world.right == Right::Kept
}

fn note(model: &Model, world: &mut World, offset: u8) {
    let Copied { event, attempt, .. } = copy_at(world, offset);
    let Some(known) = &mut world.database.origins[usize::from(event)] else {
        return;
    };
    let is_last = known.refusals == attempt || !model.rules.has(Rule::OnlyTheLastCopyDecides);
    if known.state == EventState::Refused && is_last {
        known.state = EventState::Dead;
    }
}

fn copy_at(world: &World, offset: u8) -> Copied {
    world.in_retry[usize::from(offset)].expect("the mover has read it")
}

fn small(offset: i64) -> u8 {
    u8::try_from(offset).expect("offsets of the model are small")
}
