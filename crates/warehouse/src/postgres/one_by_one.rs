//! Rows as statements of their own, one after the other.
//!
//! The slow way, and the one that all others have to agree with: a column that a row does not have
//! is not named, so it keeps what the table has, or gets its default. Batches go this way where one
//! statement for all rows would leave something else ([`OneByOne`](super::prepared::OneByOne)).

use super::{
    catalog::Filled, client::Connection, ddl::Insertion, encode::Encoder, error::Purpose,
    prepared::Prepared, quote_ident, quote_literal, selection::Selection,
};
use crate::{error::LoadError, rows::row::Row};

/// Rows whose statements are made before they are sent.
const ROWS_AHEAD: usize = 256;
/// Bytes of statements that are sent at once, unless one is longer.
const BYTES_AT_ONCE: usize = 256 << 10;

/// Inserts rows in their order, or updates those of their keys.
pub(super) async fn send(
    connection: &mut Connection,
    prepared: &Prepared,
    rows: &Selection,
) -> Result<(), LoadError> {
    let purpose = Purpose::Rows { table: &prepared.name.table };
    let mut inserting = RowInsert::new(prepared).in_one_transaction();
    for start in rows.range.clone().step_by(ROWS_AHEAD) {
        let part = rows.part(start..rows.range.end.min(start + ROWS_AHEAD));
        for statements in statements(&mut inserting, prepared, &part)? {
            connection.execute(&statements, purpose).await?;
        }
    }
    Ok(())
}

/// The statements for some rows, as many together as are sent at once.
fn statements(
    inserting: &mut RowInsert<'_>,
    prepared: &Prepared,
    rows: &Selection,
) -> Result<Vec<String>, LoadError> {
    let mut together = Vec::new();
    let mut text = String::new();
    prepared.batch.rows.visit(rows.range.clone(), |number, row| {
        if rows.has(number) {
            // a row without any value is one of defaults alone
            let sql = inserting.sql(number, row).unwrap_or_else(|| inserting.of_defaults());
            text.push_str(&sql);
            text.push_str("; ");
        }
        if text.len() >= BYTES_AT_ONCE {
            together.push(std::mem::take(&mut text));
        }
        true
    })?;
    together.extend(Some(text).filter(|text| !text.is_empty()));
    Ok(together)
}

/// Makes the statement of a row.
pub(super) struct RowInsert<'a> {
    prepared: &'a Prepared,
    encoder: Encoder<'a>,
    merged_by: Option<&'a str>,
    /// Quoted names of all columns whose identity is always the table's own.
    always_own: Vec<String>,
    /// Columns of the key that would have the same moment in all rows of a transaction.
    by_clock: Vec<&'a str>,
}

impl<'a> RowInsert<'a> {
    pub(super) fn new(prepared: &'a Prepared) -> RowInsert<'a> {
        RowInsert {
            prepared,
            encoder: Encoder::new(&prepared.fit, prepared.batch.columns()),
            merged_by: prepared.merged_by(),
            always_own: prepared.always_own(),
            by_clock: Vec::new(),
        }
    }

    /// The same for more than one row of a transaction: what each of them would have had in one of
    /// its own, it has here too.
    fn in_one_transaction(mut self) -> RowInsert<'a> {
        if let Some(table) = &self.prepared.table {
            let key = table.key.iter().flat_map(|key| &key.columns);
            let by_clock = key.filter(|column| table.filled(column) == Filled::ByClock);
            self.by_clock = by_clock.map(String::as_str).collect();
        }
        self
    }

    /// `None`: the row has no value.
    pub(super) fn sql(&mut self, number: usize, row: Row<'_>) -> Option<String> {
        let Prepared { fit, .. } = self.prepared;
        let texts = self.encoder.texts(number, row);
        let mut value_of: Vec<Option<String>> = vec![None; fit.columns.len()];
        let is_empty = texts.is_empty();
        for (column, text) in texts {
            let cast = fit.columns[column as usize].cast.as_ref();
            let cast = cast.map(|cast| format!("::{cast}")).unwrap_or_default();
            value_of[column as usize] = Some(format!("{}{cast}", quote_literal(&text)));
        }
        if is_empty && self.prepared.is_by_event {
            return None;
        }
        let (mut columns, mut values) = (Vec::new(), Vec::new());
        for (column, value) in fit.columns.iter().zip(value_of) {
            let Some(value) = value.or_else(|| self.prepared.absent_value(&column.name)) else {
                continue;
            };
            columns.push(quote_ident(&column.name));
            values.push(value);
        }
        for column in &self.by_clock {
            let column = quote_ident(column);
            if !columns.contains(&column) {
                columns.push(column);
                values.push("pg_catalog.clock_timestamp()".to_owned());
            }
        }
        let rows = format!("values ({})", values.join(", "));
        Some(self.insertion(&columns).sql(&rows))
    }

    fn of_defaults(&self) -> String {
        self.insertion(&[]).sql("")
    }

    fn insertion<'c>(&'c self, columns: &'c [String]) -> Insertion<'c> {
        let target = &self.prepared.name;
        Insertion { target, columns, always_own: &self.always_own, merged_by: self.merged_by }
    }
}
