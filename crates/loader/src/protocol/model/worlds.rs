//! The worlds that are searched: one for each family of faults, small enough to be seen whole.

use super::{
    Model,
    rules::Rules,
    world::{
        Budget, Committed, Database, EVENTS, Expected, Loader, Mover, Original, PLACES, Pc,
        RETRIED, Record, Right, Row, SmallMark, SmallSet, Topic, World,
    },
};

/// Where a search begins, and what does not change in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene {
    pub(super) name: &'static str,
    pub(super) model: Model,
    pub(super) start: World,
    /// Fewer worlds than this, and the search has missed something.
    pub(super) at_least: usize,
}

pub(super) const MODEL: Model = Model {
    rules: Rules::ALL,
    batch: 2,
    attempts: 2,
    fragile: &[],
    can_stop: false,
    reclaims: false,
    resets_to: &[],
    recreated_with: 0,
    keeps_group: true,
    ledger_goes: false,
    at_least_once: false,
};

/// Whether more is searched than in `make test`: set by `make model`.
fn is_deep() -> bool {
    std::env::var_os("MODEL_DEEP").is_some()
}

/// `small`, or `deep` in a deep search.
pub(super) fn or_deep(small: u8, deep: u8) -> u8 {
    if is_deep() { deep } else { small }
}

/// A topic with `events`, not loaded yet, each loader has some `runs`.
pub(super) fn new_world(events: u8, runs: [u8; 2]) -> World {
    let mut world = World {
        topic: Topic { id: 1, low: 0, end: 0, records: [None; PLACES] },
        places: [None; EVENTS],
        group: None,
        late: None,
        in_retry: [None; RETRIED],
        mover: Mover::default(),
        dead_letters: [SmallSet::default(); EVENTS],
        plain_letters: [false; EVENTS],
        database: Database { ledger: 1, row: None, table: [0; EVENTS], origins: [None; EVENTS] },
        right: Right::Kept,
        fresh_epoch: 1,
        backup: None,
        pending: None,
        is_table_broken: false,
        loaders: runs.map(Loader::idle),
        original: Original { is_live: false, position: 0, joins: 0 },
        budget: Budget::default(),
        expected: Expected { least: [0; EVENTS], most: [0; EVENTS], broken: None },
    };
    for _ in 0..events {
        world.produce();
    }
    world
}

/// The same after a run that has loaded the first `next` events.
pub(super) fn loaded_world(events: u8, next: u8, runs: [u8; 2]) -> World {
    let mut world = new_world(events, runs);
    world.database.row = Some(Row { next, epoch: 0, began: 0, topic_id: 1 });
    world.group = Some(SmallMark { ledger: 1, epoch: 0, offset: next, began: 0 }.committed());
    world.database.table[..usize::from(next)].fill(1);
    world
}

/// Two loaders meet on a topic that is not loaded yet; one event is produced meanwhile.
pub(super) fn new_topic() -> Scene {
    let mut start = new_world(1, [or_deep(1, 2), or_deep(1, 2)]);
    start.budget = Budget {
        produced: 1,
        crashes: 1,
        lost_in_kafka: 1,
        lost_in_database: 1,
        ..Budget::default()
    };
    Scene { name: "new topic", model: MODEL, start, at_least: 20_000 }
}

/// An operator sets the group back or forward, between runs or during one.
pub(super) fn resets() -> Scene {
    let mut start = loaded_world(2, 1, [2, or_deep(2, 1)]);
    start.budget = Budget {
        resets: or_deep(1, 2),
        lost_in_kafka: 1,
        lost_in_database: or_deep(0, 1),
        ..Budget::default()
    };
    let model = Model { resets_to: &[0, 2], ..MODEL };
    Scene { name: "resets", model, start, at_least: 300_000 }
}

