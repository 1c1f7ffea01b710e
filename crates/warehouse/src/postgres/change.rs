//! Before rows are sent: the batch is fitted to its table, and the table is given what it lacks.
//!
//! Invariant: a loader changes a table only under the table's advisory lock, after looking at it
//! again, and waits no longer than `schema_lock_timeout` for another session's lock, because all
//! later statements on the table queue behind a waiting ALTER. What cannot be had in that time is
//! tried again later, up to `schema_patience`.

use std::{collections::HashSet, sync::Arc};

use tracing::warn;

use super::{
    barred::Barred,
    catalog::{Filled, Table, TableName, Way},
    client::Connection,
    column_search::Searched,
    ddl::{self, KeyChange},
    error::Purpose,
    fit::{Against, Fit, Free},
    in_the_way,
    new_table::{ensure_schema, indexed_column},
    patience::{Patience, undo_change},
    pool::Postgres,
    prepared::{OneByOne, Prepared},
};
use crate::{
    error::{Fault, LoadError},
    load::SchemaChanges,
    rows::{
        batch::{Batch, Replaces},
        convert::TextStyle,
        row::Cell,
    },
};

/// How often a table may change under us while we fit a batch to it.
const MAX_FITS: usize = 5;

/// How a batch is fitted, besides by its options.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) changes: SchemaChanges,
    pub(super) style: TextStyle,
    /// Whether the rows are those of single events. The first one makes the table with all its
    /// columns.
    pub(super) is_by_event: bool,
    /// Whether the original is followed to the letter, also where that refuses what could be
    /// loaded.
    pub(super) is_literal: bool,
    /// Whether a column that cannot be made costs the events that ask for it, and not the batch.
    pub(super) isolates: bool,
}

