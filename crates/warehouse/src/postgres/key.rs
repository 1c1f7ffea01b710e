//! A primary key for a table that has rows, made while others read and write it.
//!
//! The index is built concurrently and NOT NULL is proven by a constraint that is validated without
//! a lock on writers, so the ALTER that attaches both only changes the catalog. Invariant: a step
//! that fails leaves nothing behind that slows or refuses other sessions' writes.
//!
//! A drop half way closes both connections, which ends the transaction that holds the table's lock,
//! and cancels the statement in hand. What may stay, after it or a killed process, is the index
//! `jitsu_pk_…` and, if its constraint was promised already, the check `jitsu_pk_…_nn`: the next
//! load drops them, or goes on with an index that is finished (`key_leftovers`).

use std::time::Duration;

use sqlx::Row;
use tracing::{info, warn};

use super::{
    catalog::{Table, TableName},
    client::Connection,
    ddl::{self, KeyChange},
    error::Purpose,
    patience::{Patience, undo_change},
    pool::Postgres,
    quote_ident, quote_literal,
};
use crate::{error::LoadError, load::SchemaChanges};

/// For an index over a large table.
pub(super) const BUILD_PATIENCE: Duration = Duration::from_secs(6 * 3600);

impl Postgres {
    /// Gives the table the key if it lacks it. A key that the table's rows refuse is an error, now
    /// and until rows or the table change. Takes a second connection.
    pub(super) async fn ensure_key(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
    ) -> Result<(), LoadError> {
        let wants_key = |table: Option<&Table>| {
            table.is_some_and(|table| {
                matches!(ddl::key_change(name, table.key.as_ref(), key), KeyChange::Set { .. })
            })
        };
        if !wants_key(Table::read(connection, name).await?.as_ref()) {
            return Ok(());
        }
        let purpose = Purpose::Schema { table: &name.table };
        let state = table_state(connection, name).await?;
        if let Some(error) = self.refused_keys().get(name, key, &state) {
            return Err(LoadError::Schema { table: name.table.clone(), error: Box::new(error) });
        }
        // the lock is held by a second connection: building an index concurrently wants no
        // transaction on the first, and this one takes no snapshot that the index would wait for
        let mut owner = self.connection().await?;
        let unlimited = "set local idle_in_transaction_session_timeout = 0";
        owner.begin(&format!("{}; {unlimited}", self.begin_sql())).await?;
        owner.run_for(&ddl::lock_table_sql(name), purpose).await?;
        let built = match wants_key(Table::read(&mut owner, name).await?.as_ref()) {
            true => self.build_key(connection, name, key).await,
            false => Ok(()), // another loader was faster
        };
        owner.roll_back().await?;
        if let Err(LoadError::Schema { error, .. } | LoadError::Refused { error, .. }) = &built
            && error.sqlstate.starts_with("23")
        {
            warn!(table = name.table, %error, "the table's rows do not allow the primary key; not tried again until they change");
            self.refused_keys().insert(name, key, state, (**error).clone());
        }
        built
    }

    async fn build_key(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
    ) -> Result<(), LoadError> {
        let purpose = Purpose::Schema { table: &name.table };
        let rows = format!("select 1 from {} limit 1", name.quoted());
        if connection.run_for(&rows, purpose).await?.is_empty() {
            let mut statements = self.old_key_dropped(connection, name, key).await?;
            statements.push(ddl::add_key_sql(name, key));
            return self.change_patiently(connection, name, &statements).await;
        }
        info!(table = name.table, key = ?key, "building a primary key beside the table's traffic");
        if is_partitioned(connection, name).await? {
            let present = Table::read(connection, name).await?.and_then(|table| table.key);
            return self.build_key_of_parts(connection, name, key, present.as_ref()).await;
        }
        self.build_beside_traffic(connection, name, key).await
    }

    /// Makes the key of an ordinary table, or of a partition, or goes on with what an earlier
    /// attempt left.
    pub(super) async fn build_beside_traffic(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
    ) -> Result<(), LoadError> {
        let adopted = self.end_leftovers(connection, name, key).await?;
        let is_built = adopted.is_some();
        let constraint = adopted.unwrap_or_else(ddl::key_name);
        let not_null = format!("{constraint}_nn");
        if !is_built {
            let built = format!(
                "create unique index concurrently {} on {} ({})",
                quote_ident(&constraint),
                name.quoted(),
                ddl::quoted_list(key)
            );
            let purpose = Purpose::Schema { table: &name.table };
            if let Err(error) = self.run_watched(connection, &built, purpose, &constraint).await {
                self.clean_up(connection, name, &constraint, &not_null).await;
                return Err(error);
            }
        }
        let attached = self.attach(connection, name, key, &constraint, &not_null).await;
        if attached.is_err() {
            self.clean_up(connection, name, &constraint, &not_null).await;
        }
        attached
    }

