//! Breadth first through all worlds that can be reached, so that what is found is found by the
//! shortest way.

use std::{
    collections::{HashSet, VecDeque},
    fmt::{self, Write},
    hash::{BuildHasherDefault, Hasher},
};

use super::{
    Model, check, faults, mover,
    turn::Turn,
    world::{Loader, Right, Step, Steps, Violation, World},
};

/// What a search came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Every world that can be reached was seen.
    Clean(Seen),
    Found {
        violation: Violation,
        /// The way there, a step a line.
        trace: String,
        seen: Seen,
    },
}

/// How much a search has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) worlds: usize,
    pub(super) steps: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} worlds, {} steps", self.worlds, self.steps)
    }
}

/// By which step of which world a world was first reached.
#[derive(Clone, Copy)]
struct Way {
    from: u32,
    step: u32,
}

/// Searches from `start` until something is wrong, or everything was seen.
pub(super) fn search(model: &Model, start: World) -> Outcome {
    let mut known: HashSet<World, BuildHasherDefault<Mixer>> = HashSet::default();
    let mut ways = vec![Way { from: 0, step: 0 }];
    let mut waiting = VecDeque::from([start]);
    known.insert(start);
    let (mut from, mut taken) = (0, 0);
    let mut steps = Steps::default();
    while let Some(world) = waiting.pop_front() {
        steps_from(model, &world, &mut steps);
        if let Err(violation) = holds(model, &world, &steps) {
            let seen = Seen { worlds: known.len(), steps: taken };
            return Outcome::Found { violation, trace: trace(model, start, &ways, from), seen };
        }
        taken += steps.0.len();
        for (step, (_, next)) in (0..).zip(&steps.0) {
            if known.insert(*next) {
                ways.push(Way { from, step });
                waiting.push_back(*next);
            }
        }
        from += 1;
    }
    Outcome::Clean(Seen { worlds: known.len(), steps: taken })
}

fn holds(model: &Model, world: &World, steps: &Steps) -> Result<(), Violation> {
    check::now(model, world)?;
    if is_at_rest(world) {
        return check::in_the_end(model, world, &mut |_, _| {});
    }
    if steps.0.is_empty() { Err(Violation::Stuck) } else { Ok(()) }
}

/// Whether no loader is in the middle of a run, and none of its transactions is left.
fn is_at_rest(world: &World) -> bool {
    world.loaders.iter().all(Loader::is_resting) && world.pending.is_none()
}

/// All steps of everybody, always in the same order.
fn steps_from(model: &Model, world: &World, steps: &mut Steps) {
    steps.0.clear();
    for index in 0..world.loaders.len() {
        Turn { model, world, index, steps }.take();
    }
    mover::steps(model, world, steps);
    faults::original_steps(model, world, steps);
    faults::steps(model, world, steps);
}

/// The way from the first world to the one with this number, and on to where something is wrong,
/// with what everybody can see after each step.
fn trace(model: &Model, start: World, ways: &[Way], to: u32) -> String {
    let mut numbers = Vec::new();
    let mut at = to;
    while at != 0 {
        let Way { from, step } = ways[at as usize];
        numbers.push(step as usize);
        at = from;
    }
    let mut text = format!("{:70} {}\n", "in the beginning", Shown(&start));
    // writing to a string does not fail
    let mut show = |step: Step, world: &World| {
        let line = format!("{} {}", step.actor, step.what);
        let _ = writeln!(text, "{line:70} {}", Shown(world));
    };
    let (mut world, mut steps) = (start, Steps::default());
    for number in numbers.into_iter().rev() {
        steps_from(model, &world, &mut steps);
        let (step, next) = steps.0[number];
        show(step, &next);
        world = next;
    }
    if check::now(model, &world).is_ok() && is_at_rest(&world) {
        let from_here = Step { actor: "from here on", what: "nothing goes wrong any more" };
        show(from_here, &world);
        let _ = check::in_the_end(model, &world, &mut show);
    }
    text
}

/// What of a world is worth a line.
struct Shown<'a>(&'a World);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let World { topic, group, database, right, in_retry, mover, .. } = self.0;
        write!(f, "topic {} {}..{} group ", topic.id, topic.low, topic.end)?;
        match group {
            None => write!(f, "-")?,
            Some(group) if group.mark.is_some() => write!(f, "{} (ours)", group.offset)?,
            Some(group) => write!(f, "{}", group.offset)?,
        }
        match database.row {
            None => write!(f, " row -")?,
            Some(row) => write!(f, " row {} epoch {}", row.next, row.epoch)?,
        }
        write!(f, " table ")?;
        for (count, place) in database.table.iter().zip(&self.0.places) {
            if place.is_some() {
                write!(f, "{count}")?;
            }
        }
        if *right != Right::Kept {
            write!(f, " right {right:?}")?;
        }
        match in_retry.iter().flatten().count() {
            0 => Ok(()),
            end => write!(f, " retry topic {}..{end}", mover.committed),
        }
    }
}

/// Mixes what a world consists of, a few instructions a number; the standard one is made for input
/// of strangers.
#[derive(Default)]
struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..bytes.len()].copy_from_slice(bytes);
            self.mix(u64::from_le_bytes(number));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.mix(number.unsigned_abs() as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}
