//! What a table needs that is not there yet: its schema, and the column of its index.

use tracing::warn;

use super::{
    catalog::TableName, client::Connection, error::Purpose, fit::Fit, quote_ident, quote_literal,
};
use crate::{error::LoadError, rows::batch::Batch};

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

/// Makes the table's schema where there is none.
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
