//! Before rows are sent: the batch is fitted to its table, and the table is given what it lacks.
//!
//! Invariant: a loader changes a table only under the table's advisory lock, after looking at it
//! again, and waits no longer than `schema_lock_timeout` for another session's lock, because all
//! later statements on the table queue behind a waiting ALTER. What cannot be had in that time is
//! tried again later, up to `schema_patience`.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

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
    patience::{Patience, undo_change},
    pool::Postgres,
    quote_ident, quote_literal,
};
use crate::{
    error::{Fault, LoadError, ServerError},
    load::SchemaChanges,
    rows::{
        batch::{Batch, Replaces},
        convert::TextStyle,
        dedup,
    },
};

/// How often a table may change under us while we fit a batch to it.
const MAX_FITS: usize = 5;

/// A batch that fits its table.
pub(super) struct Prepared {
    pub(super) batch: Arc<Batch>,
    pub(super) name: TableName,
    pub(super) fit: Arc<Fit>,
    /// As it is now. `None`: the batch has no column, and there is no table.
    pub(super) table: Option<Table>,
    /// Whether the table has just been made, in this transaction.
    pub(super) is_new: bool,
    /// A column of the key that no event of the batch has. Without it no row can be stored.
    pub(super) absent_key: Option<String>,
    /// Rows that are refused for a column that they ask for.
    pub(super) refused: BTreeMap<usize, ServerError>,
    /// Whether each row stands for itself: what it lacks keeps its value in the row that it is
    /// merged into, or gets its default.
    pub(super) is_by_event: bool,
    pub(super) one_by_one: OneByOne,
    is_literal: bool,
}

/// Whether rows have to be inserted one after the other, because a statement for all of them would
/// leave something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OneByOne {
    Never,
    /// Unless all keys are new: part of each key is the table's to fill, so two rows may turn out
    /// to have the same.
    IfKeysRepeat,
    /// Some rows name columns that others leave to the table.
    Always,
}

impl Prepared {
    /// The columns that rows of the batch are told apart by: those of the stream's key, or of the
    /// key that rows are merged by, if it is the customer's own.
    pub(super) fn row_key(&self) -> Vec<String> {
        let present = self.table.as_ref().and_then(|table| table.key.as_ref());
        let merged_by = present.filter(|_| self.batch.options.merges_into_table());
        match merged_by.filter(|_| !self.is_literal) {
            Some(key) => key.columns.clone(),
            None => self.batch.key_columns(),
        }
    }

    /// Rows per part of the batch, within which equal keys are looked for; 0: the whole batch is
    /// one part. Parts can only refuse what the whole batch would take, so there are parts only
    /// where the original is followed to the letter.
    pub(super) fn part(&self) -> usize {
        let part = usize::try_from(self.batch.options.temporary_batch_size).unwrap_or(0);
        if self.is_literal { part } else { 0 }
    }

    /// Whether the table has to stay as it is for the rows. One whose rows are all replaced is looked
    /// at once more when it is locked for that.
    pub(super) fn is_fitted_to_table(&self) -> bool {
        self.batch.replaces != Replaces::Table || self.is_new
    }

    /// Whether rows go straight into the table: COPY does all that has to be done.
    pub(super) fn goes_by_copy(&self) -> bool {
        self.may_be_copied() && self.one_by_one == OneByOne::Never && self.merged_by().is_none()
    }

    /// Whether rows that are not merged may go straight into the table.
    pub(super) fn may_be_copied(&self) -> bool {
        let takes_copy = self.table.as_ref().is_none_or(|table| table.way == Way::Copy);
        takes_copy && !self.fit.needs_cast()
    }

    /// The constraint of the key that rows are merged by. By one that is deferrable PostgreSQL merges
    /// nothing: a repeat is refused, alone.
    pub(super) fn merged_by(&self) -> Option<&str> {
        let key = self.table.as_ref().and_then(|table| table.key.as_ref());
        let merges = self.batch.options.merges_into_table();
        let key = key.filter(|key| merges && !key.is_deferrable);
        key.map(|key| key.constraint.as_str())
    }

