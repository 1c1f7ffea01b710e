//! The load: batches into their tables in one transaction, with the caller's checkpoint.
//!
//! Invariant: the rows of all batches and the move of the checkpoint become visible together or not at
//! all. The checkpoint is locked after all changes to tables and before the first row is sent, and moves in
//! the last statement before COMMIT, which must hit one row: a COMMIT of an aborted transaction answers
//! ROLLBACK without an error.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::warn;
use uuid::Uuid;

use super::{
    client::{Connection, Postgres},
    ddl,
    encode::Encoder,
    error::{LoadError, Purpose},
    fit::{Fit, target},
    quote_ident, quote_literal,
    table::{Table, TableName},
};
use crate::{batch::Batch, dedup};

/// Bytes of COPY text that are sent at once.
const CHUNK: usize = 128 << 10;
/// Chunks that are encoded ahead of the socket.
const CHUNKS_AHEAD: usize = 2;
/// How often a table may change under us while we fit a batch to it.
const MAX_FITS: usize = 5;
/// Characters of a table's name in the name of its staging table.
const STAGING_NAME: usize = 43;

/// Statements of the caller that run in the load's transaction; nothing here looks into them.
pub struct Checkpoint {
    /// A `select … for update` that must answer one row: the checkpoint is what the caller thinks.
    pub lock: String,
    /// An `update` that must hit one row; given what was loaded.
    pub advance: Box<dyn Fn(&LoadCounts) -> String + Send + Sync>,
}

/// What became of the events of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadCounts {
    /// Rows inserted or updated.
    pub loaded: u64,
    /// Events that are no row of their own: replaced by another one with the same key in their batch, or without
    /// any column where the batch has none.
    pub merged: u64,
}

/// What a load did.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    pub counts: LoadCounts,
    /// Reading and changing tables.
    pub prepared_in: Duration,
    /// Sending rows and merging them.
    pub sent_in: Duration,
    pub committed_in: Duration,
}

/// Where tables are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchemaChanges {
    /// In short transactions of their own, before the load: nobody waits for our rows behind our locks.
    #[default]
    BeforeLoad,
    /// In the load's transaction, rolled back with it.
    InLoad,
}

struct Prepared {
    batch: Batch,
    name: TableName,
    fit: Fit,
    key_constraint: Option<String>,
}

