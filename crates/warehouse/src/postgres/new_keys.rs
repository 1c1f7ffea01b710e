//! Rows that are merged by key, where all of their keys are new to the table.
//!
//! That is the rule for events with ids of their own: the merge is there for the odd repeat. Then COPY straight into the
//! table does the same as a staging table and `INSERT … ON CONFLICT`, in half the time. It is tried first, in a
//! subtransaction; the first repeat ends it, and the rows are merged. A table that had one is merged into at once for
//! the next loads, twice as many after each vain try, because a vain try leaves dead rows behind.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{
    client::{Connection, Postgres},
    error::{LoadError, ServerError},
    prepare::Prepared,
    table::TableName,
    transfer::{self, Selection},
};

const FIRST_PAUSE: u32 = 1;
const MAX_PAUSE: u32 = 1024;

/// Tables that had repeats.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<TableName, Pause>>);

#[derive(Default)]
struct Pause {
    /// Loads that are merged without a try.
    left: u32,
    /// How many those were after the last vain try.
    last: u32,
}

impl Repeats {
    /// Whether it is worth trying that all keys are new.
    fn is_worth_a_try(&self, table: &TableName) -> bool {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.get(table).is_none_or(|pause| pause.left == 0)
    }

    /// Rows were merged without a try.
    fn merged(&self, table: &TableName) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pause) = tables.get_mut(table) {
            pause.left = pause.left.saturating_sub(1);
        }
    }

    fn tried(&self, table: &TableName, all_were_new: bool) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all_were_new {
            tables.remove(table);
            return;
        }
        let pause = tables.entry(table.clone()).or_default();
        pause.last = (pause.last * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        pause.left = pause.last;
    }
}

impl Postgres {
    /// Whether a batch is to be merged, but may do without.
    pub(super) fn may_be_all_new(&self, prepared: &Prepared) -> bool {
        let Prepared { batch, name, fit, .. } = prepared;
        let is_merged = batch.options.merges_into_table() && prepared.part() == 0;
        is_merged && !fit.needs_cast() && self.repeats().is_worth_a_try(name)
    }

    /// Sends rows, as [`transfer::send`] does, without merging them where nothing is to be merged.
    pub(super) async fn send_new_or_merge(
        &self,
        connection: &mut Connection,
        prepared: &Prepared,
        rows: &Selection,
    ) -> Result<u64, LoadError> {
        let name = &prepared.name;
        if !self.may_be_all_new(prepared) {
            self.repeats().merged(name);
            return transfer::send(connection, prepared, rows).await;
        }
        connection.run("savepoint new_keys").await?;
        match transfer::copy(connection, &name.quoted(), prepared, rows).await {
            Ok(loaded) => {
                connection.run("release savepoint new_keys").await?;
                self.repeats().tried(name, true);
                Ok(loaded)
            }
            Err(LoadError::Refused { error, .. }) if may_be_repeat(&error) => {
                let undo = "rollback to savepoint new_keys; release savepoint new_keys";
                connection.run(undo).await?;
                self.repeats().tried(name, false);
                transfer::send(connection, prepared, rows).await
            }
            Err(error) => Err(error), // merging would meet it too
        }
    }
}

/// Whether a row may have the key of another one. Any unique violation counts: a partition's constraint has another name
/// than its table's, and the server does not always say which columns it is over. Merging sorts it out.
pub(super) fn may_be_repeat(error: &ServerError) -> bool {
    error.sqlstate == "23505"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many loads are merged before the next try.
    fn merges(repeats: &Repeats, table: &TableName) -> usize {
        let mut count = 0;
        while !repeats.is_worth_a_try(table) {
            repeats.merged(table);
            count += 1;
        }
        count
    }

    #[test]
    fn after_a_repeat_more_and_more_loads_are_merged_at_once() {
        let table = TableName { schema: "s".to_owned(), table: "t".to_owned() };
        let repeats = Repeats::default();
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024] {
            assert!(repeats.is_worth_a_try(&table));
            repeats.tried(&table, false);
            assert_eq!(merges(&repeats, &table), expected);
        }
        repeats.tried(&table, true);
        repeats.tried(&table, false);
        assert_eq!(merges(&repeats, &table), 1, "a load of new keys starts over");
    }
}