/// The same while a run is long enough to repeat its claim between two batches.
pub(super) fn long_runs() -> Scene {
    let mut start = loaded_world(2, 0, [1, 1]);
    start.budget = Budget {
        resets: 1,
        lost_in_kafka: or_deep(0, 1),
        crashes: or_deep(0, 1),
        ..Budget::default()
    };
    let model = Model { batch: 1, resets_to: &[0, 2], reclaims: true, ..MODEL };
    Scene { name: "long runs", model, start, at_least: 40_000 }
}

/// The database is restored, from before the last batches or from before the row.
pub(super) fn restores() -> Scene {
    let mut start = new_world(2, [2, or_deep(1, 2)]);
    start.budget = Budget {
        backups: 1,
        restores: 1,
        crashes: or_deep(0, 1),
        lost_in_kafka: or_deep(0, 1),
        lost_in_database: 1,
        ..Budget::default()
    };
    Scene { name: "restores", model: Model { batch: 1, ..MODEL }, start, at_least: 100_000 }
}

/// An operator sets the group back to what was skipped once, and restores the database from before
/// the row.
pub(super) fn reset_and_restored() -> Scene {
    let mut start = loaded_world(1, 1, [1, 1]);
    start.database.table[0] = 0;
    start.expected.least[0] = 0;
    start.backup = Some(Database { row: None, ..start.database });
    start.budget = Budget { resets: 1, restores: 1, ..Budget::default() };
    let model = Model { resets_to: &[0], ..MODEL };
    Scene { name: "reset and restored", model, start, at_least: 20_000 }
}

/// The topic is made anew and the database restored from before the row, while both loaders run.
pub(super) fn recreated_and_restored() -> Scene {
    let mut start = new_world(1, [1, 1]);
    start.budget = Budget { recreations: 1, backups: 1, restores: 1, ..Budget::default() };
    let model = Model { recreated_with: 1, keeps_group: false, ..MODEL };
    Scene { name: "re-created and restored", model, start, at_least: 100_000 }
}

/// The topic is deleted and made anew, with more events than the row has passed; the old one had
/// lost its oldest record to retention.
pub(super) fn recreated_topic() -> Scene {
    let mut start = loaded_world(2, 1, [2, 2]);
    start.topic.low = 1;
    start.budget = Budget {
        recreations: 1,
        crashes: or_deep(0, 1),
        lost_in_kafka: or_deep(0, 1),
        ..Budget::default()
    };
    let model = Model { recreated_with: 2, ..MODEL };
    Scene { name: "re-created topic", model, start, at_least: 25_000 }
}

/// The same, for a topic that the original has loaded a part of and that has no row here yet.
pub(super) fn recreated_before_the_first_row() -> Scene {
    let mut start = new_world(2, [1, 1]);
    start.database.table[0] = 1;
    start.group = Some(Committed { offset: 1, mark: None });
    start.budget = Budget { recreations: 1, ..Budget::default() };
    let model = Model { recreated_with: 2, keeps_group: false, ..MODEL };
    Scene { name: "re-created before its first row", model, start, at_least: 15_000 }
}

/// The last record is a marker, a leader lags behind, retention cuts.
pub(super) fn odd_ends() -> Scene {
    let mut start = new_world(2, [2, 1]);
    start.topic.push(Record::Marker);
    start.budget = Budget {
        early_ends: 1,
        cuts: or_deep(1, 2),
        produced: or_deep(0, 1),
        crashes: or_deep(0, 1),
        ..Budget::default()
    };
    Scene { name: "odd ends", model: Model { batch: 1, ..MODEL }, start, at_least: 15_000 }
}

/// The original hands over to us while it still runs, takes over again, and hands over once more.
pub(super) fn hand_over() -> Scene {
    let mut start = new_world(2, [1, 1]);
    start.original = Original { is_live: true, position: 0, joins: 1 };
    start.budget = Budget {
        produced: 1,
        crashes: 1,
        lost_in_kafka: or_deep(0, 1),
        lost_in_database: or_deep(0, 1),
        ..Budget::default()
    };
    Scene { name: "hand-over", model: Model { can_stop: true, ..MODEL }, start, at_least: 250_000 }
}

