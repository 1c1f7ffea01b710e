//! A clean stop: Kafka is brought to the row, so that the original can take over.

use super::{
    kafka,
    kafka::Answer,
    rights::{self, Opened},
    rules::Rule,
    turn::{Turn, start_over},
    world::{Committed, Loader, Pc, SmallMark, is_unmarked},
};

pub(super) fn begin(turn: &mut Turn<'_>) {
    if turn.world.late.is_some() && turn.has(Rule::LateCommitsEndBeforeAStop) {
        return;
    }
    if turn.has(Rule::StopCommitsEveryTopic) || turn.me().claimed {
        turn.go("begins to stop", |me| me.pc = Pc::StopReadRow);
    } else {
        turn.go("stops; it never claimed the topic", |me| me.rest(Pc::Stopped));
    }
}

pub(super) fn take(turn: &mut Turn<'_>) {
    match turn.me().pc {
        Pc::StopReadRow => read_row(turn),
        Pc::StopMembers => look_for_members(turn),
        Pc::StopReadGroup => read_group(turn),
        _ => commit(turn),
    }
}

fn read_row(turn: &mut Turn<'_>) {
    let opened = rights::open(turn);
    if opened != Opened::Ledger {
        rights::stop_without(turn, opened);
        return;
    }
    if turn.world.is_row_locked() && turn.has(Rule::StopReadsTheSettledRow) {
        return;
    }
    let database = turn.world.database;
    if database.row.is_none() && !turn.has(Rule::StopUndoesAMarkWithoutARow) {
        turn.go("sees no row and stops", |me| me.rest(Pc::Stopped));
        return;
    }
    turn.go("reads the row before it stops", |me| {
        (me.row, me.ledger) = (database.row, database.ledger);
        me.pc = Pc::StopMembers;
    });
}

fn look_for_members(turn: &mut Turn<'_>) {
    if turn.world.original.is_live {
        turn.go("sees live members and stops", |me| me.rest(Pc::Stopped));
    } else {
        turn.go("sees no live members before it stops", |me| me.pc = Pc::StopReadGroup);
    }
}

fn read_group(turn: &mut Turn<'_>) {
    let (me, group) = (*turn.me(), turn.world.group);
    let agrees = wanted(&me, group).is_none_or(|mark| group == Some(mark.committed()));
    if is_unmarked(group) && turn.has(Rule::DecisionsAreLeftAlone) {
        turn.go("leaves a decision in the group alone and stops", |me| me.rest(Pc::Stopped));
    } else if agrees {
        turn.go("sees that the group agrees and stops", |me| me.rest(Pc::Stopped));
    } else {
        turn.go("sees that the group disagrees", |me| {
            me.group = group;
            me.pc = Pc::StopCommit;
        });
    }
}

/// What the group should say: the row, or where it began if it is gone and the group still speaks
/// of it.
fn wanted(me: &Loader, group: Option<Committed>) -> Option<SmallMark> {
    if let Some(row) = me.row {
        return Some(row.mark(me.ledger));
    }
    let mark = group?.mark.filter(|mark| mark.ledger == me.ledger)?;
    Some(SmallMark { offset: mark.began, ..mark })
}

fn commit(turn: &mut Turn<'_>) {
    let (me, index) = (*turn.me(), turn.index);
    let Some(mark) = wanted(&me, me.group) else {
        return;
    };
    let repeats = turn.has(Rule::StopRepeats);
    let names = (turn.name(), "commits to the group before it stops");
    let steps = &mut *turn.steps;
    kafka::commit(turn.world, names, mark.committed(), |step, mut next, answer| {
        let me = &mut next.loaders[index];
        match answer {
            Answer::Acknowledged if repeats => start_over(me, Pc::StopReadRow),
            Answer::Acknowledged => me.rest(Pc::Stopped),
            // a stop that failed is not a clean one
            Answer::Refused | Answer::Unknown => me.rest(Pc::Idle),
        }
        steps.0.push((step, next));
    });
}
