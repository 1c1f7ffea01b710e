//! One attempt to stage the batches of a load: tables are changed, position and tables locked, rows
//! sent, and what cannot be had is refused.
//!
//! Invariant: the position is locked after all changes to tables and before the first row is sent;
//! a table that is no longer what rows were fitted to gets none of them.

use std::{sync::Arc, time::Instant};

use sqlx::Row;

use super::{
    catalog::{Table, TableName, lock_shape_sql},
    change::Rules,
    client::Connection,
    isolate::Isolation,
    pool::Postgres,
    prepared::Prepared,
    quote_literal,
    selection::Selection,
    transfer,
};
use crate::{
    error::{Fault, LoadError, ServerError},
    load::{
        LoadCounts, LoadOptions, LoadReport, LoadedTable, Refusals, RefusedRow, RowsOf,
        SchemaChanges,
    },
    rows::{
        batch::{Batch, Replaces},
        convert::TextStyle,
    },
};

/// How an attempt ended that met no error.
pub(super) enum Ended {
    /// All rows are sent, and refusals known.
    Staged,
    /// It was rolled back: its rows have to be tried again, in another transaction.
    RolledBack,
    /// It was rolled back: this table is not what the rows were fitted to.
    TableChanged { table: String },
}

/// One attempt to stage all batches in one transaction.
pub(super) struct Attempt<'a> {
    pub(super) postgres: &'a Postgres,
    /// Must answer one row under the load's transaction.
    pub(super) fence_sql: Option<String>,
    pub(super) options: LoadOptions,
    pub(super) isolation: &'a mut Isolation,
}