impl Postgres {
    /// Fits a batch to its table and changes the table where it lacks something. The batch is
    /// fitted to the table as it is afterwards, whichever loader changed it. `known` is the table
    /// as the caller believes it to be; `barred` is what is known of columns that cannot be made.
    ///
    /// After an error of the server's no change is under way.
    pub(super) async fn prepare(
        &self,
        connection: &mut Connection,
        batch: Arc<Batch>,
        rules: Rules,
        mut known: Option<Table>,
        barred: &mut Barred,
    ) -> Result<Prepared, LoadError> {
        let name = target(&batch, self.default_schema());
        let key = batch.key_columns();
        let mut made = HashSet::new();
        let mut is_new = false;
        let replaces_all = batch.replaces == Replaces::Table;
        let mut fits = 0;
        while fits < MAX_FITS {
            fits += 1;
            let table = match known.take() {
                Some(known) => Some(known),
                None => Table::read(connection, &name).await?,
            };
            if table.is_none() {
                in_the_way::check(connection, &name).await?;
            }
            if batch.replaces == Replaces::Partition {
                check_partition(&batch, &name, table.as_ref())?;
            }
            let fit = fit(&batch, table.as_ref(), &made, barred, rules)?;
            let mut scratch = String::new();
            let has_place = |row: usize, cell: &Cell<'_>| {
                scratch.clear();
                fit.stored(row, cell, &mut scratch).is_some()
            };
            if barred.refuse_unmapped(&batch, has_place)? {
                continue;
            }
            let absent_key = absent_key(&name, table.as_ref(), &fit, &key, rules);
            let is_complete = match &table {
                _ if absent_key.is_some() => true,
                // what it lacks is added once the new rows are there
                Some(_) if replaces_all => true,
                Some(table) => {
                    fit.missing.is_empty()
                        && ddl::key_change(&name, table.key.as_ref(), &key) == KeyChange::Nothing
                }
                None => fit.columns.is_empty(),
            };
            if is_complete {
                self.report_limit(&name, &fit);
                let fit = Arc::new(fit);
                let one_by_one = one_by_one(&batch, table.as_ref(), &fit, rules)?;
                let (is_literal, is_by_event) = (rules.is_literal, rules.is_by_event);
                return Ok(Prepared {
                    batch,
                    name,
                    fit,
                    table,
                    is_new,
                    absent_key,
                    refused: barred.refused().clone(),
                    is_by_event,
                    one_by_one,
                    is_literal,
                });
            }
            match self.change(connection, &batch, &name, (&made, barred), rules).await {
                Ok(added) => made.extend(added),
                Err(error) if rules.isolates && may_be_a_columns(&error) => {
                    let (batch, changes) = (&batch, rules.changes);
                    let searched = Searched { batch, name: &name, fit: &fit, changes };
                    self.bar_columns(connection, &searched, barred, error).await?;
                    fits = 0; // each search leaves fewer columns to be made
                    continue;
                }
                Err(error) => return Err(error),
            }
            is_new |= table.is_none();
            if !rules.is_literal {
                self.ensure_key(connection, &name, &key).await?;
            }
        }
        Err(LoadError::config(format!(
            "table {} changes faster than a batch can be fitted to it",
            name.table
        )))
    }

    /// Adds what the table lacks; answers the columns that were added.
    async fn change(
        &self,
        connection: &mut Connection,
        batch: &Batch,
        name: &TableName,
        known: (&HashSet<String>, &Barred),
        rules: Rules,
    ) -> Result<Vec<String>, LoadError> {
        let mut patience = Patience::new(self.settings().schema_patience);
        loop {
            self.begin_change(connection, rules.changes).await?;
            match change_once(connection, batch, name, known, rules).await {
                Ok(added) => {
                    self.end_change(connection, rules.changes).await?;
                    return Ok(added);
                }
                Err(error) if error.server_error().is_some() => {
                    undo_change(connection, rules.changes).await?;
                    if !error.is_lock_timeout() || !patience.is_left() {
                        return Err(error);
                    }
                    patience.wait(&name.table).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Says once for each table that it is full.
    fn report_limit(&self, name: &TableName, fit: &Fit) {
        if fit.beyond_limit > 0 && self.full_tables().is_new(name) {
            warn!(
                table = name.table,
                columns = fit.beyond_limit,
                "table has as many columns as PostgreSQL allows, dropped ones included; the values of further ones go to _unmapped_data"
            );
        }
    }
}

async fn change_once(
    connection: &mut Connection,
    batch: &Batch,
    name: &TableName,
    (made, barred): (&HashSet<String>, &Barred),
    rules: Rules,
) -> Result<Vec<String>, LoadError> {
    let purpose = Purpose::Schema { table: &name.table };
    connection.run_for(&ddl::lock_table_sql(name), purpose).await?;
    let table = Table::read(connection, name).await?;
    let fit = fit(batch, table.as_ref(), made, barred, rules)?;
    let key = batch.key_columns();
    let mut statements = Vec::new();
    match &table {
        None => {
            ensure_schema(connection, name).await?;
            let indexed = indexed_column(batch, &fit, rules.is_literal)?;
            statements = ddl::create_sql(name, &fit.missing, &key, indexed.as_deref());
        }
        Some(table) => {
            if !fit.missing.is_empty() {
                statements.push(ddl::add_columns_sql(name, &fit.missing, &[]));
            }
            match ddl::key_change(name, table.key.as_ref(), &key) {
                KeyChange::Nothing => {}
                KeyChange::Drop(constraint) => {
                    statements.push(ddl::drop_constraint_sql(name, &constraint));
                }
                // made after this, without a lock on the table's rows
                KeyChange::Set { .. } if !rules.is_literal => {}
                KeyChange::Set { instead_of } => {
                    statements.extend(instead_of.map(|old| ddl::drop_constraint_sql(name, &old)));
                    statements.push(ddl::add_key_sql(name, &key));
                }
            }
        }
    }
    for statement in statements {
        connection.run_for(&statement, purpose).await?;
    }
    Ok(fit.missing.into_iter().map(|column| column.name).collect())
}

fn fit(
    batch: &Batch,
    table: Option<&Table>,
    made: &HashSet<String>,
    barred: &Barred,
    rules: Rules,
) -> Result<Fit, LoadError> {
    let replaces_all = batch.replaces == Replaces::Table;
    let free = match (replaces_all, table) {
        (true, _) if !batch.options.schema.is_empty() => Free::Declared,
        (true, _) => Free::FirstRow,
        (false, None) if rules.is_by_event => Free::FirstRow,
        (false, _) => Free::None,
    };
    let against = Against {
        // the rows of a table that is replaced are not fitted to its columns
        table: table.filter(|_| !replaces_all),
        target: table,
        made,
        barred,
        free,
        style: rules.style,
        is_by_event: rules.is_by_event,
    };
    Fit::new(batch, against).map_err(LoadError::from)
}

/// Where the original is followed to the letter, a batch is one statement whatever comes of it.
fn one_by_one(
    batch: &Batch,
    table: Option<&Table>,
    fit: &Fit,
    rules: Rules,
) -> Result<OneByOne, LoadError> {
    if rules.is_literal {
        return Ok(OneByOne::Never);
    }
    if rules.is_by_event && fit.is_uneven {
        return Ok(OneByOne::Always);
    }
    let Some(table) = table else {
        return Ok(OneByOne::Never);
    };
    let is_merged = batch.options.merges_into_table();
    let wanted = batch.key_columns();
    // a batch is refused what it lacks of the key that its stream names
    let may_be_left = |column: &&String| match table.filled(column) {
        Filled::Never => false,
        // all rows of one statement would have the same moment
        Filled::ByClock => rules.is_by_event || !wanted.contains(column),
        _ => is_merged && (rules.is_by_event || !wanted.contains(column)),
    };
    let key = table.key.iter().flat_map(|key| &key.columns);
    let mut is_missing = false;
    for column in key.filter(may_be_left) {
        let slot = batch.columns().slot_of(column);
        match slot.filter(|slot| fit.column_of_slot[*slot as usize].is_some()) {
            None if table.filled(column) == Filled::ByClock => return Ok(OneByOne::Always),
            None => is_missing = true,
            // events of one batch have the same columns
            Some(slot) if rules.is_by_event || is_in_every_row(batch, slot)? => {}
            Some(_) => return Ok(OneByOne::Always),
        }
    }
    Ok(match is_missing {
        true if table.way == Way::Insert => OneByOne::Always,
        true => OneByOne::IfKeysRepeat,
        false => OneByOne::Never,
    })
}

fn is_in_every_row(batch: &Batch, slot: u32) -> Result<bool, LoadError> {
    let mut is_missing = false;
    batch.rows.visit(0..batch.row_count(), |_, row| {
        is_missing = row.cell(slot).is_none();
        !is_missing
    })?;
    Ok(!is_missing)
}

/// Whether a change of a table may have failed for one of its columns.
fn may_be_a_columns(error: &LoadError) -> bool {
    matches!(error, LoadError::Schema { .. })
        && (error.fault() != Fault::Environment || error.is_permission_denied())
}

/// A column of the key that rows are to be told apart by and that the batch does not bring.
fn absent_key(
    name: &TableName,
    table: Option<&Table>,
    fit: &Fit,
    wanted: &[String],
    rules: Rules,
) -> Option<String> {
    if rules.is_by_event {
        return None; // a single event gets the column's default
    }
    let present = table.and_then(|table| table.key.as_ref());
    let key = match present {
        // the customer's own key counts instead of the stream's
        Some(key) if ddl::key_change(name, present, wanted) == KeyChange::Nothing => &key.columns,
        _ => wanted,
    };
    let wanted_or_present = if rules.is_literal || wanted.is_empty() { wanted } else { key };
    let is_absent = |column: &&String| {
        let fills_itself = match table.map_or(Filled::Never, |table| table.filled(column)) {
            Filled::Never => false,
            Filled::Computed => !rules.is_literal,
            // the default of a key of ours is a makeshift for the rows that were there before it
            _ => !rules.is_literal && !wanted.contains(column),
        };
        !fills_itself && !fit.columns.iter().any(|present| present.name == **column)
    };
    wanted_or_present.iter().find(is_absent).cloned()
}

fn check_partition(
    batch: &Batch,
    name: &TableName,
    table: Option<&Table>,
) -> Result<(), LoadError> {
    let column = batch.partition_column();
    if table.is_none_or(|table| table.column(&column).is_some()) {
        return Ok(());
    }
    Err(LoadError::config(format!(
        "couldn't start ReplacePartitionStream: destination table [{}] exist but it is not managed \
         by ReplacePartitionStream: {column} column is missing",
        name.table
    )))
}

/// The name of the table that a batch goes to.
fn target(batch: &Batch, default_schema: &str) -> TableName {
    TableName {
        schema: batch.namespace().unwrap_or_else(|| default_schema.to_owned()),
        table: batch.table.clone(),
    }
}
