//! What breaks, when, and for how long: decided by the seed before anything starts, and printed, so
//! that it can be repeated. Each part has its own sequence, so two or three parts may be down at a
//! time.

use std::{fmt, ops::Range, time::Duration};

use crate::random::Random;

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
}

impl Harm {
    /// Bytes that a file may have while a disk suffers this.
    pub(crate) fn largest_file(self) -> Option<u64> {
        match self {
            Harm::Full => Some(0),
            Harm::Torn => Some(TORN_AT),
            Harm::Killed | Harm::KilledAtCommit | Harm::Frozen | Harm::Stopped => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) part: Part,
    pub(crate) harm: Harm,
    /// Since the plan began.
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { part, harm, at, lasts } = self;
        let (at, lasts) = (at.as_secs_f64(), lasts.as_secs_f64());
        write!(f, "{at:6.1} s  {part:?} {harm:?} for {lasts:.1} s")
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
/// Within the spool's files, at no boundary of its records.
const TORN_AT: u64 = 20_001;

const HABITS: [Habit; 7] = [
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

/// The faults of each part, in their order, none of which begins after `length`.
pub(crate) fn plan(seed: u64, length: Duration) -> Vec<Vec<Fault>> {
    let of_part = |(number, habit): (u64, &Habit)| {
        let mut random = Random::new(seed, number);
        let mut faults = Vec::new();
        let mut at = random.millis(habit.healthy.clone());
        while at < length {
            let harm = random.pick(habit.harms);
            let lasts = random.millis(match harm {
                Harm::Frozen | Harm::Full | Harm::Torn => habit.lasting.clone(),
                Harm::Killed | Harm::KilledAtCommit | Harm::Stopped => DOWN,
            });
            faults.push(Fault { part: habit.part, harm, at, lasts });
            at += lasts + random.millis(habit.healthy.clone());
        }
        faults
    };
    (1..).zip(&HABITS).map(of_part).collect()
}
