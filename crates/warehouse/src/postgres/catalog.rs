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
    pub(crate) way: Way,
    /// Another one after each change of the shape; see [`version_sql`].
    pub(super) version: String,
    /// Whether our role may lock the whole table. With rights on columns alone it may not.
    pub(super) is_lockable: bool,
}

/// How rows get into a table so that all happens that INSERT would make happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Way {
    /// By COPY.
    #[default]
    Copy,
    /// By INSERT: COPY knows no rules, is refused under row level security, and stands still where
    /// a trigger has so much to say that it waits for us to listen.
    Insert,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableColumn {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    /// As the catalog prints it.
    pub(crate) sql_type: String,
    pub(crate) filled: Filled,
}

/// What a column has in a row that does not name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Filled {
    /// NULL.
    #[default]
    Never,
    /// Its default, or the next value of its identity.
    ByDefault,
    /// The time at which the transaction began.
    ByClock,
    /// The next value of its identity; a row that names it has to override that.
    Always,
    /// What PostgreSQL computes; no row may name it.
    Computed,
}

/// The primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) constraint: String,
    /// In key order.
    pub(crate) columns: Vec<String>,
    /// Rows cannot be merged by it: PostgreSQL looks at it too late.
    pub(crate) is_deferrable: bool,
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
            let part = table
                .read_row(row)
                .map_err(|_| LoadError::config("the catalog answers in another shape"))?;
            key.extend(part);
        }
        key.sort_unstable();
        if let Some(found) = &mut table.key {
            found.columns = key.into_iter().map(|(_, name)| name).collect();
        }
        Ok(Some(table))
    }

    /// Takes one row of [`shape_sql`]; answers the column's place in the key, if it has one.
    fn read_row(&mut self, row: &PgRow) -> Result<Option<(i64, String)>, sqlx::Error> {
        let attribute_count: i16 = row.try_get(4)?;
        self.attribute_count = usize::try_from(attribute_count).unwrap_or(0);
        self.way = if row.try_get(5)? { Way::Insert } else { Way::Copy };
        self.version = row.try_get(6)?;
        self.is_lockable = row.try_get(7)?;
        let (Some(name), Some(sql_type)): (Option<String>, Option<String>) =
            (row.try_get(0)?, row.try_get(1)?)
        else {
            return Ok(None); // a table without columns
        };
        let is_deferrable = row.try_get::<Option<bool>, _>(12)?.unwrap_or_default();
        let part = key_part(row)?.map(|(constraint, position)| {
            let columns = Vec::new();
            self.key.get_or_insert(Key { constraint, columns, is_deferrable });
            (position, name.clone())
        });
        let filled = filled(row)?;
        let data_type = data_type(&sql_type);
        self.columns.push(TableColumn { name, data_type, sql_type, filled });
        Ok(part)
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

    /// What the column has in a row that does not name it.
    pub(super) fn filled(&self, column: &str) -> Filled {
        self.column(column).map_or(Filled::Never, |column| column.filled)
    }

    /// Whether rows that were fitted to this table fit `later`, what that table became.
    pub(super) fn is_contained_in(&self, later: &Table) -> bool {
        let is_there = |column| later.columns.contains(column);
        self.version == later.version || self.way == later.way && self.columns.iter().all(is_there)
    }
}

fn key_part(row: &PgRow) -> Result<Option<(String, i64)>, sqlx::Error> {
    let constraint: Option<String> = row.try_get(2)?;
    let position: Option<i64> = row.try_get(3)?;
    Ok(constraint.zip(position))
}

fn filled(row: &PgRow) -> Result<Filled, sqlx::Error> {
    let (identity, generated): (String, String) = (row.try_get(8)?, row.try_get(9)?);
    let (has_default, is_clock): (bool, bool) = (row.try_get(10)?, row.try_get(11)?);
    Ok(match (generated.as_str(), identity.as_str()) {
        ("", "a") => Filled::Always,
        ("", "") if is_clock => Filled::ByClock,
        ("", "") if !has_default => Filled::Never,
        ("", _) => Filled::ByDefault,
        _ => Filled::Computed, // stored or, from PostgreSQL 18 on, virtual
    })
}

