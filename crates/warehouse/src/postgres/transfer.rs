//! Rows on their way into a table: by COPY straight into it, or through a staging table where they
//! are merged, cast, or take the place of all others.

use std::collections::HashSet;

use tokio::sync::mpsc;
use tracing::warn;

use super::{
    barred::Barred,
    binary::BinaryWriter,
    catalog::Table,
    client::Connection,
    ddl::{self, Insertion, KeyChange, NewColumn, Staging},
    encode::Encoder,
    error::Purpose,
    fit::{Against, Fit, Free},
    one_by_one,
    pool::Postgres,
    prepared::{OneByOne, Prepared},
    quote_ident,
    row_writer::RowWriter,
    selection::Selection,
};
use crate::{
    error::LoadError,
    rows::{
        batch::{Batch, Replaces},
        columns::Column,
        convert::TextStyle,
    },
};

/// Bytes of COPY text that are sent at once.
const CHUNK: usize = 128 << 10;
/// Chunks that are encoded ahead of the socket.
const CHUNKS_AHEAD: usize = 2;

/// Sends rows of a prepared batch; answers how many were inserted or updated, those counted that a
/// trigger or a rule of the table took elsewhere. Nothing of what the batch replaces is touched
/// here.
pub(super) async fn send(
    connection: &mut Connection,
    prepared: &Prepared,
    rows: &Selection,
) -> Result<u64, LoadError> {
    let Prepared { batch, name, fit, .. } = prepared;
    if prepared.one_by_one != OneByOne::Never {
        one_by_one::send(connection, prepared, rows).await?;
        return Ok(rows.len() as u64);
    }
    if prepared.goes_by_copy() {
        return copy(connection, &name.quoted(), prepared, rows).await;
    }
    let purpose = Purpose::Rows { table: &name.table };
    let staging = Staging::new(name, !batch.options.disable_temporary_tables);
    connection.run_for(&staging.create_like_sql(name, &fit.quoted_columns()), purpose).await?;
    widen_cast_columns(connection, &staging, fit, purpose).await?;
    if prepared.part() > 0 {
        let key = ddl::quoted_list(&batch.key_columns());
        let unique = format!("alter table {} add primary key ({key})", staging.quoted());
        connection.run_for(&unique, purpose).await?;
    }
    copy(connection, &staging.quoted(), prepared, rows).await?;
    insert_staged(connection, prepared, &staging, prepared.merged_by()).await?;
    Ok(rows.len() as u64)
}

/// Moves rows from their staging table into the table, and drops the former.
async fn insert_staged(
    connection: &mut Connection,
    prepared: &Prepared,
    staging: &Staging,
    merged_by: Option<&str>,
) -> Result<(), LoadError> {
    let Prepared { name, fit, .. } = prepared;
    let purpose = Purpose::Rows { table: &name.table };
    let (columns, always_own) = (fit.quoted_columns(), prepared.always_own());
    let insertion =
        Insertion { target: name, columns: &columns, always_own: &always_own, merged_by };
    let staged = staging.quoted();
    let rows = format!("select {} from {staged}", selected(fit, &columns).join(", "));
    connection.execute(&insertion.sql(&rows), purpose).await?;
    connection.run_for(&format!("drop table {staged}"), purpose).await.map(drop)
}

/// Empties what the batch replaces, as far as that has to happen before its rows are sent.
pub(super) async fn make_room(
    connection: &mut Connection,
    prepared: &Prepared,
) -> Result<(), LoadError> {
    let Prepared { batch, name, .. } = prepared;
    let Some(partition) = batch.partition().filter(|_| prepared.table.is_some()) else {
        return Ok(());
    };
    let sql = ddl::delete_partition_sql(name, &batch.partition_column(), partition);
    connection.execute(&sql, Purpose::Rows { table: &name.table }).await.map(drop)
}

/// Puts the rows in the place of all that the table has: they are all there before the table is
/// emptied. Columns that the table has besides stay.
pub(super) async fn replace_all(
    postgres: &Postgres,
    connection: &mut Connection,
    prepared: &Prepared,
    rows: &Selection,
) -> Result<u64, LoadError> {
    let Prepared { batch, name, fit, .. } = prepared;
    let (as_rows, as_schema) =
        (Purpose::Rows { table: &name.table }, Purpose::Schema { table: &name.table });
    let staging = Staging::new(name, !batch.options.disable_temporary_tables);
    connection.run_for(&staging.create_sql(&fit.missing), as_rows).await?;
    widen_cast_columns(connection, &staging, fit, as_rows).await?;
    copy(connection, &staging.quoted(), prepared, rows).await?;

    postgres.keep_others_out(connection, name).await?;
    let table = Table::read(connection, name).await?.unwrap_or_default();
    let is_lacking = |column: &&NewColumn| table.column(&column.name).is_none();
    let lacking: Vec<_> = fit.missing.iter().filter(is_lacking).cloned().collect();
    let key = batch.key_columns();
    let mut statements = Vec::new();
    if !lacking.is_empty() {
        statements.push(ddl::add_columns_sql(name, &lacking, &[]));
    }
    let change = ddl::key_change(name, table.key.as_ref(), &key);
    if let KeyChange::Drop(old) | KeyChange::Set { instead_of: Some(old) } = &change {
        statements.push(ddl::drop_constraint_sql(name, old));
    }
    statements.push(format!("truncate table {}", name.quoted()));
    if matches!(change, KeyChange::Set { .. }) {
        statements.push(ddl::add_key_sql(name, &key)); // over no rows
    }
    for statement in &statements {
        connection.run_for(statement, as_schema).await?;
    }
    insert_staged(connection, prepared, &staging, None).await?;
    Ok(rows.len() as u64)
}

