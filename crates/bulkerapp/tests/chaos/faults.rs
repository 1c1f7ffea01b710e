//! What breaks, when, and for how long: decided by the seed before anything starts, and printed, so
//! that it can be repeated. Each part has its own sequence, so two or three parts may be down at a
//! time.
//!
//! Not all faults are a part's: a customer changes tables, rights come and go, the topic by which
//! instances share their work is deleted, and clocks step.

use std::{fmt, ops::Range, time::Duration};

use crate::{
    customer::{self, Deed},
    random::Random,
};

/// What can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    FirstInstance,
    SecondInstance,
    Kafka,
    Postgres,
    Redis,
    /// Of the first instance's spool.
    FirstDisk,
    SecondDisk,
    /// A table, by whoever owns it.
    Table,
    /// What the loader's role may do.
    Rights,
    /// The topic by which the instances share the others.
    Shares,
    /// Of the first instance.
    FirstClock,
    SecondClock,
}

/// How it breaks. Afterwards it is started or continued, on the same port and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// `kill -9`.
    Killed,
    /// `kill -9` of an instance when its next load has committed and it does not know yet: random
    /// kills hardly ever hit this moment, in which a weaker protocol doubles.
    KilledAtCommit,
    /// SIGSTOP: connections stay, nothing answers.
    Frozen,
    /// Asked to end, as at a restart.
    Stopped,
    /// A disk takes nothing.
    Full,
    /// A disk takes the beginning of each file, so that writes end in the middle of an event.
    Torn,
    /// Somebody does this in the database.
    Done(Deed),
    /// A topic goes, with all that is in it.
    Deleted,
    /// A clock is set hours ahead or behind, and stays there.
    Stepped,
}

impl Harm {
    /// Bytes that a file may have while a disk suffers this.
    pub(crate) fn largest_file(self) -> Option<u64> {
        match self {
            Harm::Full => Some(0),
            Harm::Torn => Some(TORN_AT),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) part: Part,
    pub(crate) harm: Harm,
    /// Since the plan began.
    pub(crate) at: Duration,
    /// How long its part is well before.
    pub(crate) healthy: Duration,
    pub(crate) lasts: Duration,
    /// Decides what else there is to decide: which table, how many hours.
    pub(crate) chance: u64,
}

impl Fault {
    /// Seconds that a clock is ahead from now on: up to twenty hours either way, or none.
    pub(crate) fn clock_ahead(&self) -> i64 {
        let hours = (self.chance % 41).cast_signed() - 20;
        hours * 3600
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { part, harm, at, lasts, chance, .. } = self;
        let (at, lasts) = (at.as_secs_f64(), lasts.as_secs_f64());
        write!(f, "{at:6.1} s  {part:?} ")?;
        match harm {
            Harm::Done(deed) => customer::tell(*deed, *chance, lasts, f),
            Harm::Deleted => write!(f, "Deleted"),
            Harm::Stepped => write!(f, "Stepped to {} h ahead", self.clock_ahead() / 3600),
            _ => write!(f, "{harm:?} for {lasts:.1} s"),
        }
    }
}

/// How often a part breaks.
struct Habit {
    part: Part,
    harms: &'static [Harm],
    /// Milliseconds of health between two faults.
    healthy: Range<u64>,
    /// Milliseconds that it is frozen, or full. Instances: longer than the session that the others
    /// grant them, sometimes.
    lasting: Range<u64>,
}

/// Milliseconds that a part stays down.
const DOWN: Range<u64> = 0..4_000;
/// Done in a moment.
const NOT_LASTING: Range<u64> = 0..1;
/// Within the spool's files, at no boundary of its records.
const TORN_AT: u64 = 20_001;

const HABITS: [Habit; 12] = [
    instance(Part::FirstInstance),
    instance(Part::SecondInstance),
    Habit {
        part: Part::Kafka,
        harms: &[Harm::Killed, Harm::Frozen, Harm::Stopped],
        healthy: 10_000..22_000,
        lasting: 1_000..9_000,
    },
    Habit {
        part: Part::Postgres,
        harms: &[Harm::Killed, Harm::Frozen, Harm::Stopped, Harm::Stopped],
        healthy: 6_000..18_000,
        lasting: 1_000..8_000,
    },
    Habit {
        part: Part::Redis,
        harms: &[Harm::Killed, Harm::Frozen, Harm::Stopped],
        healthy: 5_000..15_000,
        lasting: 1_000..8_000,
    },
    disk(Part::FirstDisk),
    disk(Part::SecondDisk),
    Habit {
        part: Part::Table,
        harms: &[
            Harm::Done(Deed::Retype),
            Harm::Done(Deed::Retype),
            Harm::Done(Deed::Rename),
            Harm::Done(Deed::Rename),
            Harm::Done(Deed::Replace),
            Harm::Done(Deed::Replace),
            Harm::Done(Deed::Compute),
            Harm::Done(Deed::Drop),
            Harm::Done(Deed::DropKey),
            Harm::Done(Deed::DropKey),
            Harm::Done(Deed::Lock),
        ],
        healthy: 500..3_000,
        lasting: 2_000..7_000,
    },
    Habit {
        part: Part::Rights,
        harms: &[
            Harm::Done(Deed::DenyOffsets),
            Harm::Done(Deed::DenyOrigins),
            Harm::Done(Deed::DenyTable),
        ],
        healthy: 4_000..14_000,
        lasting: 1_000..6_000,
    },
    Habit {
        part: Part::Shares,
        harms: &[Harm::Deleted],
        healthy: 8_000..25_000,
        lasting: NOT_LASTING,
    },
    clock(Part::FirstClock),
    clock(Part::SecondClock),
];

const fn instance(part: Part) -> Habit {
    Habit {
        part,
        harms: &[
            Harm::Killed,
            Harm::KilledAtCommit,
            Harm::KilledAtCommit,
            Harm::Frozen,
            Harm::Stopped,
        ],
        healthy: 4_000..12_000,
        lasting: 1_000..14_000,
    }
}

/// Full for long, since it matters only while Kafka is away as well.
const fn disk(part: Part) -> Habit {
    Habit { part, harms: &[Harm::Full, Harm::Torn], healthy: 3_000..12_000, lasting: 3_000..15_000 }
}

const fn clock(part: Part) -> Habit {
    Habit { part, harms: &[Harm::Stepped], healthy: 5_000..16_000, lasting: NOT_LASTING }
}

/// The faults of each part, in their order, none of which begins after `length`.
pub(crate) fn plan(seed: u64, length: Duration) -> Vec<Vec<Fault>> {
    let of_part = |(number, habit): (u64, &Habit)| {
        let mut random = Random::new(seed, number);
        let mut faults = Vec::new();
        let mut healthy = random.millis(habit.healthy.clone());
        let mut at = healthy;
        while at < length {
            let harm = random.pick(habit.harms);
            let lasts = random.millis(match harm {
                Harm::Killed | Harm::KilledAtCommit | Harm::Stopped => DOWN,
                _ => habit.lasting.clone(),
            });
            let chance = random.next();
            faults.push(Fault { part: habit.part, harm, at, healthy, lasts, chance });
            healthy = random.millis(habit.healthy.clone());
            at += lasts + healthy;
        }
        faults
    };
    (1..).zip(&HABITS).map(of_part).collect()
}
