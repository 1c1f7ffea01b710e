//! What the database says about a table.

use std::collections::BTreeMap;

use sqlx::{Connection, PgConnection, Row};
use warehouse::postgres::{quote_ident, quote_literal};

/// A row: column → text form.
pub(crate) type RowText = BTreeMap<String, Option<String>>;

/// A table as the catalogs describe it.
#[derive(Debug, Default)]
pub(crate) struct TableShape {
    /// Column and type, in physical order.
    pub(crate) columns: Vec<(String, String)>,
    /// NOT NULL columns and their defaults.
    pub(crate) not_null: BTreeMap<String, String>,
    pub(crate) key: Vec<String>,
    pub(crate) key_name: Option<String>,
    /// Column lists of the indexes that are not unique.
    pub(crate) indexes: Vec<Vec<String>>,
}

/// A session of its own beside the loader's.
pub(crate) struct Inspector {
    connection: PgConnection,
}

impl Inspector {
    pub(crate) async fn connect(url: &str) -> sqlx::Result<Inspector> {
        let mut connection = PgConnection::connect(url).await?;
        sqlx::raw_sql("set timezone to 'UTC'").execute(&mut connection).await?;
        Ok(Inspector { connection })
    }

    pub(crate) async fn execute(&mut self, sql: &str) -> sqlx::Result<()> {
        // statements of the case file itself
        sqlx::raw_sql(sql).execute(&mut self.connection).await?;
        Ok(())
    }

    async fn texts(&mut self, sql: String) -> sqlx::Result<Vec<Vec<Option<String>>>> {
        // every name and literal in it went through the quoting functions
        let rows = sqlx::raw_sql(&sql).fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| (0..row.len()).map(|i| row.try_get(i)).collect()).collect()
    }

    pub(crate) async fn shape(&mut self, schema: &str, table: &str) -> sqlx::Result<TableShape> {
        let of_table = format!(
            "c.relkind = 'r' and n.nspname = {} and c.relname = {}",
            quote_literal(schema),
            quote_literal(table)
        );
        let mut shape = TableShape::default();
        let columns = self
            .texts(format!(
                "select a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull::text, \
                 coalesce(pg_get_expr(d.adbin, d.adrelid), '') \
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
                 left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum \
                 where {of_table} order by a.attnum"
            ))
            .await?;
        for column in columns {
            let [name, sql_type, not_null, default] = column.try_into().unwrap_or_default();
            let name = name.unwrap_or_default();
            if not_null.as_deref() == Some("true") {
                shape.not_null.insert(name.clone(), default.unwrap_or_default());
            }
            shape.columns.push((name, sql_type.unwrap_or_default()));
        }
        let indexes = self
            .texts(format!(
                "select i.indisunique::text, i.indisprimary::text, k.conname::text, a.attname::text, \
                 i.indexrelid::text \
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 join pg_index i on i.indrelid = c.oid \
                 cross join lateral unnest(i.indkey) with ordinality as part (attnum, place) \
                 join pg_attribute a on a.attrelid = c.oid and a.attnum = part.attnum \
                 left join pg_constraint k on k.conindid = i.indexrelid and k.contype = 'p' \
                 where {of_table} order by i.indexrelid, part.place"
            ))
            .await?;
        let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for index in indexes {
            let [unique, primary, key_name, column, oid] = index.try_into().unwrap_or_default();
            let column = column.unwrap_or_default();
            if primary.as_deref() == Some("true") {
                shape.key.push(column);
                shape.key_name = key_name;
            } else if unique.as_deref() != Some("true") {
                others.entry(oid.unwrap_or_default()).or_default().push(column);
            }
        }
        shape.indexes = others.into_values().collect();
        shape.indexes.sort();
        Ok(shape)
    }

    /// All rows, sorted by `order_by`: text by its bytes, nulls last.
    pub(crate) async fn rows(
        &mut self,
        schema: &str,
        table: &str,
        shape: &TableShape,
        order_by: &[String],
    ) -> sqlx::Result<Vec<RowText>> {
        let selected: Vec<_> =
            shape.columns.iter().map(|(name, _)| format!("{}::text", quote_ident(name))).collect();
        let order: Vec<_> = order_by.iter().map(|name| order_term(name, shape)).collect();
        let order = if order.is_empty() {
            String::new()
        } else {
            format!(" order by {}", order.join(", "))
        };
        let rows = self
            .texts(format!(
                "select {} from {}.{} as t{order}",
                selected.join(", "),
                quote_ident(schema),
                quote_ident(table)
            ))
            .await?;
        let names = || shape.columns.iter().map(|(name, _)| name.clone());
        Ok(rows.into_iter().map(|row| names().zip(row).collect()).collect())
    }

    /// Tables that a load should not have left behind.
    pub(crate) async fn leftovers(&mut self, table: &str) -> sqlx::Result<Vec<String>> {
        let start: String = table.chars().take(43).collect();
        let rows = self
            .texts(format!(
                "select relname::text from pg_class where relkind = 'r' \
                 and starts_with(relname, {0}) and substr(relname, length({0}) + 1) ~ '^[0-9]+$'",
                quote_literal(&format!("{start}_tmp"))
            ))
            .await?;
        Ok(rows.into_iter().flatten().flatten().collect())
    }
}

fn order_term(name: &str, shape: &TableShape) -> String {
    let is_text = shape.columns.iter().any(|(column, sql_type)| {
        column == name && (sql_type == "text" || sql_type.starts_with("character"))
    });
    let collation = if is_text { " collate \"C\"" } else { "" };
    // qualified: a plain name would mean the text that is selected under it
    format!("t.{}{collation} asc nulls last", quote_ident(name))
}