impl Postgres {
    /// Loads all batches in one transaction. Without batches only the checkpoint moves.
    pub async fn load(
        &self,
        batches: Vec<Batch>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<LoadReport, LoadError> {
        self.load_with(batches, checkpoint, SchemaChanges::default()).await
    }

    /// [`Postgres::load`], with a say in where tables are changed.
    pub async fn load_with(
        &self,
        batches: Vec<Batch>,
        checkpoint: Option<&Checkpoint>,
        schema_changes: SchemaChanges,
    ) -> Result<LoadReport, LoadError> {
        let batches: Vec<_> = batches.into_iter().filter(|batch| !batch.is_empty()).collect();
        let mut report = LoadReport::default();
        if batches.is_empty() && checkpoint.is_none() {
            return Ok(report);
        }
        let mut connection = self.connection().await?;
        let loaded =
            self.load_on(&mut connection, batches, checkpoint, schema_changes, &mut report).await;
        match &loaded {
            Ok(()) | Err(LoadError::CheckpointMoved) => {}
            Err(error) if error.server_error().is_some() => connection.roll_back_and_close().await,
            Err(_) => connection.give_up(), // its transaction may be open
        }
        loaded.map(|()| report)
    }

    async fn load_on(
        &self,
        connection: &mut Connection,
        batches: Vec<Batch>,
        checkpoint: Option<&Checkpoint>,
        schema_changes: SchemaChanges,
        report: &mut LoadReport,
    ) -> Result<(), LoadError> {
        let started = Instant::now();
        let in_load = schema_changes == SchemaChanges::InLoad;
        if in_load {
            connection.run(&self.begin_sql()).await?;
        }
        let mut prepared = Vec::with_capacity(batches.len());
        for batch in batches {
            prepared.push(self.prepare(connection, batch, in_load).await?);
        }
        report.prepared_in = started.elapsed();

        let started = Instant::now();
        if !in_load {
            connection.run(&self.begin_sql()).await?;
        }
        if let Some(checkpoint) = checkpoint
            && connection.run(&checkpoint.lock).await?.len() != 1
        {
            connection.run("rollback").await?;
            return Err(LoadError::CheckpointMoved);
        }
        for prepared in prepared {
            let counts = send(connection, prepared).await?;
            report.counts.loaded += counts.loaded;
            report.counts.merged += counts.merged;
        }
        report.sent_in = started.elapsed();

        let started = Instant::now();
        if let Some(checkpoint) = checkpoint {
            let advance = (checkpoint.advance)(&report.counts);
            if connection.execute(&advance, Purpose::Other).await? != 1 {
                connection.run("rollback").await?;
                return Err(LoadError::CheckpointMoved);
            }
        }
        commit(connection).await?;
        report.committed_in = started.elapsed();
        Ok(())
    }

    /// Fits a batch to its table and changes the table where it lacks something. The batch is fitted to the table
    /// as it is afterwards, whoever changed it.
    async fn prepare(
        &self,
        connection: &mut Connection,
        batch: Batch,
        in_load: bool,
    ) -> Result<Prepared, LoadError> {
        let name = target(&batch, self.default_schema());
        let key = batch.key_columns();
        let timestamp_column =
            batch.options.timestamp_column.as_deref().map(|column| batch.column_name(column));
        let purpose = Purpose::Schema { table: &name.table };
        let mut made = HashSet::new();
        for _ in 0..MAX_FITS {
            let table = Table::read(connection, &name).await?;
            let fit = Fit::new(&batch, table.as_ref(), &made);
            let wanted = |table: Option<&Table>, fit: &Fit| {
                ddl::changes(&name, table, &fit.missing, &key, timestamp_column.as_deref())
            };
            if table.is_some() && wanted(table.as_ref(), &fit).is_empty() {
                let key_constraint = table.and_then(|table| table.key).map(|key| key.constraint);
                return Ok(Prepared { batch, name, fit, key_constraint });
            }
            if fit.columns.is_empty() && table.is_none() {
                return Ok(Prepared { batch, name, fit, key_constraint: None });
            }
            if !in_load {
                connection.run(&self.begin_sql()).await?;
            }
            connection.run_for(&ddl::lock_table_sql(&name), purpose).await?;
            let table = Table::read(connection, &name).await?;
            if table.is_none() {
                ensure_schema(connection, &name).await?;
            }
            let fit = Fit::new(&batch, table.as_ref(), &made);
            for statement in wanted(table.as_ref(), &fit).statements {
                connection.run_for(&statement, purpose).await?;
            }
            if !in_load {
                connection.run("commit").await?;
            }
            made.extend(fit.missing.into_iter().map(|column| column.name));
        }
        Err(LoadError::config(format!(
            "table {} changes faster than a batch can be fitted to it",
            name.table
        )))
    }
}

async fn ensure_schema(connection: &mut Connection, name: &TableName) -> Result<(), LoadError> {
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

/// Sends one batch: straight into the table, or through a staging table where rows are merged or cast.
async fn send(connection: &mut Connection, prepared: Prepared) -> Result<LoadCounts, LoadError> {
    let Prepared { batch, name, fit, key_constraint } = prepared;
    let total = batch.row_count() as u64;
    if fit.columns.is_empty() {
        return Ok(LoadCounts { loaded: 0, merged: total });
    }
    let purpose = Purpose::Rows { table: &name.table };
    let survivors = batch
        .options
        .deduplicate
        .then(|| dedup::survivors(&batch, |row, cell, out| fit.stored(row, cell, out)));
    let columns = fit.quoted_columns();
    let is_merged = batch.options.merges_into_table();
    if !is_merged && !fit.needs_cast() {
        let loaded =
            copy(connection, &name.quoted(), &columns, batch, fit, survivors, &name.table).await?;
        return Ok(LoadCounts { loaded, merged: total - loaded });
    }
    let temporary = !batch.options.disable_temporary_tables;
    let staging = staging_name(&name.table);
    let place = if temporary {
        format!("pg_temp.{}", quote_ident(&staging))
    } else {
        format!("{}.{}", quote_ident(&name.schema), quote_ident(&staging))
    };
    let casts: Vec<_> = fit.columns.iter().map(|column| column.cutting_cast.clone()).collect();
    connection.run_for(&ddl::staging_sql(&staging, &name, &columns, temporary), purpose).await?;
    for (column, _) in columns.iter().zip(&casts).filter(|(_, cast)| cast.is_some()) {
        // the cast is what cuts, so the staging table takes the whole text
        let widened = format!("alter table {place} alter column {column} type text");
        connection.run_for(&widened, purpose).await?;
    }
    let sent = copy(connection, &place, &columns, batch, fit, survivors, &name.table).await?;
    let selected: Vec<_> = columns
        .iter()
        .zip(&casts)
        .map(|(column, cast)| match cast {
            Some(cast) => format!("{column}::{cast}"),
            None => column.clone(),
        })
        .collect();
    let constraint = key_constraint.as_deref().filter(|_| is_merged);
    let merge = ddl::merge_sql(&place, &name, &columns, &selected, constraint);
    let loaded = connection.execute(&merge, purpose).await?;
    connection.run_for(&format!("drop table {place}"), purpose).await?;
    Ok(LoadCounts { loaded, merged: total - sent })
}

/// Streams a batch into a table; encoding runs beside sending. Returns the number of rows stored.
async fn copy(
    connection: &mut Connection,
    place: &str,
    columns: &[String],
    batch: Batch,
    fit: Fit,
    survivors: Option<Vec<bool>>,
    table: &str,
) -> Result<u64, LoadError> {
    let purpose = Purpose::Rows { table };
    let sql = format!("copy {place} ({}) from stdin", columns.join(", "));
    let (sender, mut chunks) = mpsc::channel(CHUNKS_AHEAD);
    let encoding =
        tokio::task::spawn_blocking(move || encode(batch, &fit, survivors.as_deref(), &sender));
    let stored = connection.copy(&sql, &mut chunks, purpose).await;
    drop(chunks); // after a refusal the encoder waits for room in it
    if encoding.await.is_err() {
        // the rows sent are not all rows
        connection.give_up();
        return Err(LoadError::config("encoding the batch panicked; see the log"));
    }
    stored
}

fn encode(batch: Batch, fit: &Fit, survivors: Option<&[bool]>, sender: &mpsc::Sender<Vec<u8>>) {
    let names: Vec<Box<str>> = batch.columns.iter().map(|column| column.name.clone()).collect();
    let mut encoder = Encoder::new(fit, &names);
    let mut text = Vec::with_capacity(CHUNK + CHUNK / 8);
    let mut number = 0;
    for rows in batch.rows.into_chunks() {
        for row in rows.rows() {
            if survivors.is_none_or(|survivors| survivors[number]) {
                encoder.encode(number, row, &mut text);
            }
            number += 1;
            if text.len() >= CHUNK {
                let full = std::mem::replace(&mut text, Vec::with_capacity(CHUNK + CHUNK / 8));
                if sender.blocking_send(full).is_err() {
                    return; // the server refused; the sending side knows why
                }
            }
        }
    } // each chunk of rows is freed once it is encoded
    if !text.is_empty() && sender.blocking_send(text).is_err() {
        warn!("the server ended a copy before its last rows");
    }
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

fn staging_name(table: &str) -> String {
    let start: String = table.chars().take(STAGING_NAME).collect();
    // 16 digits, as many as the original's milliseconds and random number have
    let digits = Uuid::new_v4().as_u128() % 10_000_000_000_000_000;
    format!("{start}_tmp{digits:016}")
}
