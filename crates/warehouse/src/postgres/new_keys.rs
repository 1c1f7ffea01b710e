//! Rows that are merged by key, where all of their keys are new to the table.
//!
//! That is the rule for events with ids of their own: the merge is there for the odd repeat. Then
//! COPY straight into the table does the same as a staging table and `INSERT … ON CONFLICT`, in
//! half the time. It is tried first, in a subtransaction; the first repeat ends it, and the rows
//! are merged. A table that had one is merged into at once for the next loads, twice as many after
//! each vain try, because a vain try leaves dead rows behind.

use super::{
    client::Connection,
    pool::Postgres,
    prepared::{OneByOne, Prepared},
    selection::Selection,
    transfer,
};
use crate::error::{LoadError, ServerError};

impl Postgres {
    /// Whether a batch is to be merged, but may do without.
    pub(super) fn may_be_all_new(&self, prepared: &Prepared) -> bool {
        let Prepared { batch, name, .. } = prepared;
        let is_merged = batch.options.merges_into_table() && prepared.part() == 0;
        is_merged
            && prepared.may_be_copied()
            && prepared.one_by_one != OneByOne::Always
            && self.repeats().is_worth_a_try(name)
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

/// Whether a row may have the key of another one. Any unique violation counts: a partition's
/// constraint has another name than its table's, and the server does not always say which columns
/// it is over. Merging sorts it out.
pub(super) fn may_be_repeat(error: &ServerError) -> bool {
    error.sqlstate == "23505"
}
