//! The worlds in which events are refused and come back.

use warehouse::EventState;

use super::{
    Model,
    world::{Budget, Copied, Known, World},
    worlds::{MODEL, Scene, loaded_world, new_world, or_deep},
};

/// The same after two events were refused; these copies of them are in the retry topic.
fn waiting_world(copies: &[u8], runs: [u8; 2]) -> World {
    let mut world = loaded_world(2, 2, runs);
    world.database.table.fill(0);
    world.database.origins[..2].fill(Some(Known { state: EventState::Refused, refusals: 1 }));
    for event in copies {
        world.retry(Copied { event: *event, attempt: 1, is_foreign: false });
    }
    world
}

/// The original refuses an event and hands over; the copy comes back to us.
pub(super) fn retries_of_the_original() -> Scene {
    let mut start = new_world(2, [1, 1]);
    start.is_table_broken = true;
    start.original.is_live = true;
    start.budget = Budget {
        produced: or_deep(0, 1),
        crashes: 1,
        repairs: 1,
        mover_kills: 1,
        ..Budget::default()
    };
    let model = Model { fragile: &[0], ..MODEL };
    Scene { name: "retries of the original", model, start, at_least: 120_000 }
}

/// An event is refused while the table is broken, and comes back.
pub(super) fn retries() -> Scene {
    let mut start = new_world(2, [or_deep(1, 2), 1]);
    start.is_table_broken = true;
    start.budget =
        Budget { crashes: 1, repairs: 1, mover_kills: 1, lost_in_database: 1, ..Budget::default() };
    let model = Model { fragile: &[0], ..MODEL };
    Scene { name: "retries", model, start, at_least: 200_000 }
}

/// An event is refused, and an operator sets the group.
pub(super) fn retries_and_resets() -> Scene {
    let mut start = new_world(1, [or_deep(1, 2), 1]);
    start.is_table_broken = true;
    start.budget = Budget { repairs: 1, resets: 1, crashes: 1, ..Budget::default() };
    let model = Model { fragile: &[0], resets_to: &[0, 1, 2], ..MODEL };
    Scene { name: "retries and resets", model, start, at_least: 60_000 }
}

/// An event is refused, and the database is restored while one loader reads its copy.
pub(super) fn retries_and_restores() -> Scene {
    let mut start = new_world(1, [1, 1]);
    start.is_table_broken = true;
    start.budget =
        Budget { repairs: 1, backups: 1, restores: 1, crashes: or_deep(0, 1), ..Budget::default() };
    let model = Model { fragile: &[0], ..MODEL };
    Scene { name: "retries and restores", model, start, at_least: 40_000 }
}

/// An event is refused, and the topic is made anew.
pub(super) fn retries_and_a_new_topic() -> Scene {
    let mut start = new_world(1, [1, 1]);
    start.is_table_broken = true;
    start.budget = Budget { repairs: 1, recreations: 1, crashes: 1, ..Budget::default() };
    let model = Model { fragile: &[0], recreated_with: 1, keeps_group: false, ..MODEL };
    Scene { name: "retries and a new topic", model, start, at_least: 30_000 }
}

/// Two events wait in the retry topic, one of them twice; the mover fails in the middle of a chunk,
/// stops, is killed.
pub(super) fn moves() -> Scene {
    // the second copy is of a refusal whose transaction did not commit
    let mut start = waiting_world(&[0, 1, 0], [1, 0]);
    start.budget = Budget {
        failed_moves: 1,
        unreturnable: 1,
        mover_kills: 1,
        mover_stops: 1,
        crashes: or_deep(0, 1),
        takes: or_deep(0, 1),
        ..Budget::default()
    };
    Scene { name: "moves", model: MODEL, start, at_least: 30_000 }
}

/// Two events wait, and the table still refuses one of them; the mover is killed, and a topic does
/// not take a copy back.
pub(super) fn moves_and_refusals() -> Scene {
    let mut start = waiting_world(&[0, 1], [2, 0]);
    start.is_table_broken = true;
    start.budget = Budget {
        repairs: 1,
        unreturnable: 1,
        mover_kills: 1,
        crashes: 1,
        failed_moves: or_deep(0, 1),
        mover_stops: or_deep(0, 1),
        ..Budget::default()
    };
    let model = Model { fragile: &[0], attempts: 3, ..MODEL };
    Scene { name: "moves and refusals", model, start, at_least: 50_000 }
}
