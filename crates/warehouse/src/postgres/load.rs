//! The load: batches into their tables in one transaction, with the caller's checkpoint.
//!
//! Invariant: the rows of all batches and the move of the checkpoint become visible together or not at
//! all. The checkpoint is locked after all changes to tables and before the first row is sent, and moves in
//! the last statement before COMMIT, which must hit one row: a COMMIT of an aborted transaction answers
//! ROLLBACK without an error.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use super::{
    client::{Connection, Postgres},
    error::{LoadError, Purpose, ServerError},
    isolate::Isolation,
    prepare::{Prepared, Rules},
    table::Table,
    transfer::{self, Selection},
};
use crate::{
    batch::{Batch, Replaces},
    convert::TextStyle,
    dedup,
};

/// Statements of the caller that run in the load's transaction; nothing here looks into them.
pub struct Checkpoint {
    /// A `select … for update` that must answer one row: the checkpoint is what the caller thinks.
    pub lock: String,
    /// Called when all rows are sent. Answers an `update` that must hit one row; it runs last before COMMIT, after
    /// whatever stands before it. An error rolls everything back. What takes long in here holds the rows' locks.
    pub advance: Advance,
}

/// See [`Checkpoint::advance`].
pub type Advance =
    Box<dyn for<'a> Fn(&'a LoadReport) -> BoxFuture<'a, Result<String, LoadError>> + Send + Sync>;

/// How batches are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    pub refusals: Refusals,
    pub schema_changes: SchemaChanges,
    pub rows: RowsOf,
}

/// What the rows of a batch stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowsOf {
    /// A batch: all rows have all its columns, those that an event lacks are NULL.
    #[default]
    Batch,
    /// Single events that are alike ([`Batch::push_alike`]): the result is that of inserting one after the other. What an event
    /// lacks stays as it is, or gets its default.
    Events,
}

/// What a row that the database refuses does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Refusals {
    /// Nothing is loaded.
    #[default]
    Fail,
    /// The others are loaded, and the report names it. A batch that replaces rows fails all the same.
    Isolate,
}

/// Where tables are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchemaChanges {
    /// In short transactions of their own, before the load: nobody waits for our rows behind our locks.
    #[default]
    BeforeLoad,
    /// In the load's transaction, rolled back with it. So are, always, those for a batch that replaces rows.
    InLoad,
}

/// What became of the events of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadCounts {
    /// Rows inserted or updated.
    pub loaded: u64,
    /// Events that are no row of their own: replaced by another one with the same key in their batch, or without
    /// any column where the batch has none.
    pub merged: u64,
    /// Rows that the database refused.
    pub refused: u64,
}

/// A row that the database refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRow {
    /// The place of its batch among those of the load.
    pub batch: usize,
    /// The number of its event in the batch, from 0.
    pub row: usize,
    pub error: ServerError,
}

/// A table that rows were loaded into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadedTable {
    /// The place of its batch among those of the load.
    pub batch: usize,
    pub name: String,
    /// Names and SQL types, in the table's order.
    pub columns: Vec<(String, String)>,
    /// Columns of the primary key, in its order.
    pub key: Vec<String>,
    pub key_name: Option<String>,
}

/// What a load did.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    pub counts: LoadCounts,
    /// In the order of the batches and their events.
    pub refused: Vec<RefusedRow>,
    pub tables: Vec<LoadedTable>,
    /// Reading and changing tables.
    pub prepared_in: Duration,
    /// Sending rows and merging them.
    pub sent_in: Duration,
    pub committed_in: Duration,
}

impl Postgres {
    /// Loads all batches in one transaction. Without batches only the checkpoint moves.
    pub async fn load(
        &self,
        batches: Vec<Batch>,
        checkpoint: Option<&Checkpoint>,
        options: LoadOptions,
    ) -> Result<LoadReport, LoadError> {
        let batches: Vec<_> = batches.into_iter().map(Arc::new).collect();
        let has_work =
            |batch: &Arc<Batch>| !batch.is_empty() || batch.replaces != Replaces::Nothing;
        if !batches.iter().any(has_work) && checkpoint.is_none() {
            return Ok(LoadReport::default());
        }
        let mut isolation = Isolation::default();
        loop {
            let mut connection = self.connection().await?;
            let mut report = LoadReport::default();
            let load = Load { postgres: self, checkpoint, options, isolation: &mut isolation };
            match load.run(&mut connection, &batches, &mut report).await {
                Ok(Ended::Committed) => return Ok(report),
                Ok(Ended::RolledBack) => {} // more is known about its rows now
                Err(LoadError::CheckpointMoved) => return Err(LoadError::CheckpointMoved),
                Err(error) => {
                    let in_step = error.server_error().is_some();
                    if in_step {
                        connection.roll_back_and_close().await;
                    } else {
                        connection.give_up(); // its transaction may be open
                    }
                    let isolates = options.refusals == Refusals::Isolate;
                    match error {
                        LoadError::Refused { .. } if isolates && isolation.begin() => {}
                        error => return Err(error),
                    }
                }
            }
        }
    }
}

/// How an attempt ended that met no error.
enum Ended {
    Committed,
    /// Its rows have to be tried again, in another transaction.
    RolledBack,
}

