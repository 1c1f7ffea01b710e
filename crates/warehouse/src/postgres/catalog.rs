//! Tables as they are in the database.

use sqlx::{Row, postgres::PgRow};

use super::{client::Connection, error::Purpose, quote_ident, quote_literal};
use crate::{
    error::LoadError,
    load::LoadedTable,
    rows::{data_type::DataType, type_names::data_type},
};

/// A table's name in its schema; both are final, not raw.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TableName {
    pub(crate) schema: String,
    pub(crate) table: String,
}

impl TableName {
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.table))
    }
}

/// A table's shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) columns: Vec<TableColumn>,
    pub(crate) key: Option<Key>,
    /// Columns that the table ever had: dropped ones count against PostgreSQL's limit.
    pub(crate) attribute_count: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableColumn {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    /// As the catalog prints it.
    pub(crate) sql_type: String,
}

/// The primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) constraint: String,
    /// In key order.
    pub(crate) columns: Vec<String>,
}

impl Table {
    /// Reads the table's shape. `None`: there is no such table, ordinary or partitioned.
    pub(crate) async fn read(
        connection: &mut Connection,
        name: &TableName,
    ) -> Result<Option<Table>, LoadError> {
        let rows = connection.run_for(&shape_sql(name), Purpose::Other).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut table = Table::default();
        let mut key: Vec<(i64, String)> = Vec::new();
        for row in &rows {
            let read = || -> Result<_, sqlx::Error> {
                let name: Option<String> = row.try_get(0)?;
                let sql_type: Option<String> = row.try_get(1)?;
                let attribute_count: i16 = row.try_get(4)?;
                Ok((name, sql_type, key_part(row)?, attribute_count))
            };
            let (name, sql_type, part, attribute_count) =
                read().map_err(|_| LoadError::config("the catalog answers in another shape"))?;
            table.attribute_count = usize::try_from(attribute_count).unwrap_or(0);
            let (Some(name), Some(sql_type)) = (name, sql_type) else {
                continue; // a table without columns
            };
            if let Some((constraint, position)) = part {
                table.key.get_or_insert_with(|| Key { constraint, columns: Vec::new() });
                key.push((position, name.clone()));
            }
            table.columns.push(TableColumn { data_type: data_type(&sql_type), name, sql_type });
        }
        key.sort_unstable();
        if let Some(found) = &mut table.key {
            found.columns = key.into_iter().map(|(_, name)| name).collect();
        }
        Ok(Some(table))
    }

    /// What a report says of the table.
    pub(crate) fn describe(&self, batch: usize, name: &str) -> LoadedTable {
        let columns = self.columns.iter();
        LoadedTable {
            batch,
            name: name.to_owned(),
            columns: columns.map(|column| (column.name.clone(), column.sql_type.clone())).collect(),
            key: self.key.as_ref().map(|key| key.columns.clone()).unwrap_or_default(),
            key_name: self.key.as_ref().map(|key| key.constraint.clone()),
        }
    }

    pub(crate) fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

fn key_part(row: &PgRow) -> Result<Option<(String, i64)>, sqlx::Error> {
    let constraint: Option<String> = row.try_get(2)?;
    let position: Option<i64> = row.try_get(3)?;
    Ok(constraint.zip(position))
}

/// A row per column: name, type, the key constraint with the column's place in it, and the number
/// of columns, dropped ones included.
fn shape_sql(name: &TableName) -> String {
    format!(
        "select a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), \
         k.conname::text, pg_catalog.array_position(k.conkey, a.attnum)::bigint, c.relnatts \
         from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         left join pg_catalog.pg_attribute a \
         on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
         left join pg_catalog.pg_constraint k \
         on k.conrelid = c.oid and k.contype = 'p' and a.attnum = any (k.conkey) \
         where c.relkind in ('r', 'p') and n.nspname = {} and c.relname = {} order by a.attnum",
        quote_literal(&name.schema),
        quote_literal(&name.table)
    )
}
