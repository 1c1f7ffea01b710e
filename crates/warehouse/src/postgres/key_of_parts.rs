//! A primary key for a partitioned table that has rows: one for each partition first, beside its
//! traffic, then the table's, which takes those over and only changes the catalog.
//!
//! Invariant: a key that the table refuses is refused before anything is built, and what was built
//! for partitions goes again if the table's own key fails.

use sqlx::Row;
use tracing::warn;

use super::{
    catalog::{Key, Table, TableName},
    client::Connection,
    ddl::{self, KeyChange},
    error::Purpose,
    pool::Postgres,
    quote_literal,
};
use crate::error::{LoadError, ServerError};

/// The code and the words that PostgreSQL has for it.
const NOT_SUPPORTED: &str = "0A000";
const LACKS_COLUMNS: &str =
    "unique constraint on partitioned table must include all partitioning columns";

impl Postgres {
    /// Gives a partitioned table that has rows its key, which takes the place of `present`.
    pub(super) async fn build_key_of_parts(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
        present: Option<&Key>,
    ) -> Result<(), LoadError> {
        check_partition_columns(connection, name, key).await?;
        let mut statements = Vec::new();
        let mut made = Vec::new();
        let built = match ddl::key_change(name, present, key) {
            // the partitions have that one, too: the new one is built in its place, at once
            KeyChange::Set { instead_of: Some(old) } => {
                statements.push(ddl::drop_constraint_sql(name, &old));
                Ok(())
            }
            _ => self.build_keys_of_partitions(connection, name, key, &mut made).await,
        };
        statements.push(ddl::add_key_sql(name, key));
        let added = match built {
            Ok(()) => self.change_patiently(connection, name, &statements).await,
            Err(error) => Err(error),
        };
        if added.is_err() {
            self.drop_keys(connection, &made).await;
        }
        added
    }

    async fn build_keys_of_partitions(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
        made: &mut Vec<(TableName, String)>,
    ) -> Result<(), LoadError> {
        let purpose = Purpose::Schema { table: &name.table };
        for row in connection.run_for(&partitions_without_key_sql(name), purpose).await? {
            let (Ok(schema), Ok(table)) = (row.try_get(0), row.try_get(1)) else {
                continue;
            };
            let partition = TableName { schema, table };
            self.build_beside_traffic(connection, &partition, key).await?;
            let built = Table::read(connection, &partition).await?.and_then(|table| table.key);
            made.extend(built.map(|key| (partition, key.constraint)));
        }
        Ok(())
    }

    /// Takes the keys off partitions whose table did not get one.
    async fn drop_keys(&self, connection: &mut Connection, keys: &[(TableName, String)]) {
        for (partition, constraint) in keys {
            let dropped = ddl::drop_constraint_sql(partition, constraint);
            if let Err(error) = self.change_patiently(connection, partition, &[dropped]).await {
                warn!(table = partition.table, constraint, %error, "the key of a partition whose table did not get one cannot be removed; drop it by hand");
            }
        }
    }
}

/// Fails as PostgreSQL does where the key lacks a column that rows are put into partitions by.
async fn check_partition_columns(
    connection: &mut Connection,
    name: &TableName,
    key: &[String],
) -> Result<(), LoadError> {
    let purpose = Purpose::Schema { table: &name.table };
    for row in connection.run_for(&partition_columns_sql(name), purpose).await? {
        let Ok(column) = row.try_get::<Option<String>, _>(0) else {
            continue;
        };
        let lacking = match &column {
            Some(column) if key.contains(column) => continue,
            Some(column) => format!("the key lacks column \"{column}\""),
            None => "the table is partitioned by an expression".to_owned(),
        };
        let text = format!("{LACKS_COLUMNS}; {lacking}");
        let error = ServerError {
            sqlstate: NOT_SUPPORTED.to_owned(),
            table: Some(name.table.clone()),
            column,
            full_text: text.clone(),
            safe_text: Some(text),
            ..ServerError::default()
        };
        return Err(LoadError::Schema { table: name.table.clone(), error: Box::new(error) });
    }
    Ok(())
}

/// The columns that rows are put into partitions by, at all levels; NULL for an expression.
fn partition_columns_sql(name: &TableName) -> String {
    format!(
        "select a.attname::text from pg_catalog.pg_partition_tree({}::regclass) t \
         join pg_catalog.pg_partitioned_table p on p.partrelid = t.relid \
         cross join lateral pg_catalog.unnest(p.partattrs::int2[]) k (number) \
         left join pg_catalog.pg_attribute a on a.attrelid = p.partrelid and a.attnum = k.number \
         and k.number > 0 order by t.level",
        quote_literal(&name.quoted())
    )
}

fn partitions_without_key_sql(name: &TableName) -> String {
    format!(
        "select n.nspname::text, c.relname::text \
         from pg_catalog.pg_partition_tree({}::regclass) t \
         join pg_catalog.pg_class c on c.oid = t.relid \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where t.isleaf and c.relkind = 'r' and not exists (select from pg_catalog.pg_constraint k \
         where k.conrelid = c.oid and k.contype = 'p') order by c.relname",
        quote_literal(&name.quoted())
    )
}
