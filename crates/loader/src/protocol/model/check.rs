//! What must hold in every world, and what must come true once nothing goes wrong any more.

use super::{
    Model, faults, mover, retry, stop,
    turn::Turn,
    world::{Budget, EVENTS, Loader, Pc, Right, Step, Steps, Violation, World, is_unmarked},
};

/// Runs, each followed by all moves, after which nothing may change any more.
const ROUNDS: usize = 12;
/// Steps of one run.
const STEPS: usize = 100;

/// What must hold in this world, whatever comes next.
pub(super) fn now(model: &Model, world: &World) -> Result<(), Violation> {
    if let Some(broken) = world.expected.broken {
        return Err(broken);
    }
    for event in 0..EVENTS {
        let count = world.database.table[event];
        if model.at_least_once {
            continue;
        }
        if count > world.expected.most[event] {
            return Err(Violation::Doubled);
        }
        if count > 0 && retry::is_dead(model, world, event) {
            return Err(Violation::DeadAndLoaded);
        }
    }
    // operators set the group to the topic's beginning or its end, in these worlds
    if !model.resets_to.is_empty() && !world.database.table.is_sorted_by(|a, b| a >= b) {
        return Err(Violation::HalfApplied);
    }
    let are_stopped = world.loaders.iter().all(|loader| loader.pc == Pc::Stopped);
    if world.is_quiet() && are_stopped { group_agrees(world) } else { Ok(()) }
}

/// The group is where the row is, or where an operator decided. A row of a topic that is gone says
/// nothing.
fn group_agrees(world: &World) -> Result<(), Violation> {
    let (group, database) = (world.group, &world.database);
    let agrees = database.row.is_none_or(|row| {
        row.topic_id != world.topic.id
            || is_unmarked(group)
            || group == Some(row.mark(database.ledger).committed())
    });
    if agrees { Ok(()) } else { Err(Violation::GroupBehind) }
}

/// What must have come true once everybody has finished, one loader has run to the end and stopped,
/// and nothing went wrong on the way. For worlds in which no loader is in the middle of a run.
/// `seen` is shown every step.
pub(super) fn in_the_end(
    model: &Model,
    world: &World,
    seen: &mut impl FnMut(Step, &World),
) -> Result<(), Violation> {
    let model = &Model { reclaims: false, ..*model };
    // what was taken away is given back
    let right = if world.database.row.is_some() { Right::Kept } else { world.right };
    let mut end = End {
        model,
        world: World { budget: Budget::default(), late: None, right, ..*world },
        seen,
    };
    while end.step(|world, steps| faults::original_steps(model, world, steps)) {}
    for _ in 0..ROUNDS {
        let before = end.world;
        let claimed = before.loaders[0].claimed;
        end.world.loaders[0] = Loader { pc: Pc::Members, claimed, ..Loader::idle(0) };
        end.run_to_rest()?;
        while end.step(|world, steps| mover::steps(model, world, steps)) {}
        now(model, &end.world)?;
        let World { topic, database, group, .. } = end.world;
        if (topic, database, group) == (before.topic, before.database, before.group) {
            return end.all_is_there().and_then(|()| end.stop_agrees());
        }
    }
    Err(Violation::Stuck)
}

/// A world in which everybody finishes.
struct End<'a, F> {
    model: &'a Model,
    world: World,
    seen: &'a mut F,
}

impl<F: FnMut(Step, &World)> End<'_, F> {
    fn all_is_there(&self) -> Result<(), Violation> {
        let World { database, expected, .. } = &self.world;
        let is_there = (0..EVENTS).all(|event| {
            database.table[event] >= expected.least[event]
                || retry::is_dead(self.model, &self.world, event)
        });
        if is_there { Ok(()) } else { Err(Violation::Lost) }
    }

    fn stop_agrees(&mut self) -> Result<(), Violation> {
        let model = self.model;
        self.step(|world, steps| stop::begin(&mut Turn { model, world, index: 0, steps }));
        self.run_to_rest()?;
        group_agrees(&self.world)
    }

    /// Loader A's steps until it rests. Without faults there is one at a time.
    fn run_to_rest(&mut self) -> Result<(), Violation> {
        let model = self.model;
        for _ in 0..STEPS {
            if self.world.loaders[0].is_resting() {
                return Ok(());
            }
            if !self.step(|world, steps| Turn { model, world, index: 0, steps }.take()) {
                break;
            }
        }
        Err(Violation::Stuck)
    }

    /// Takes the first of these steps, if there is one.
    fn step(&mut self, take: impl FnOnce(&World, &mut Steps)) -> bool {
        let mut steps = Steps::default();
        take(&self.world, &mut steps);
        let Some((step, next)) = steps.0.into_iter().next() else {
            return false;
        };
        (self.seen)(step, &next);
        self.world = next;
        true
    }
}