/// Our loaders stop while one of them goes on.
pub(super) fn stops() -> Scene {
    let mut start = loaded_world(2, 0, [1, 1]);
    start.budget = Budget {
        crashes: 1,
        lost_in_kafka: or_deep(1, 2),
        lost_in_database: or_deep(0, 1),
        ..Budget::default()
    };
    start.original.joins = 1;
    Scene { name: "stops", model: Model { can_stop: true, ..MODEL }, start, at_least: 60_000 }
}

/// The topic is made anew with fewer events than the row has passed.
pub(super) fn shorter_topic() -> Scene {
    let mut start = loaded_world(2, 2, [1, 1]);
    start.budget = Budget { recreations: 1, produced: 1, ..Budget::default() };
    let model = Model { recreated_with: 1, ..MODEL };
    Scene { name: "shorter topic", model, start, at_least: 10_000 }
}

/// An operator sets the group, and our loaders stop.
pub(super) fn resets_and_stops() -> Scene {
    let mut start = loaded_world(2, 1, [1, 1]);
    start.budget = Budget { resets: 1, crashes: or_deep(0, 1), ..Budget::default() };
    let model = Model { resets_to: &[0, 2], can_stop: true, ..MODEL };
    Scene { name: "resets and stops", model, start, at_least: 20_000 }
}

/// The topic is made anew, maybe while the original owns it.
pub(super) fn recreated_at_the_original() -> Scene {
    let mut start = loaded_world(2, 1, [2, 0]);
    start.original.joins = 1;
    start.loaders[1].pc = Pc::Stopped;
    start.budget = Budget { recreations: 1, ..Budget::default() };
    let model = Model { recreated_with: 2, keeps_group: false, can_stop: true, ..MODEL };
    Scene { name: "re-created at the original", model, start, at_least: 1_000 }
}

/// The database is restored, our loaders stop, the original takes over.
pub(super) fn restored_and_handed_over() -> Scene {
    let mut start = new_world(1, [2, 0]);
    start.original.joins = 1;
    start.loaders[1].pc = Pc::Stopped;
    start.budget = Budget { produced: 1, backups: 1, restores: 1, ..Budget::default() };
    Scene {
        name: "restored and handed over",
        model: Model { can_stop: true, batch: 1, ..MODEL },
        start,
        at_least: 20_000,
    }
}

/// The right to the ledger is taken away, or the ledger itself, and given back, while our loaders
/// load and stop.
pub(super) fn rights_go_and_come() -> Scene {
    let mut start = loaded_world(2, 1, [2, 1]);
    start.budget = Budget {
        takes: 1,
        gives: 1,
        crashes: 1,
        lost_in_kafka: or_deep(0, 1),
        lost_in_database: or_deep(0, 1),
        ..Budget::default()
    };
    let model = Model { can_stop: true, ledger_goes: true, ..MODEL };
    Scene { name: "rights go and come", model, start, at_least: 70_000 }
}

/// An operator sets the group while there is no right to the ledger.
pub(super) fn rights_and_resets() -> Scene {
    let mut start = loaded_world(2, 1, [1, or_deep(1, 2)]);
    start.budget = Budget { takes: 1, gives: 1, resets: 1, crashes: 1, ..Budget::default() };
    let model = Model { resets_to: &[0, 2], ..MODEL };
    Scene { name: "rights and resets", model, start, at_least: 40_000 }
}

/// There never was a right to keep a ledger; then it is given, while an event is refused.
pub(super) fn first_rights() -> Scene {
    let mut start = new_world(2, [1, 1]);
    start.is_table_broken = true;
    start.right = Right::Gone;
    start.budget = Budget {
        gives: 1,
        repairs: 1,
        crashes: 1,
        lost_in_kafka: or_deep(0, 1),
        ..Budget::default()
    };
    let model = Model { fragile: &[0], at_least_once: true, ..MODEL };
    Scene { name: "first rights", model, start, at_least: 12_000 }
}