    /// Quoted names of the batch's columns whose identity is always the table's own.
    pub(super) fn always_own(&self) -> Vec<String> {
        let is_own = |name: &String| {
            self.table.as_ref().is_some_and(|table| table.filled(name) == Filled::Always)
        };
        let names = self.fit.columns.iter().map(|column| &column.name);
        names.filter(|name| is_own(name)).map(|name| quote_ident(name)).collect()
    }

    /// What a row has in a column of the batch that it has no value for. `None`: the column is not
    /// named in it.
    pub(super) fn absent_value(&self, column: &str) -> Option<String> {
        let table = self.table.as_ref();
        let key = table.and_then(|table| table.key.as_ref());
        let is_left_to_table = key.is_some_and(|key| key.columns.iter().any(|name| name == column))
            && table.is_some_and(|table| table.filled(column) != Filled::Never);
        (!self.is_by_event && !is_left_to_table).then(|| "null".to_owned())
    }

    /// Which rows are sent: of those with equal keys one, and none of `refused`. `None`: all.
    pub(super) fn survivors(&self, refused: &[usize]) -> Result<Option<Arc<Vec<bool>>>, LoadError> {
        let Prepared { batch, fit, .. } = self;
        let compares = match self.is_by_event {
            // without a merge the first one is stored, and the second refused
            true => batch.options.merges_into_table() && self.one_by_one != OneByOne::Always,
            false => batch.options.deduplicate,
        };
        if compares {
            let (key, part) = (self.row_key(), self.part());
            let survivors = dedup::survivors(batch, &key, refused, part, |row, cell, out| {
                fit.stored(row, cell, out)
            })?;
            return Ok(Some(Arc::new(survivors)));
        }
        if refused.is_empty() {
            return Ok(None);
        }
        let mut kept = vec![true; batch.row_count()];
        refused.iter().for_each(|row| kept[*row] = false);
        Ok(Some(Arc::new(kept)))
    }
}

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
            if barred.refuse_unmapped(&batch, &fit)? {
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

/// The timestamp column that a new table gets an index for.
pub(super) fn indexed_column(
    batch: &Batch,
    fit: &Fit,
    is_required: bool,
) -> Result<Option<String>, LoadError> {
    let Some(column) = &batch.options.timestamp_column else {
        return Ok(None);
    };
    let column = batch.column_name(column);
    if fit.columns.iter().any(|present| present.name == column) {
        return Ok(Some(column));
    }
    if is_required {
        let reason = format!("failed to create sort key: column \"{column}\" does not exist");
        return Err(LoadError::config(reason));
    }
    // the batch is loaded all the same
    warn!(
        table = batch.table,
        column,
        "table is made without the index of its timestamp column, which no event of its first batch has"
    );
    Ok(None)
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

pub(super) async fn ensure_schema(
    connection: &mut Connection,
    name: &TableName,
) -> Result<(), LoadError> {
    let (schema, purpose) = (&name.schema, Purpose::Schema { table: &name.table });
    let found =
        format!("select 1 from pg_catalog.pg_namespace where nspname = {}", quote_literal(schema));
    if !connection.run_for(&found, purpose).await?.is_empty() {
        return Ok(());
    }
    // two creators of one schema collide in the catalog in spite of `if not exists`
    let created = format!(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended({}, 1)); \
         create schema if not exists {}",
        quote_literal(schema),
        quote_ident(schema)
    );
    connection.run_for(&created, purpose).await.map(drop)
}

/// The name of the table that a batch goes to.
fn target(batch: &Batch, default_schema: &str) -> TableName {
    TableName {
        schema: batch.namespace().unwrap_or_else(|| default_schema.to_owned()),
        table: batch.table.clone(),
    }
}
