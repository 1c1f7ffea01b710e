//! A load: the transaction that carries the rows of the table and the move of the offsets row.

use super::{
    retry,
    rules::Rule,
    turn::{Turn, start_over},
    world::{BATCH, Database, Effect, Known, Pc, Record, World},
};

pub(super) fn take(turn: &mut Turn<'_>) {
    match turn.me().pc {
        Pc::Lock => lock(turn),
        Pc::ProduceRefused => produce_refused(turn, Pc::Commit),
        Pc::Commit => commit(turn),
        Pc::AskRow => ask_row(turn),
        Pc::MoveRow => move_row(turn),
        _ => produce_refused(turn, Pc::ReadGroupAtEnd),
    }
}

/// Begins the transaction: the row must still be what the run knows.
fn lock(turn: &mut Turn<'_>) {
    let (me, now) = (*turn.me(), turn.world.database.row);
    if me.by_group {
        copy_batch(turn, "copies the batch");
        return;
    }
    let has_copies = me.batch.iter().any(|record| matches!(record, Some(Record::Copy(_))));
    if has_copies && me.states.is_none() && !turn.has(Rule::StatesUnderTheLock) {
        let states = turn.world.database.origins;
        turn.go("reads the states of the copies", |me| me.states = Some(states));
        return;
    }
    if turn.world.is_row_locked() {
        return;
    }
    let is_unmoved = match me.is_row_absent {
        true => now.is_none(), // there is nothing to lock
        false => turn.row().is_unmoved(now),
    };
    if !is_unmoved {
        turn.go("finds the row moved and starts over", |me| start_over(me, Pc::Members));
        return;
    }
    copy_batch(turn, "locks the row and copies the batch");
}

fn copy_batch(turn: &mut Turn<'_>, what: &'static str) {
    let effect = retry::effect(turn.model, turn.world, turn.me());
    let produces = effect.produces_refused() && turn.has(Rule::ProducedBeforeCommit);
    turn.go(what, |me| {
        (me.batch, me.batch_next, me.states) = ([None; BATCH], 0, None);
        me.effect = Some(effect);
        me.pc = if produces { Pc::ProduceRefused } else { Pc::Commit };
    });
}

fn produce_refused(turn: &mut Turn<'_>, then: Pc) {
    let mut next = *turn.world;
    if let Some(effect) = turn.me().effect {
        for copied in effect.in_retry.into_iter().flatten() {
            next.retry(copied);
        }
        for (event, _) in effect.dead.iter().enumerate().filter(|(_, is_dead)| **is_dead) {
            match effect.origins[event] {
                Some(known) => next.dead_letters[event].insert(known.refusals),
                None => next.plain_letters[event] = true,
            }
        }
    }
    let me = &mut next.loaders[turn.index];
    if then == Pc::Commit {
        me.pc = then;
    } else {
        go_on(me);
    }
    turn.push("produces refused events", next);
}

fn commit(turn: &mut Turn<'_>) {
    let Some(effect) = turn.me().effect else {
        return;
    };
    let mut next = *turn.world;
    if turn.has(Rule::RowMovesWithTheRows) {
        effect.apply(&mut next.database);
    } else {
        let row = next.database.row;
        effect.apply(&mut next.database);
        next.database.row = row;
    }
    let me = &mut next.loaders[turn.index];
    if me.by_group {
        (me.row, me.effect, me.pc) = (Some(effect.to), None, Pc::CommitPlainly);
    } else if !turn.model.rules.has(Rule::RowMovesWithTheRows) {
        me.pc = Pc::MoveRow;
    } else if effect.produces_refused() && !turn.model.rules.has(Rule::ProducedBeforeCommit) {
        me.row = Some(effect.to);
        me.pc = Pc::ProduceLate;
    } else {
        me.row = Some(effect.to);
        go_on(me);
    }
    turn.push("commits the load", next);

    if turn.world.budget.lost_in_database > 0 {
        for (what, world) in cut_off(turn.world, &effect) {
            let mut next = world;
            next.budget.lost_in_database -= 1;
            let me = &mut next.loaders[turn.index];
            if me.by_group {
                me.rest(Pc::Idle);
            } else {
                (me.effect, me.pc) = (None, Pc::AskRow);
            }
            turn.push(what, next);
        }
    }
}

/// What may become of a COMMIT whose answer is lost.
pub(super) fn cut_off(world: &World, effect: &Effect) -> [(&'static str, World); 3] {
    let mut committed = *world;
    effect.apply(&mut committed.database);
    [
        ("loses its connection; the load was committed", committed),
        ("loses its connection; the load was rolled back", *world),
        (
            "loses its connection; the server has not noticed",
            World { pending: Some(effect.without_parcels()), ..*world },
        ),
    ]
}

/// Waits for the end of the old transaction, then begins anew whatever the row says.
fn ask_row(turn: &mut Turn<'_>) {
    if !turn.world.is_row_locked() {
        turn.go("asks the row how its COMMIT went, and starts over", |me| {
            start_over(me, Pc::Members);
        });
    }
}

/// Without the rule that the row moves with the rows: its own transaction.
fn move_row(turn: &mut Turn<'_>) {
    if turn.world.is_row_locked() {
        return;
    }
    let (from, effect) = (turn.row(), turn.me().effect);
    let is_unmoved = from.is_unmoved(turn.world.database.row);
    let Some(effect) = effect.filter(|_| is_unmoved) else {
        turn.go("finds the row moved and starts over", |me| start_over(me, Pc::Members));
        return;
    };
    let mut next = *turn.world;
    next.database.row = Some(effect.to);
    let me = &mut next.loaders[turn.index];
    me.row = Some(effect.to);
    go_on(me);
    turn.push("moves the row after the load", next);
}

/// After a batch: the next one, or the end of the run.
fn go_on(me: &mut super::world::Loader) {
    (me.effect, me.is_row_absent) = (None, false);
    let is_at_end = me.row.is_none_or(|row| row.next >= me.end);
    me.pc = if is_at_end { Pc::ReadGroupAtEnd } else { Pc::Read };
}

impl Effect {
    fn produces_refused(&self) -> bool {
        self.in_retry.iter().any(Option::is_some) || self.dead.contains(&true)
    }

    fn without_parcels(self) -> Effect {
        Effect { in_retry: [None; 2], dead: [false; super::world::EVENTS], ..self }
    }

    pub(super) fn apply(&self, database: &mut Database) {
        if self.moves_row {
            database.row = Some(self.to);
        }
        for (count, added) in database.table.iter_mut().zip(self.rows) {
            *count += added;
        }
        for (state, written) in database.origins.iter_mut().zip(self.origins) {
            *state = match (*state, written) {
                (Some(known), Some(written)) => {
                    let refusals = known.refusals.max(written.refusals);
                    Some(Known { refusals, ..written })
                }
                (known, written) => written.or(known),
            };
        }
    }
}