impl Attempt<'_> {
    /// Changes the tables, locks position and tables, and sends the rows.
    pub(super) async fn run(
        mut self,
        connection: &mut Connection,
        batches: &[Arc<Batch>],
        report: &mut LoadReport,
    ) -> Result<Ended, LoadError> {
        self.isolation.start_over();
        let started = Instant::now();
        let mut has_begun = false;
        let mut prepared = Vec::with_capacity(batches.len());
        for (index, batch) in batches.iter().enumerate() {
            let is_refused = self.isolation.refused_batch(index).is_some();
            if is_refused || (batch.is_empty() && batch.replaces == Replaces::Nothing) {
                continue;
            }
            let rules = self.rules(batch);
            if rules.changes == SchemaChanges::InLoad && !has_begun {
                self.begin(connection).await?;
                has_begun = true;
            }
            let barred = self.isolation.barred(index);
            let batch = batch.clone();
            match self.postgres.prepare(connection, batch.clone(), rules, None, barred).await {
                Ok(batch) => prepared.push((index, batch)),
                Err(error) if self.is_what_options_ask(&batch, &error) => {
                    self.isolation.refuse_batch(index, &error);
                }
                Err(error) => return Err(error),
            }
        }
        for (index, batch) in batches.iter().enumerate() {
            let Some(error) = self.isolation.refused_batch(index) else {
                continue;
            };
            let refused = |row| RefusedRow { batch: index, row, error: error.clone() };
            report.refused.extend((0..batch.row_count()).map(refused));
            report.counts.refused += batch.row_count() as u64;
        }
        report.prepared_in = started.elapsed();

        let started = Instant::now();
        if !has_begun {
            self.begin(connection).await?;
        }
        match self.lock(connection, &prepared).await {
            Ok(None) => {}
            Ok(Some(table)) => {
                connection.roll_back().await?;
                return Ok(Ended::TableChanged { table });
            }
            Err(error) if error.is_permission_denied() => {
                return self.refuse_denied(connection, &prepared, error).await;
            }
            Err(error) => return Err(error),
        }
        for (index, prepared) in &prepared {
            match self.send(connection, *index, prepared, report).await {
                Ok(true) => {}
                Ok(false) => {
                    connection.roll_back().await?;
                    return Ok(Ended::RolledBack);
                }
                Err(error) if self.is_what_options_ask(&prepared.batch, &error) => {
                    connection.roll_back_and_close().await;
                    self.isolation.refuse_batch(*index, &error);
                    return Ok(Ended::RolledBack);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = self.isolation.undecided(self.postgres, &prepared) {
            return Err(error);
        }
        report.refused.sort_by_key(|refused| (refused.batch, refused.row));
        report.sent_in = started.elapsed();
        Ok(Ended::Staged)
    }

    /// Whether an error of a table is about what the options ask for that came with the events of a
    /// batch. A right that is missing is, where it is one of the schema that they name; else it is
    /// waited for.
    fn is_what_options_ask(&self, batch: &Batch, error: &LoadError) -> bool {
        self.options.refusals == Refusals::Isolate
            && batch.has_event_options
            && matches!(error, LoadError::Schema { .. })
            && (error.fault() != Fault::Environment
                || (error.is_permission_denied() && batch.namespace().is_some()))
    }

    /// Refuses the batches whose events name a schema that we may not use; without any, what was
    /// denied is waited for.
    async fn refuse_denied(
        &mut self,
        connection: &mut Connection,
        prepared: &[(usize, Prepared)],
        error: LoadError,
    ) -> Result<Ended, LoadError> {
        connection.roll_back().await?;
        let mut has_refused = false;
        for (index, Prepared { batch, name, .. }) in prepared {
            if !batch.has_event_options || batch.namespace().is_none() {
                continue;
            }
            let may_use = format!(
                "select 1 where pg_catalog.has_schema_privilege({}, 'usage')",
                quote_literal(&name.schema)
            );
            if connection.run(&may_use).await?.is_empty() {
                self.isolation.refuse_batch(*index, &error);
                has_refused = true;
            }
        }
        if has_refused && self.options.refusals == Refusals::Isolate {
            return Ok(Ended::RolledBack);
        }
        Err(error)
    }

    /// Locks the position and the tables, in one round trip, and looks whether each table still is
    /// what its rows were fitted to: whoever changed it in between, its values would be read as
    /// what they are not. Answers a table that is not.
    async fn lock(
        &self,
        connection: &mut Connection,
        prepared: &[(usize, Prepared)],
    ) -> Result<Option<String>, LoadError> {
        let mut tables: Vec<(&TableName, &Table)> = Vec::new();
        for (_, prepared) in prepared {
            let Some(table) = prepared.table.as_ref().filter(|_| prepared.is_fitted_to_table())
            else {
                continue;
            };
            match tables.iter_mut().find(|(name, _)| *name == &prepared.name) {
                Some((_, earlier)) if earlier.is_contained_in(table) => *earlier = table,
                Some((name, _)) => return Ok(Some(name.table.clone())),
                None => tables.push((&prepared.name, table)),
            }
        }
        let locks = tables.iter().map(|(name, table)| lock_shape_sql(name, table.is_lockable));
        let statements: Vec<_> = self.fence_sql.iter().cloned().chain(locks).collect();
        if statements.is_empty() {
            return Ok(None);
        }
        let rows = match connection.run(&statements.join("; ")).await {
            Err(error) if error.is_undefined_table() => {
                // one of ours, or one of the ledger's
                return first_changed(connection, &tables).await?.map(Some).ok_or(error);
            }
            rows => rows?,
        };
        let Some(fences) = rows.len().checked_sub(tables.len()) else {
            return Err(LoadError::config("the catalog answers in another shape"));
        };
        if fences != usize::from(self.fence_sql.is_some()) {
            connection.roll_back().await?;
            return Err(LoadError::Fenced);
        }
        for ((name, table), row) in tables.iter().zip(&rows[fences..]) {
            let is_as_it_was = row.try_get(0).ok() == Some(table.version.as_str());
            if !is_as_it_was && !still_fits(connection, name, table).await? {
                return Ok(Some(name.table.clone()));
            }
        }
        Ok(None)
    }

    fn rules(&self, batch: &Batch) -> Rules {
        let changes = match batch.replaces {
            Replaces::Nothing => self.options.schema_changes,
            Replaces::Table | Replaces::Partition => SchemaChanges::InLoad,
        };
        let is_event = self.options.rows == RowsOf::Events;
        Rules {
            changes,
            style: if is_event { TextStyle::Milliseconds } else { TextStyle::Short },
            is_by_event: is_event,
            is_literal: changes == SchemaChanges::InLoad,
            isolates: self.options.refusals == Refusals::Isolate
                && batch.replaces == Replaces::Nothing,
        }
    }

    async fn begin(&self, connection: &mut Connection) -> Result<(), LoadError> {
        let mut sql = self.postgres.begin_sql();
        if self.options.refusals == Refusals::Isolate {
            // deferred ones fail at COMMIT, where no row can be cut out any more
            sql.push_str("; set constraints all immediate");
        }
        connection.begin(&sql).await
    }

    /// Sends one batch. `false`: not all of it, because no subtransaction of this transaction is
    /// left.
    async fn send(
        &mut self,
        connection: &mut Connection,
        index: usize,
        prepared: &Prepared,
        report: &mut LoadReport,
    ) -> Result<bool, LoadError> {
        let batch = &prepared.batch;
        let total = batch.row_count();
        let mut counts = LoadCounts::default();
        self.isolation.refuse_rows(index, &prepared.refused);
        if let Some(column) = prepared.absent_key.as_ref().filter(|_| total > 0) {
            let error = null_in_key(&prepared.name.table, column);
            if self.options.refusals == Refusals::Fail {
                let table = prepared.name.table.clone();
                return Err(LoadError::Refused { table, error: Box::new(error) });
            }
            let refused = |row| RefusedRow { batch: index, row, error: error.clone() };
            report.refused.extend((0..total).map(refused));
            counts.refused = total as u64;
        } else if prepared.fit.columns.is_empty() {
            transfer::empty(self.postgres, connection, prepared).await?;
        } else {
            transfer::make_room(connection, prepared).await?;
            let refused: Vec<_> = prepared.refused.keys().copied().collect();
            let rows = Selection { range: 0..total, kept: prepared.survivors(&refused)? };
            let isolates =
                self.options.refusals == Refusals::Isolate && batch.replaces == Replaces::Nothing;
            let pace = self.postgres.paces().get(&prepared.name).filter(|pace| total > *pace);
            if isolates && pace.is_some() {
                self.isolation.begin_at(index, pace);
            }
            if batch.replaces == Replaces::Table && !prepared.is_new {
                counts.loaded =
                    transfer::replace_all(self.postgres, connection, prepared, &rows).await?;
            } else if isolates && self.isolation.has_begun() {
                let may_be_new = self.postgres.may_be_all_new(prepared);
                let sent = self.isolation.send(connection, index, prepared, rows, may_be_new);
                let Some(loaded) = sent.await? else {
                    return Ok(false);
                };
                counts.loaded = loaded;
                self.postgres.paces().went(&prepared.name, self.isolation.pace(index));
            } else if rows.first().is_some() {
                let sent = self.postgres.send_new_or_merge(connection, prepared, &rows);
                counts.loaded = sent.await?;
                self.isolation.took(&prepared.name);
            }
        }
        if prepared.absent_key.is_none() {
            let refused = self.isolation.refused(index);
            counts.refused = refused.len() as u64;
            report.refused.extend(refused);
        }
        counts.merged = (total as u64).saturating_sub(counts.loaded + counts.refused);
        report.counts.loaded += counts.loaded;
        report.counts.merged += counts.merged;
        report.counts.refused += counts.refused;
        report.tables.push(loaded_table(connection, index, prepared).await?);
        Ok(true)
    }
}

/// Whether nothing but columns, or a key where there was none, was added to a table.
async fn still_fits(
    connection: &mut Connection,
    name: &TableName,
    table: &Table,
) -> Result<bool, LoadError> {
    let now = Table::read(connection, name).await?;
    let has_same_key = |now: &Table| table.key.is_none() || table.key == now.key;
    Ok(now.is_some_and(|now| table.is_contained_in(&now) && has_same_key(&now)))
}

/// After an error: the first table that is not what it was.
async fn first_changed(
    connection: &mut Connection,
    tables: &[(&TableName, &Table)],
) -> Result<Option<String>, LoadError> {
    connection.roll_back().await?;
    connection.begin("begin").await?; // to be ended as the one that failed
    for (name, table) in tables {
        if Table::read(connection, name).await?.as_ref() != Some(*table) {
            return Ok(Some(name.table.clone()));
        }
    }
    Ok(None)
}

/// What the database would say of a row without a key.
fn null_in_key(table: &str, column: &str) -> ServerError {
    ServerError {
        sqlstate: "23502".to_owned(),
        table: Some(table.to_owned()),
        column: Some(column.to_owned()),
        full_text: format!(
            "column \"{column}\" named in key does not exist in any event of the batch"
        ),
        fault: Fault::Event,
        ..ServerError::default()
    }
}

async fn loaded_table(
    connection: &mut Connection,
    index: usize,
    prepared: &Prepared,
) -> Result<LoadedTable, LoadError> {
    let name = &prepared.name;
    let read;
    let table = if prepared.batch.replaces == Replaces::Table {
        // it may have got columns while it was replaced
        read = Table::read(connection, name).await?;
        read.as_ref()
    } else {
        prepared.table.as_ref()
    };
    let table = table.cloned().unwrap_or_default();
    Ok(table.describe(index, &name.table))
}
