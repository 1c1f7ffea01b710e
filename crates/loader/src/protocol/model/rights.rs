//! A destination whose user has no right to the ledger: there never was one, or it is lost.
//!
//! Without a ledger the group's offset is the position, and nothing is judged: every copy loads, and
//! what lies between a load and its commit may be loaded again.

use super::{
    super::{
        mark::GroupOffset,
        start::{HoldReason, decide_by_group},
    },
    Model, kafka,
    kafka::Answer,
    rules::Rule,
    turn::Turn,
    world::{Committed, Pc, Right, Row, Steps, Violation, World, group_of},
};

/// What a look for the ledger comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    Ledger,
    /// There never was a right to make one, as far as this process can know.
    Nothing,
    Lost,
}

pub(super) fn open(turn: &Turn<'_>) -> Opened {
    let is_lost = match turn.world.right {
        Right::Kept => return Opened::Ledger,
        Right::Denied => true, // it is there
        Right::Gone => turn.me().knows_ledger,
    };
    if is_lost && turn.has(Rule::LostRightsHold) { Opened::Lost } else { Opened::Nothing }
}

/// Begins a run without a ledger, or none.
pub(super) fn begin_without(turn: &mut Turn<'_>, opened: Opened) {
    if opened == Opened::Nothing {
        turn.go("may keep no ledger", |me| (me.by_group, me.pc) = (true, Pc::ReadGroup));
    } else {
        turn.go("has lost the right to the ledger and holds", |me| me.rest(Pc::Idle));
    }
}

/// Whether the step that this loader takes next is refused to it.
pub(super) fn is_denied(turn: &Turn<'_>) -> bool {
    let needs_it = matches!(
        turn.me().pc,
        Pc::Settle | Pc::StepOverGap | Pc::Lock | Pc::Commit | Pc::AskRow | Pc::MoveRow
    );
    needs_it && turn.world.right != Right::Kept && !turn.me().by_group
}

pub(super) fn take(turn: &mut Turn<'_>) {
    match turn.me().pc {
        Pc::ReadGroup => {
            let group = turn.world.group;
            turn.go("reads the group", |me| (me.group, me.pc) = (group, Pc::ReadEnds));
        }
        Pc::ReadEnds => decide(turn),
        _ => commit_plainly(turn),
    }
}

fn decide(turn: &mut Turn<'_>) {
    let topic = turn.world.topic;
    match decide_by_group(&group(turn), i64::from(topic.low), i64::from(topic.end)) {
        Ok(from) if from < i64::from(topic.end) => {
            let next = u8::try_from(from).expect("offsets of the model are small");
            turn.go("reads where the topic ends", |me| {
                me.row = Some(Row { next, epoch: 0, began: 0, topic_id: topic.id });
                (me.group, me.end, me.pc) = (None, topic.end, Pc::Read);
            });
        }
        Ok(_) => turn.go("has nothing to load", |me| me.rest(Pc::Idle)),
        Err(HoldReason::Truncated) => {
            let mut next = *turn.world;
            next.expected.broken = Some(Violation::HeldForNothing); // no world has truncations
            turn.push("holds for a truncation", next);
        }
        Err(_) => turn.go("sees a mark, so a ledger is lost, and holds", |me| me.rest(Pc::Idle)),
    }
}

/// What the group says, as this loader has read it.
fn group(turn: &Turn<'_>) -> GroupOffset {
    match group_of(turn.me().group) {
        GroupOffset::Marked(mark) if !turn.has(Rule::MarksNeedALedger) => {
            GroupOffset::Unmarked(mark.offset)
        }
        group => group,
    }
}

fn commit_plainly(turn: &mut Turn<'_>) {
    let (position, index) = (turn.row(), turn.index);
    let names = (turn.name(), "commits to the group, without a mark");
    let committed = Committed { offset: position.next, mark: None };
    let steps = &mut *turn.steps;
    kafka::commit(turn.world, names, committed, |step, mut next, answer| {
        let me = &mut next.loaders[index];
        if answer == Answer::Acknowledged && position.next < me.end {
            me.pc = Pc::Read;
        } else {
            me.rest(Pc::Idle);
        }
        steps.0.push((step, next));
    });
}

/// Without a ledger a clean stop has nothing to tell Kafka; where there was one it fails.
pub(super) fn stop_without(turn: &mut Turn<'_>, opened: Opened) {
    let is_marked = matches!(group_of(turn.world.group), GroupOffset::Marked(_));
    if opened == Opened::Lost || is_marked && turn.has(Rule::MarksNeedALedger) {
        turn.go("has lost the ledger, so its stop is no clean one", |me| me.rest(Pc::Idle));
    } else {
        turn.go("keeps no ledger and stops", |me| me.rest(Pc::Stopped));
    }
}

/// An operator, or whoever else owns the database, takes the right away and gives it.
pub(super) fn steps(model: &Model, world: &World, steps: &mut Steps) {
    if world.budget.takes > 0 && world.right == Right::Kept {
        let mut next = *world;
        next.budget.takes -= 1;
        next.right = Right::Denied;
        steps.push("operator", "takes the right to the ledger away", next);
        if model.ledger_goes && !world.is_row_locked() {
            next.right = Right::Gone;
            steps.push("operator", "puts the ledger away, and the right to make one", next);
        }
    }
    if world.budget.gives > 0 && world.right != Right::Kept {
        let mut next = *world;
        next.budget.gives -= 1;
        next.right = Right::Kept;
        steps.push("operator", "gives the right to the ledger", next);
    }
}