/// One attempt.
struct Load<'a> {
    postgres: &'a Postgres,
    checkpoint: Option<&'a Checkpoint>,
    options: LoadOptions,
    isolation: &'a mut Isolation,
}

impl Load<'_> {
    async fn run(
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
            if batch.is_empty() && batch.replaces == Replaces::Nothing {
                continue;
            }
            let rules = self.rules(batch);
            if rules.changes == SchemaChanges::InLoad && !has_begun {
                self.begin(connection).await?;
                has_begun = true;
            }
            let batch = self.postgres.prepare(connection, batch.clone(), rules, None).await?;
            prepared.push((index, batch));
        }
        report.prepared_in = started.elapsed();

        let started = Instant::now();
        if !has_begun {
            self.begin(connection).await?;
        }
        if let Some(checkpoint) = self.checkpoint
            && connection.run(&checkpoint.lock).await?.len() != 1
        {
            connection.run("rollback").await?;
            return Err(LoadError::CheckpointMoved);
        }
        for (index, prepared) in &prepared {
            if !self.send(connection, *index, prepared, report).await? {
                connection.run("rollback").await?;
                return Ok(Ended::RolledBack);
            }
        }
        report.sent_in = started.elapsed();

        let started = Instant::now();
        if let Some(checkpoint) = self.checkpoint {
            let advance = (checkpoint.advance)(report).await?;
            if connection.execute(&advance, Purpose::Other).await? != 1 {
                connection.run("rollback").await?;
                return Err(LoadError::CheckpointMoved);
            }
        }
        commit(connection).await?;
        report.committed_in = started.elapsed();
        Ok(Ended::Committed)
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
            first_row_is_free: is_event,
            is_literal: changes == SchemaChanges::InLoad,
        }
    }

    async fn begin(&self, connection: &mut Connection) -> Result<(), LoadError> {
        let mut sql = self.postgres.begin_sql();
        if self.options.refusals == Refusals::Isolate {
            // deferred ones fail at COMMIT, where no row can be cut out any more
            sql.push_str("; set constraints all immediate");
        }
        connection.run(&sql).await.map(drop)
    }

    /// Sends one batch. `false`: not all of it, for this transaction has had its share of subtransactions.
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
            transfer::empty(connection, prepared).await?;
            counts.merged = total as u64;
        } else {
            transfer::make_room(connection, prepared).await?;
            let rows = Selection { range: 0..total, kept: survivors(prepared, &[])? };
            let isolates =
                self.options.refusals == Refusals::Isolate && batch.replaces == Replaces::Nothing;
            if batch.replaces == Replaces::Table && !prepared.is_new {
                counts.loaded = transfer::replace_all(connection, prepared, &rows).await?;
            } else if isolates && self.isolation.has_begun() {
                let may_be_new = self.postgres.may_be_all_new(prepared);
                let sent = self.isolation.send(connection, index, prepared, rows, may_be_new);
                let Some(loaded) = sent.await? else {
                    return Ok(false);
                };
                counts.loaded = loaded;
                report.refused.extend(self.isolation.refused(index));
                counts.refused =
                    report.refused.iter().filter(|row| row.batch == index).count() as u64;
            } else {
                let sent = self.postgres.send_new_or_merge(connection, prepared, &rows);
                counts.loaded = sent.await?;
            }
            // triggers and rules may make the server count otherwise
            counts.merged = (total as u64).saturating_sub(counts.loaded + counts.refused);
        }
        report.counts.loaded += counts.loaded;
        report.counts.merged += counts.merged;
        report.counts.refused += counts.refused;
        report.tables.push(loaded_table(connection, index, prepared).await?);
        Ok(true)
    }
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
        ..ServerError::default()
    }
}

/// Which rows are sent: of those with equal keys one, and none of `refused`. `None`: all.
pub(super) fn survivors(
    prepared: &Prepared,
    refused: &[usize],
) -> Result<Option<Arc<Vec<bool>>>, LoadError> {
    let Prepared { batch, fit, .. } = prepared;
    if batch.options.deduplicate {
        let (key, part) = (prepared.row_key(), prepared.part());
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

async fn loaded_table(
    connection: &mut Connection,
    index: usize,
    prepared: &Prepared,
) -> Result<LoadedTable, LoadError> {
    let name = &prepared.name;
    let read;
    let table = if prepared.batch.replaces == Replaces::Table {
        read = Table::read(connection, name).await?; // it may have got columns while it was replaced
        read.as_ref()
    } else {
        prepared.table.as_ref()
    };
    let table = table.cloned().unwrap_or_default();
    Ok(table.describe(index, &name.table))
}

async fn commit(connection: &mut Connection) -> Result<(), LoadError> {
    match connection.run_for("commit", Purpose::Rows { table: "" }).await {
        Ok(_) => Ok(()),
        Err(LoadError::Connection { reason }) => Err(LoadError::CommitUnknown { reason }),
        // a session that is ended on purpose may say so after the commit is durable
        Err(LoadError::Busy(error)) if error.sqlstate.starts_with("57P") => {
            Err(LoadError::CommitUnknown { reason: error.to_string() })
        }
        Err(error) => Err(error),
    }
}
