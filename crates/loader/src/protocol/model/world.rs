//! The state of a small world: one topic, its group, a database with a backup, a retry topic with
//! its mover, two loaders, the original; and what an onlooker expects of it.

pub(super) use super::values::{
    BATCH, Committed, Copied, Database, EVENTS, Effect, Known, PLACES, RETRIED, Record, Right, Row,
    SmallMark, SmallSet, Topic, group_of, is_unmarked, uuid,
};

/// Where a loader stands: the name is that of the step it takes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pc {
    /// Between runs.
    Idle,
    /// Stopped cleanly: group and row agree, or an operator decided on the group's offset.
    Stopped,
    Members,
    /// The n-th of the facts that say where to start.
    Fact(u8),
    Settle,
    StepOverGap,
    Claim,
    Read,
    CheckTopicId,
    ReadGroupAgain,
    ClaimAgain,
    Lock,
    ProduceRefused,
    Commit,
    AskRow,
    /// Only without `RowMovesWithTheRows`: the row's own transaction.
    MoveRow,
    /// Only without `ProducedBeforeCommit`.
    ProduceLate,
    ReadGroupAtEnd,
    CommitAtEnd,
    /// Without a ledger: the group says where to start.
    ReadGroup,
    ReadEnds,
    CommitPlainly,
    StopReadRow,
    StopMembers,
    StopReadGroup,
    StopCommit,
}

/// One of the two loaders: where it stands and what it remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Loader {
    pub(super) pc: Pc,
    /// Kafka acknowledged a start since this process owns the topic.
    pub(super) claimed: bool,
    /// This process had a ledger. Noted only where it may be taken away.
    pub(super) knows_ledger: bool,
    /// This run has no ledger: the group's offset is the position, and `row` a copy of it.
    pub(super) by_group: bool,
    /// Runs that it may still begin.
    pub(super) runs: u8,
    /// Times that this run, or this stop, started over.
    pub(super) starts: u8,
    pub(super) ledger: u8,
    pub(super) row: Option<Row>,
    /// Only without `LoadNeverInserts`: `row` is not in the database yet.
    pub(super) is_row_absent: bool,
    pub(super) group: Option<Committed>,
    pub(super) earlier_id: u8,
    pub(super) topic_id: u8,
    pub(super) low: u8,
    pub(super) end: u8,
    pub(super) batch: [Option<Record>; BATCH],
    pub(super) batch_next: u8,
    /// Only without `StatesUnderTheLock`: the states of the batch's copies.
    pub(super) states: Option<[Option<Known>; EVENTS]>,
    pub(super) effect: Option<Effect>,
}

impl Loader {
    pub(super) const fn idle(runs: u8) -> Loader {
        Loader {
            pc: Pc::Idle,
            claimed: false,
            knows_ledger: false,
            by_group: false,
            runs,
            starts: 0,
            ledger: 0,
            row: None,
            is_row_absent: false,
            group: None,
            earlier_id: 0,
            topic_id: 0,
            low: 0,
            end: 0,
            batch: [None; BATCH],
            batch_next: 0,
            states: None,
            effect: None,
        }
    }

    /// Forgets what it knew, as at the end of a run; equal states meet again that way.
    pub(super) fn rest(&mut self, pc: Pc) {
        let Loader { claimed, knows_ledger, starts, runs, .. } = *self;
        *self = Loader { pc, claimed, knows_ledger, ..Loader::idle(runs) };
        if !matches!(pc, Pc::Idle | Pc::Stopped) {
            self.starts = starts;
        }
    }

    pub(super) fn is_resting(&self) -> bool {
        matches!(self.pc, Pc::Idle | Pc::Stopped)
    }

    /// Whether its open transaction holds the lock on the offsets row.
    pub(super) fn locks_row(&self) -> bool {
        matches!(self.pc, Pc::ProduceRefused | Pc::Commit) && !self.is_row_absent && !self.by_group
    }

    /// Whether a restore of the database ends what it is doing.
    pub(super) fn is_in_transaction(&self) -> bool {
        matches!(self.pc, Pc::ProduceRefused | Pc::Commit | Pc::AskRow)
    }
}

/// The original: a plain consumer group that commits without a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Original {
    pub(super) is_live: bool,
    pub(super) position: u8,
    /// Times that it may still join.
    pub(super) joins: u8,
}

/// The mover of the retry topic: what Kafka has of it, and what its process knows beyond that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Mover {
    pub(super) committed: u8,
    pub(super) next: u8,
    pub(super) waiting: SmallSet,
    pub(super) unnoted: SmallSet,
    pub(super) last_moved: Option<u8>,
    /// Of the chunk that it has read, what it has not tried yet.
    pub(super) in_hand: SmallSet,
    /// Only without `LetterBeforeItsState`: states say `dead`, and there is no letter yet.
    pub(super) unlettered: SmallSet,
    pub(super) is_stopping: bool,
}