/// What an empty batch replaces.
pub(super) async fn empty(
    postgres: &Postgres,
    connection: &mut Connection,
    prepared: &Prepared,
) -> Result<(), LoadError> {
    let Prepared { batch, name, table, .. } = prepared;
    match batch.replaces {
        Replaces::Table if table.is_some() => {
            postgres.keep_others_out(connection, name).await?;
            let sql = format!("truncate table {}", name.quoted());
            connection.run_for(&sql, Purpose::Schema { table: &name.table }).await.map(drop)
        }
        Replaces::Partition => make_room(connection, prepared).await,
        Replaces::Table | Replaces::Nothing => Ok(()),
    }
}

/// The cast is what cuts, so the staging table takes the whole text.
async fn widen_cast_columns(
    connection: &mut Connection,
    staging: &Staging,
    fit: &Fit,
    purpose: Purpose<'_>,
) -> Result<(), LoadError> {
    for column in fit.columns.iter().filter(|column| column.cutting_cast().is_some()) {
        let name = quote_ident(&column.name);
        let sql = format!("alter table {} alter column {name} type text", staging.quoted());
        connection.run_for(&sql, purpose).await?;
    }
    Ok(())
}

/// The expressions that take the columns out of the staging table.
fn selected(fit: &Fit, columns: &[String]) -> Vec<String> {
    columns
        .iter()
        .zip(&fit.columns)
        .map(|(name, column)| match column.cutting_cast() {
            Some(cast) => format!("{name}::{cast}"),
            None => name.clone(),
        })
        .collect()
}

/// Streams rows into a table; encoding runs beside sending. Returns the number of rows sent: the
/// server does not count those that a trigger took.
pub(super) async fn copy(
    connection: &mut Connection,
    place: &str,
    prepared: &Prepared,
    rows: &Selection,
) -> Result<u64, LoadError> {
    let Prepared { batch, name, fit, .. } = prepared;
    let purpose = Purpose::Rows { table: &name.table };
    let format = writer(fit, batch.columns()).format();
    let columns = fit.quoted_columns().join(", ");
    let sql = format!("copy {place} ({columns}) from stdin with (format {format})");
    let (sender, mut chunks) = mpsc::channel(CHUNKS_AHEAD);
    let sent = rows.len() as u64;
    let (batch, fit, rows) = (batch.clone(), fit.clone(), rows.clone());
    let encoding = tokio::task::spawn_blocking(move || send_rows(&batch, &fit, &rows, &sender));
    let stored = connection.copy(&sql, &mut chunks, purpose).await;
    drop(chunks); // after a refusal the encoder waits for room in it
    let encoded = encoding
        .await
        .unwrap_or_else(|_| Err(LoadError::config("encoding the batch panicked; see the log")));
    if encoded.is_err() {
        connection.give_up(); // the rows sent are not all rows
    }
    encoded.and(stored).map(|_| sent)
}

/// The fastest format that takes all values of the batch.
fn writer<'a>(fit: &'a Fit, columns: &'a [Column]) -> Box<dyn RowWriter + 'a> {
    match BinaryWriter::new(fit) {
        Some(binary) => Box::new(binary),
        None => Box::new(Encoder::new(fit, columns)),
    }
}

fn send_rows(
    batch: &Batch,
    fit: &Fit,
    rows: &Selection,
    sender: &mpsc::Sender<Vec<u8>>,
) -> Result<(), LoadError> {
    let mut writer = writer(fit, batch.columns());
    let mut text = Vec::with_capacity(CHUNK + CHUNK / 8);
    writer.begin(&mut text);
    batch.rows.visit(rows.range.clone(), |number, row| {
        if rows.has(number) {
            writer.row(number, row, &mut text);
        }
        if text.len() < CHUNK {
            return true;
        }
        let full = std::mem::replace(&mut text, Vec::with_capacity(CHUNK + CHUNK / 8));
        // the server refused; the sending side knows why
        sender.blocking_send(full).is_ok()
    })?;
    writer.end(&mut text);
    if !text.is_empty() && sender.blocking_send(text).is_err() {
        warn!("the server ended a copy before its last rows");
    }
    Ok(())
}

/// The rows of a batch as COPY text for a table that is made for them, with its columns: what a
/// load would send. For looking at a batch without a database.
pub fn copy_text(batch: &Batch) -> Result<(Vec<String>, Vec<u8>), LoadError> {
    let (made, barred) = (HashSet::new(), Barred::default());
    let against = Against {
        table: None,
        target: None,
        made: &made,
        barred: &barred,
        free: Free::None,
        style: TextStyle::Short,
        is_by_event: false,
    };
    let fit = Fit::new(batch, against)?;
    let mut text = Vec::new();
    let mut encoder = Encoder::new(&fit, batch.columns());
    batch.rows.visit(0..batch.row_count(), |number, row| {
        encoder.encode(number, row, &mut text);
        true
    })?;
    Ok((fit.columns.into_iter().map(|column| column.name).collect(), text))
}