    /// The statement that drops the managed key that the new one comes instead of, if there is one.
    async fn old_key_dropped(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
    ) -> Result<Vec<String>, LoadError> {
        let present = Table::read(connection, name).await?.and_then(|table| table.key);
        Ok(match ddl::key_change(name, present.as_ref(), key) {
            KeyChange::Set { instead_of: Some(old) } => vec![ddl::drop_constraint_sql(name, &old)],
            KeyChange::Set { instead_of: None } | KeyChange::Nothing | KeyChange::Drop(_) => vec![],
        })
    }

    /// Makes a finished index the key. Of the steps only the proof looks at rows.
    async fn attach(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
        constraint: &str,
        not_null: &str,
    ) -> Result<(), LoadError> {
        let purpose = Purpose::Schema { table: &name.table };
        let (table, index, check) = (name.quoted(), quote_ident(constraint), quote_ident(not_null));
        let conditions: Vec<_> =
            key.iter().map(|column| format!("{} is not null", quote_ident(column))).collect();
        let conditions = conditions.join(" and ");
        let promised =
            format!("alter table {table} add constraint {check} check ({conditions}) not valid");
        self.change_patiently(connection, name, &[promised]).await?;
        let proven = format!("alter table {table} validate constraint {check}");
        self.run_watched(connection, &proven, purpose, not_null).await?;
        let mut statements = self.old_key_dropped(connection, name, key).await?;
        statements.push(format!(
            "alter table {table} add constraint {index} primary key using index {index}"
        ));
        statements.push(ddl::drop_constraint_sql(name, not_null));
        self.change_patiently(connection, name, &statements).await
    }

    /// Removes what a failed attempt left. What cannot be removed now is named in the log.
    async fn clean_up(
        &self,
        connection: &mut Connection,
        name: &TableName,
        index: &str,
        not_null: &str,
    ) {
        let index_dropped = self.drop_index(connection, name, index).await;
        let check_dropped = format!(
            "alter table {} drop constraint if exists {}",
            name.quoted(),
            quote_ident(not_null)
        );
        let check_dropped = self.change_patiently(connection, name, &[check_dropped]).await;
        for error in [index_dropped, check_dropped].into_iter().filter_map(Result::err) {
            warn!(table = name.table, index, constraint = not_null, %error, "what is left of a primary key that failed cannot be removed; drop it by hand");
        }
    }

    /// Runs statements that need the table for themselves for a moment, in a transaction of their
    /// own.
    pub(super) async fn change_patiently(
        &self,
        connection: &mut Connection,
        name: &TableName,
        statements: &[String],
    ) -> Result<(), LoadError> {
        let purpose = Purpose::Schema { table: &name.table };
        let mut patience = Patience::new(self.settings().schema_patience);
        loop {
            self.begin_change(connection, SchemaChanges::BeforeLoad).await?;
            match connection.run_for(&statements.join("; "), purpose).await {
                Ok(_) => return self.end_change(connection, SchemaChanges::BeforeLoad).await,
                Err(error) => {
                    undo_change(connection, SchemaChanges::BeforeLoad).await?;
                    if !error.is_lock_timeout() || !patience.is_left() {
                        return Err(error);
                    }
                    patience.wait(&name.table).await;
                }
            }
        }
    }
}

async fn is_partitioned(connection: &mut Connection, name: &TableName) -> Result<bool, LoadError> {
    let sql = format!(
        "select 1 from pg_catalog.pg_partitioned_table where partrelid = {}::regclass",
        quote_literal(&name.quoted())
    );
    Ok(!connection.run_for(&sql, Purpose::Schema { table: &name.table }).await?.is_empty())
}

/// What has to change before a refused key is worth another try: the table itself, or rows that
/// were updated or deleted. Added rows cannot help.
async fn table_state(connection: &mut Connection, name: &TableName) -> Result<String, LoadError> {
    let sql = format!(
        "select c.oid::text || ' ' || c.relfilenode::text || ' ' || c.relnatts::text || ' ' || \
         (select coalesce(sum(pg_catalog.pg_stat_get_tuples_updated(p.relid) \
         + pg_catalog.pg_stat_get_tuples_deleted(p.relid)), 0) from (select c.oid as relid union \
         select t.relid from pg_catalog.pg_partition_tree(c.oid) t) p)::text \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = {} and c.relname = {}",
        quote_literal(&name.schema),
        quote_literal(&name.table)
    );
    let rows = connection.run_for(&sql, Purpose::Other).await?;
    let state = rows.first().and_then(|row| row.try_get(0).ok());
    Ok(state.unwrap_or_default())
}