/// What may still go wrong or be decided; each time takes one away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// Events that may still be produced.
    pub(super) produced: u8,
    pub(super) crashes: u8,
    /// Commits to the group that are lost, or whose answer is, or that arrive late.
    pub(super) lost_in_kafka: u8,
    /// Answers to COMMIT that are lost.
    pub(super) lost_in_database: u8,
    pub(super) resets: u8,
    pub(super) backups: u8,
    pub(super) restores: u8,
    pub(super) recreations: u8,
    pub(super) early_ends: u8,
    pub(super) cuts: u8,
    /// Times that the table is repaired or broken.
    pub(super) repairs: u8,
    /// Times that the right to the ledger is taken away.
    pub(super) takes: u8,
    /// Times that it is given.
    pub(super) gives: u8,
    pub(super) mover_kills: u8,
    /// Clean stops of the mover.
    pub(super) mover_stops: u8,
    /// Moves that fail: Kafka does not take the copy at the moment.
    pub(super) failed_moves: u8,
    /// Copies that their topic will never take back.
    pub(super) unreturnable: u8,
}

/// What an onlooker who sees everything expects of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Expected {
    /// How often each event must be in the table in the end.
    pub(super) least: [u8; EVENTS],
    /// How often it may be there at any time.
    pub(super) most: [u8; EVENTS],
    /// A run held for a truncation, or a stop disagreed; there was no reason.
    pub(super) broken: Option<Violation>,
}

/// What a search may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Violation {
    /// An event is more often in the table than it should be.
    Doubled,
    /// Everybody has finished and an event that should be in the table is not.
    Lost,
    /// Of the events that an operator's reset is about, a later one was loaded more often than an
    /// earlier one.
    HalfApplied,
    /// A dead letter that counts, of an event that is in the table.
    DeadAndLoaded,
    /// A run holds for a truncation that never was.
    HeldForNothing,
    /// After a clean stop the group is not where the row is.
    GroupBehind,
    /// No actor can take a step although one is in the middle of one, or runs end without an end.
    Stuck,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) topic: Topic,
    /// Incarnation and offset of each event.
    pub(super) places: [Option<(u8, u8)>; EVENTS],
    pub(super) group: Option<Committed>,
    /// A commit whose sender has given up on it, still under way.
    pub(super) late: Option<Committed>,
    pub(super) in_retry: [Option<Copied>; RETRIED],
    pub(super) mover: Mover,
    /// Of each event, the attempts after which a dead letter was written.
    pub(super) dead_letters: [SmallSet; EVENTS],
    /// Dead letters that were written without a ledger: they count whatever it says.
    pub(super) plain_letters: [bool; EVENTS],
    pub(super) database: Database,
    pub(super) right: Right,
    /// The first epoch that no row has had yet: in real life the time of day.
    pub(super) fresh_epoch: u8,
    pub(super) backup: Option<Database>,
    /// A transaction whose client is gone, with COMMIT sent or not: it holds the row until it ends.
    pub(super) pending: Option<Effect>,
    /// The table refuses the events that can be refused.
    pub(super) is_table_broken: bool,
    pub(super) loaders: [Loader; 2],
    pub(super) original: Original,
    pub(super) budget: Budget,
    pub(super) expected: Expected,
}

impl World {
    /// Whether the row is locked by a transaction.
    pub(super) fn is_row_locked(&self) -> bool {
        self.pending.is_some_and(|pending| pending.moves_row)
            || self.loaders.iter().any(Loader::locks_row)
    }

    /// Whether nothing is under way: what an operator does now is between two runs.
    pub(super) fn is_quiet(&self) -> bool {
        self.loaders.iter().all(Loader::is_resting)
            && self.late.is_none()
            && self.pending.is_none()
            && !self.original.is_live
    }

    /// Appends the next event to the topic.
    pub(super) fn produce(&mut self) {
        if let Some(event) = self.places.iter().position(Option::is_none) {
            self.places[event] = Some((self.topic.id, self.topic.end));
            self.topic.push(Record::Event(u8::try_from(event).unwrap_or_default()));
            self.expected.least[event] = 1;
            self.expected.most[event] = 1;
        }
    }

    pub(super) fn retry(&mut self, copied: Copied) {
        let free = self.in_retry.iter_mut().find(|place| place.is_none());
        *free.expect("the world has room for all copies") = Some(copied);
    }
}

/// A step that an actor may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) actor: &'static str,
    pub(super) what: &'static str,
}

/// All steps that may be taken next, each with the world after it.
#[derive(Default)]
pub(super) struct Steps(pub(super) Vec<(Step, World)>);

impl Steps {
    pub(super) fn push(&mut self, actor: &'static str, what: &'static str, world: World) {
        self.0.push((Step { actor, what }, world));
    }
}
