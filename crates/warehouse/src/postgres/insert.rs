//! One event at a time: visible at once, with statements of its own.
//!
//! Columns that the event does not have keep what the table has, or get their default.

use std::sync::Arc;

use super::{
    catalog::Table,
    change::{Prepared, Rules},
    client::Connection,
    encode::Encoder,
    error::Purpose,
    pool::Postgres,
    quote_ident, quote_literal,
};
use crate::{
    error::LoadError,
    load::SchemaChanges,
    rows::{batch::Batch, convert::TextStyle, row::RowError},
};

/// Changes of the table stand also when the event is refused afterwards.
const RULES: Rules = Rules {
    changes: SchemaChanges::BeforeLoad,
    style: TextStyle::Milliseconds,
    first_row_is_free: true,
    is_literal: true,
};

impl Postgres {
    /// Inserts the one row of `batch`, or updates the row of its key. `known` is the table as the
    /// last call left it.
    pub(crate) async fn insert(
        &self,
        batch: Batch,
        known: Option<Table>,
    ) -> Result<Option<Table>, LoadError> {
        let mut connection = self.connection().await?;
        let inserted = self.insert_on(&mut connection, batch, known).await;
        if inserted.as_ref().is_err_and(|error| error.server_error().is_some()) {
            connection.roll_back_and_close().await;
        }
        inserted
    }

    async fn insert_on(
        &self,
        connection: &mut Connection,
        batch: Batch,
        known: Option<Table>,
    ) -> Result<Option<Table>, LoadError> {
        let prepared = self.prepare(connection, Arc::new(batch), RULES, known).await?;
        let Some(insert) = insert_sql(&prepared)? else {
            return Err(LoadError::Row(RowError::NoColumn));
        };
        let purpose = Purpose::Rows { table: &prepared.name.table };
        connection.run_for(&format!("{}; {insert}; commit", self.begin_sql()), purpose).await?;
        Ok(prepared.table)
    }
}

/// `None`: the row has no value.
fn insert_sql(prepared: &Prepared) -> Result<Option<String>, LoadError> {
    let Prepared { batch, name, fit, table, .. } = prepared;
    let mut values = Vec::new();
    batch.rows.visit(0..1, |number, row| {
        values = Encoder::new(fit, batch.columns()).texts(number, row);
        true
    })?;
    if values.is_empty() {
        return Ok(None);
    }
    let (mut columns, mut literals, mut updates) = (Vec::new(), Vec::new(), Vec::new());
    for (column, text) in values {
        let column = &fit.columns[column as usize];
        let quoted = quote_ident(&column.name);
        let cast = column.cast.as_ref().map(|cast| format!("::{cast}")).unwrap_or_default();
        literals.push(format!("{}{cast}", quote_literal(&text)));
        updates.push(format!("{quoted} = excluded.{quoted}"));
        columns.push(quoted);
    }
    let key = table.as_ref().and_then(|table| table.key.as_ref());
    let conflict = match key.filter(|_| batch.options.deduplicate) {
        Some(key) => format!(
            " on conflict on constraint {} do update set {}",
            quote_ident(&key.constraint),
            updates.join(", ")
        ),
        None => String::new(),
    };
    Ok(Some(format!(
        "insert into {} ({}) values ({}){conflict}",
        name.quoted(),
        columns.join(", "),
        literals.join(", ")
    )))
}
