//! What happens around the loaders: producers, faults, operators, and the original.

use warehouse::EventState;

use super::{
    Model, load, retry, rights,
    world::{Committed, Copied, EVENTS, Loader, PLACES, Pc, Record, Steps, Topic, World},
};

const CRASHES: [&str; 2] = ["loader A", "loader B"];

pub(super) fn steps(model: &Model, world: &World, steps: &mut Steps) {
    if world.budget.produced > 0 {
        let mut next = *world;
        next.budget.produced -= 1;
        next.produce();
        steps.push("producer", "produces an event", next);
    }
    for index in 0..world.loaders.len() {
        crash(world, index, steps);
    }
    settle_what_is_under_way(world, steps);
    if world.budget.resets > 0 && !world.original.is_live {
        for to in model.resets_to.iter().filter(|to| **to <= world.topic.end) {
            reset(world, *to, steps);
        }
    }
    database(world, steps);
    topic(model, world, steps);
    rights::steps(model, world, steps);
    if world.budget.repairs > 0 {
        let mut next = *world;
        next.budget.repairs -= 1;
        next.is_table_broken = !next.is_table_broken;
        let what = if next.is_table_broken { "breaks the table" } else { "repairs the table" };
        steps.push("operator", what, next);
    }
}

fn crash(world: &World, index: usize, steps: &mut Steps) {
    let me = &world.loaders[index];
    if world.budget.crashes == 0 || (me.is_resting() && !me.claimed) {
        return;
    }
    let mut crashed = *world;
    crashed.budget.crashes -= 1;
    crashed.loaders[index] = Loader::idle(me.runs);
    steps.push(CRASHES[index], "is killed", crashed);
    if let (Pc::Commit, Some(effect)) = (me.pc, me.effect) {
        let [(_, committed), _, (_, pending)] = load::cut_off(&crashed, &effect);
        steps.push(CRASHES[index], "is killed; its COMMIT went through", committed);
        steps.push(CRASHES[index], "is killed; its COMMIT is under way", pending);
    }
}

fn settle_what_is_under_way(world: &World, steps: &mut Steps) {
    if let Some(committed) = world.late {
        let group = if world.original.is_live { world.group } else { Some(committed) };
        steps.push("kafka", "takes the late commit", World { late: None, group, ..*world });
        steps.push("kafka", "loses the late commit", World { late: None, ..*world });
    }
    if let Some(effect) = world.pending {
        let aborted = World { pending: None, ..*world };
        steps.push("database", "rolls the open transaction back", aborted);
        let mut committed = aborted;
        effect.apply(&mut committed.database);
        steps.push("database", "commits the open transaction", committed);
    }
}

/// An operator moves the group's offset by Kafka's own tools.
///
/// Between two runs it must be applied, once. During a run it may be overlooked.
fn reset(world: &World, to: u8, steps: &mut Steps) {
    let mut next = *world;
    next.budget.resets -= 1;
    next.group = Some(Committed { offset: to, mark: None });
    for event in 0..EVENTS {
        let Some((id, offset)) = world.places[event] else {
            continue;
        };
        let (count, expected) = (world.database.table[event], &mut next.expected);
        // what waits in the retry topic comes back behind any offset
        let waits =
            world.database.origins[event].is_some_and(|known| known.state == EventState::Refused);
        if id != world.topic.id {
            // a decision about another topic
        } else if world.is_quiet() {
            expected.least[event] = count + u8::from(offset >= to);
            expected.most[event] = count + u8::from(offset >= to || waits);
        } else if offset >= to {
            expected.most[event] += 1;
        } else {
            expected.least[event] = expected.least[event].min(count);
        }
    }
    let what = if to == 0 { "sets the group back" } else { "sets the group forward" };
    steps.push("operator", what, next);
}

fn database(world: &World, steps: &mut Steps) {
    if world.budget.backups > 0 {
        let mut next = *world;
        next.budget.backups -= 1;
        next.backup = Some(next.database);
        steps.push("operator", "backs the database up", next);
    }
    let Some(backup) = world.backup.filter(|_| world.budget.restores > 0) else {
        return;
    };
    let mut next = World { database: backup, pending: None, ..*world };
    next.budget.restores -= 1;
    for least in &mut next.expected.least {
        *least = (*least).min(1); // what an operator had asked for may be gone with the table
    }
    for me in &mut next.loaders {
        // what was stopped has to look at the row again before the original takes over
        if me.is_in_transaction() || me.pc == Pc::Stopped {
            me.rest(Pc::Idle);
        }
    }
    steps.push("operator", "restores the database", next);
}

fn topic(model: &Model, world: &World, steps: &mut Steps) {
    if world.budget.recreations > 0 {
        let mut next = *world;
        next.budget.recreations -= 1;
        next.topic = Topic { id: world.topic.id + 1, low: 0, end: 0, records: [None; PLACES] };
        for (event, place) in world.places.iter().enumerate() {
            if place.is_some() {
                next.expected.least[event] = 0; // what was not read is gone
            }
        }
        for _ in 0..model.recreated_with {
            next.produce();
        }
        if model.keeps_group {
            steps.push("operator", "creates the topic anew; Kafka keeps the group", next);
        }
        next.group = None;
        steps.push("operator", "creates the topic anew", next);
    }
    if world.budget.cuts > 0 && world.topic.low < world.topic.end {
        let mut next = *world;
        next.budget.cuts -= 1;
        if let Some(Record::Event(event)) = world.topic.records[usize::from(world.topic.low)] {
            next.expected.least[usize::from(event)] = 0;
        }
        next.topic.low += 1;
        steps.push("kafka", "cuts the oldest record", next);
    }
}

/// The original: joins, loads record by record, commits without a mark, leaves. It is stopped
/// cleanly, and it is started only where ours were.
pub(super) fn original_steps(model: &Model, world: &World, steps: &mut Steps) {
    let original = world.original;
    if !original.is_live {
        let may_join = original.joins > 0
            && world.loaders.iter().all(|loader| loader.pc == Pc::Stopped)
            && world.late.is_none()
            && world.pending.is_none();
        if may_join {
            let mut next = *world;
            let position = world.group.map_or(world.topic.low, |group| group.offset);
            next.original.position = position;
            (next.original.is_live, next.original.joins) = (true, original.joins - 1);
            // what the original loads after a backup is not ours to load again
            (next.backup, next.budget.backups) = (None, 0);
            steps.push("original", "joins the group", next);
        }
        return;
    }
    if original.position < world.topic.end {
        let mut next = *world;
        next.original.position += 1;
        let at = usize::from(original.position);
        let what = match world.topic.records[at] {
            Some(Record::Event(event)) if retry::is_refused(model, world, event) => {
                next.retry(Copied { event, attempt: 1, is_foreign: true });
                "refuses an event, which goes to the retry topic"
            }
            Some(Record::Event(event)) => {
                next.database.table[usize::from(event)] += 1;
                "loads a record"
            }
            _ => "passes a record that it does not load",
        };
        steps.push("original", what, next);
    }
    let is_committed = world.group.is_some_and(|group| group.offset == original.position);
    if is_committed {
        let mut next = *world;
        (next.original.is_live, next.original.position) = (false, 0);
        steps.push("original", "leaves the group", next);
    } else {
        let committed = Committed { offset: original.position, mark: None };
        steps.push("original", "commits", World { group: Some(committed), ..*world });
    }
}