/// A row per column: name, type, the key constraint with the column's place in it, the number of
/// columns, dropped ones included, whether rows have to be inserted, the version, whether the table
/// can be locked, and what fills the column. The default of a column is looked at in keys only.
fn shape_sql(name: &TableName) -> String {
    format!(
        "select a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), \
         k.conname::text, pg_catalog.array_position(k.conkey, a.attnum)::bigint, c.relnatts, \
         c.needs_insert, c.version, c.is_lockable, \
         a.attidentity::text, a.attgenerated::text, a.atthasdef, \
         k.conname is not null and a.atthasdef and exists (select from pg_catalog.pg_attrdef d \
         where d.adrelid = c.oid and d.adnum = a.attnum \
         and pg_catalog.pg_get_expr(d.adbin, c.oid) ~* '{CLOCK}'), k.condeferrable \
         from ({}) c \
         left join pg_catalog.pg_attribute a \
         on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
         left join pg_catalog.pg_constraint k \
         on k.conrelid = c.oid and k.contype = 'p' and a.attnum = any (k.conkey) \
         order by a.attnum",
        class_sql(name)
    )
}

/// What there is to say of the whole table; asked once, and not for each of its columns.
fn class_sql(name: &TableName) -> String {
    format!(
        "select c.oid, c.relnatts, {NEEDS_INSERT} as needs_insert, {} as version, \
         pg_catalog.has_table_privilege(c.oid, 'insert, update, delete, truncate') as is_lockable \
         from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where c.relkind in ('r', 'p') and n.nspname = {} and c.relname = {} offset 0",
        version_sql("c"),
        quote_literal(&name.schema),
        quote_literal(&name.table)
    )
}

/// Whether COPY cannot do what INSERT does. Of triggers those count that fire while rows are still
/// being sent.
const NEEDS_INSERT: &str = "pg_catalog.row_security_active(c.oid) or c.relhasrules and exists \
    (select from pg_catalog.pg_rewrite r where r.ev_class = c.oid and r.ev_type = '3' \
    and r.ev_enabled <> 'D') or c.relhastriggers and exists (select from pg_catalog.pg_trigger t \
    where t.tgrelid = c.oid and t.tgenabled <> 'D' and not t.tgisinternal and t.tgtype & 7 = 7) \
    and pg_catalog.has_database_privilege(pg_catalog.current_database(), 'temporary')";

/// Defaults that are one moment for a whole transaction, with or without a cast around them.
const CLOCK: &str = "current_timestamp|localtimestamp|(now|transaction_timestamp)[(][)]";

/// Stands for the shape of the table of this alias: a transaction that changed any of its catalog
/// entries has left its number there.
fn version_sql(class: &str) -> String {
    format!(
        "concat_ws(' ', {class}.oid, {class}.xmin, \
         (select concat_ws(' ', count(*), sum(a.xmin::text::bigint)) \
         from pg_catalog.pg_attribute a where a.attrelid = {class}.oid), \
         (select concat_ws(' ', k.oid, k.xmin) from pg_catalog.pg_constraint k \
         where k.conrelid = {class}.oid and k.contype = 'p'), \
         case when {class}.relhastriggers then (select concat_ws(' ', count(*), \
         sum(t.xmin::text::bigint), sum(p.xmin::text::bigint)) \
         from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid \
         where t.tgrelid = {class}.oid and not t.tgisinternal) end)"
    )
}

/// Locks a table as every statement does that changes its rows, and answers its version. From then
/// on, and until the transaction ends, its shape stays.
pub(super) fn lock_shape_sql(name: &TableName, is_lockable: bool) -> String {
    let lock = format!("lock table only {} in row exclusive mode; ", name.quoted());
    format!(
        "{}select {} from pg_catalog.pg_class c where c.oid = {}::regclass",
        if is_lockable { lock.as_str() } else { "" },
        version_sql("c"),
        quote_literal(&name.quoted())
    )
}
