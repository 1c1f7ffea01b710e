//! Which of the columns that a batch brings its table cannot get.
//!
//! Looked for among the columns, by halving, in a transaction that is rolled back: one look finds
//! all of them, however many events ask for them. What keeps the table from being there at all, or is
//! a missing right, is not a column's.

use std::collections::HashMap;

use super::{
    barred::Barred,
    catalog::{Table, TableName},
    client::Connection,
    ddl::{self, NewColumn},
    error::Purpose,
    fit::{Fit, UNMAPPED},
    new_table::{ensure_schema, indexed_column},
    patience::{Patience, undo_change},
    pool::Postgres,
};
use crate::{
    error::{Fault, LoadError, ServerError},
    load::SchemaChanges,
    rows::batch::Batch,
};

/// Ends a subtransaction and leaves nothing of it.
const UNDO: &str = "rollback to savepoint columns; release savepoint columns";
/// A column that every table can get.
const PLAIN: &str = "_jitsu_probe";

/// A batch, its table, and how it was fitted to it when the change failed.
pub(super) struct Searched<'a> {
    pub(super) batch: &'a Batch,
    pub(super) name: &'a TableName,
    pub(super) fit: &'a Fit,
    pub(super) changes: SchemaChanges,
}

impl Postgres {
    /// Finds out which columns made a change of the table fail with `error`, and bars them. Errors:
    /// that one, or another one of the table, where it is none of the columns, or one that the
    /// destination's configuration asks for.
    pub(super) async fn bar_columns(
        &self,
        connection: &mut Connection,
        searched: &Searched<'_>,
        barred: &mut Barred,
        error: LoadError,
    ) -> Result<(), LoadError> {
        let Searched { batch, fit, .. } = searched;
        let mut impossible = self.impossible_columns(connection, searched).await?;
        if impossible.is_empty() {
            impossible = hints_of_key(searched, barred, &error);
        }
        if impossible.is_empty() {
            return Err(error);
        }
        let mut errors = HashMap::new();
        for (index, reason) in impossible {
            let NewColumn { name, .. } = &fit.missing[index];
            let slot = batch.columns().slot_of(name);
            let hint = slot.and_then(|slot| barred.column(batch, slot).hint());
            if hint.is_some_and(|hint| batch.is_column_type(hint)) && !batch.has_event_options {
                return Err(LoadError::Schema { table: batch.table.clone(), error: reason });
            }
            match slot {
                _ if name == UNMAPPED && hint.is_none() => barred.bar_unmapped(*reason),
                Some(slot) => drop(errors.insert(slot, *reason)),
                None => return Err(error),
            }
        }
        barred.bar(batch, &errors)?;
        Ok(())
    }

    /// The columns that the table cannot get, by their places among the missing ones.
    async fn impossible_columns(
        &self,
        connection: &mut Connection,
        searched: &Searched<'_>,
    ) -> Result<Vec<(usize, Box<ServerError>)>, LoadError> {
        let mut patience = Patience::new(self.settings().schema_patience);
        loop {
            self.begin_change(connection, searched.changes).await?;
            let found = try_columns(connection, searched).await;
            if found.as_ref().is_err_and(|error| error.server_error().is_none()) {
                return found;
            }
            undo_change(connection, searched.changes).await?;
            match found {
                Err(error) if error.is_lock_timeout() && patience.is_left() => {
                    patience.wait(&searched.name.table).await;
                }
                found => return found,
            }
        }
    }
}

async fn try_columns(
    connection: &mut Connection,
    searched: &Searched<'_>,
) -> Result<Vec<(usize, Box<ServerError>)>, LoadError> {
    let Searched { batch, name, fit, .. } = searched;
    let purpose = Purpose::Schema { table: &name.table };
    connection.run_for(&ddl::lock_table_sql(name), purpose).await?;
    // what fails without any of the columns is not theirs
    let mut key = Vec::new();
    if Table::read(connection, name).await?.is_none() {
        ensure_schema(connection, name).await?;
        connection.run_for(&format!("create table {} ()", name.quoted()), purpose).await?;
        key = batch.key_columns();
    }
    let plain = NewColumn { name: PLAIN.to_owned(), ddl_type: "text".to_owned() };
    let control = ddl::add_columns_sql(name, &[plain], &[]);
    match connection.run_for(&format!("savepoint columns; {control}; {UNDO}"), purpose).await {
        Ok(_) => {}
        // it can get none at all: it is full, or of a kind whose columns are another table's
        Err(LoadError::Schema { error, .. }) if error.fault != Fault::Environment => {
            return Ok((0..fit.missing.len()).map(|index| (index, error.clone())).collect());
        }
        Err(error) => return Err(error),
    }
    let mut found = Vec::new();
    let mut ranges: Vec<_> = std::iter::once(0..fit.missing.len()).collect();
    while let Some(range) = ranges.pop() {
        let added = ddl::add_columns_sql(name, &fit.missing[range.clone()], &key);
        let tried = format!("savepoint columns; {added}; release savepoint columns");
        let error = match connection.run_for(&tried, purpose).await {
            Ok(_) => continue,
            // a right that a type, or its schema, lacks is the column's: the table has it
            Err(error) if error.fault() == Fault::Environment && !error.is_permission_denied() => {
                return Err(error);
            }
            Err(error) => error,
        };
        connection.run(UNDO).await?;
        if range.len() > 1 {
            let middle = range.start + range.len() / 2;
            ranges.extend([middle..range.end, range.start..middle]);
            continue;
        }
        match error {
            LoadError::Schema { error, .. } => found.push((range.start, error)),
            error => return Err(error),
        }
    }
    Ok(found)
}

/// The columns of the key, and of the index, that hints give a type which no index can be over.
fn hints_of_key(
    searched: &Searched<'_>,
    barred: &Barred,
    error: &LoadError,
) -> Vec<(usize, Box<ServerError>)> {
    let Searched { batch, fit, .. } = searched;
    let LoadError::Schema { error, .. } = error else {
        return Vec::new();
    };
    let mut indexed = batch.key_columns();
    indexed.extend(indexed_column(batch, fit, false).ok().flatten());
    let is_hinted = |name: &str| {
        let slot = batch.columns().slot_of(name);
        slot.is_some_and(|slot| barred.column(batch, slot).hint().is_some())
    };
    let missing = fit.missing.iter().enumerate();
    let hinted = missing.filter(|(_, new)| indexed.contains(&new.name) && is_hinted(&new.name));
    hinted.map(|(index, _)| (index, error.clone())).collect()
}
