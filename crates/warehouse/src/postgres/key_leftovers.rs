//! What an interrupted attempt to make a key left: a statement that the server still works on, an
//! index, a constraint that promises NOT NULL. Who begins ends it; who comes next, under the
//! table's lock, ends what a killed process could not.
//!
//! Invariant: only what is named as ours, lies on the table and belongs to no constraint is ended,
//! dropped or taken over.

use std::{future::Future, time::Duration};

use sqlx::{ConnectOptions, Connection as _, Executor, Row};
use tracing::{info, warn};

use super::{
    catalog::TableName,
    client::Connection,
    ddl::{self, MANAGED_KEY_PREFIX},
    error::Purpose,
    key::BUILD_PATIENCE,
    pool::Postgres,
    quote_ident, quote_literal,
};
use crate::error::LoadError;

/// How often it is looked whether the server still works on a statement.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a statement that is cancelled may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A statement that takes long, known by a name of ours in its text. Dropped before its answer, it
/// is cancelled: the server would go on with it, unheard.
struct Running {
    postgres: Postgres,
    name: String,
    is_answered: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let (postgres, name) = (self.postgres.clone(), std::mem::take(&mut self.name));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return; // the process ends, and with it the connection, which the server looks at
        };
        runtime.spawn(async move {
            let cancelled = match postgres.connection().await {
                Ok(mut connection) => connection.run(&cancel_sql(&name)).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = cancelled {
                warn!(index = name, %error, "an interrupted build of a key may still run in the database; the next one ends it");
            }
        });
    }
}

impl Postgres {
    /// Runs a statement that holds `name` and may take long, outside of a transaction. As long as
    /// the server works on it, each look at it counts as a step. Dropped, it is cancelled.
    pub(super) async fn run_watched(
        &self,
        connection: &mut Connection,
        sql: &str,
        purpose: Purpose<'_>,
        name: &str,
    ) -> Result<(), LoadError> {
        connection.run(WATCH_CLIENT).await?;
        let mut running =
            Running { postgres: self.clone(), name: name.to_owned(), is_answered: false };
        let work = connection.run_long(sql, purpose, BUILD_PATIENCE);
        let done = beside(work, self.watch(name)).await;
        running.is_answered = true;
        if done.is_ok() {
            connection.run(UNWATCH_CLIENT).await?;
        }
        done
    }

    /// Counts a step as long as the server works on a statement that holds `name`. On a connection
    /// of its own, in no transaction: an index that is built concurrently waits for snapshots.
    async fn watch(&self, name: &str) {
        let sql = format!("select 1 {}", of_statements(name));
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            let Ok(mut connection) = self.connect_options().connect().await else {
                continue; // then nothing is known of it, and that is no step
            };
            while let Ok(rows) = connection.fetch_all(sqlx::raw_sql(&sql)).await {
                if !rows.is_empty() {
                    self.progress().step();
                }
                tokio::time::sleep(HEARTBEAT).await;
            }
            let _ = connection.close_hard().await; // it broke
        }
    }

    /// Ends what earlier attempts on this table left, but for an index that is finished and is what
    /// the key needs: its name is the answer. To be called under the table's lock.
    pub(super) async fn end_leftovers(
        &self,
        connection: &mut Connection,
        name: &TableName,
        key: &[String],
    ) -> Result<Option<String>, LoadError> {
        let purpose = Purpose::Schema { table: &name.table };
        let mut adopted = None;
        for row in connection.run_for(&indexes_sql(name), purpose).await? {
            let read = || -> Result<(String, bool, String), sqlx::Error> {
                Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
            };
            let Ok((index, is_valid, columns)) = read() else {
                continue;
            };
            let wanted: Vec<_> = key.iter().map(|column| quote_ident(column)).collect();
            if is_valid && columns == wanted.join(",") && adopted.is_none() {
                info!(
                    table = name.table,
                    index, "an index that an earlier attempt finished becomes the key's"
                );
                adopted = Some(index);
                continue;
            }
            self.end_statements(connection, &index).await?;
            info!(table = name.table, index, "an index that an earlier attempt left is dropped");
            self.drop_index(connection, name, &index).await?;
        }
        for row in connection.run_for(&checks_sql(name), purpose).await? {
            if let Ok(check) = row.try_get::<String, _>(0) {
                let dropped = ddl::drop_constraint_sql(name, &check);
                self.change_patiently(connection, name, &[dropped]).await?;
            }
        }
        Ok(adopted)
    }

    pub(super) async fn drop_index(
        &self,
        connection: &mut Connection,
        name: &TableName,
        index: &str,
    ) -> Result<(), LoadError> {
        let dropped = format!(
            "drop index concurrently if exists {}.{}",
            quote_ident(&name.schema),
            quote_ident(index)
        );
        let purpose = Purpose::Schema { table: &name.table };
        self.run_watched(connection, &dropped, purpose, index).await
    }

    /// Cancels other sessions' statements that hold this name, and waits until they end.
    async fn end_statements(
        &self,
        connection: &mut Connection,
        name: &str,
    ) -> Result<(), LoadError> {
        let until = tokio::time::Instant::now() + ENDS_WITHIN;
        while !connection.run(&cancel_sql(name)).await?.is_empty()
            && tokio::time::Instant::now() < until
        {
            tokio::time::sleep(HEARTBEAT / 10).await;
        }
        Ok(())
    }
}

/// The answer of `work`, while `watch` runs beside it.
async fn beside<T>(work: impl Future<Output = T>, watch: impl Future<Output = ()>) -> T {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = watch => {}
    }
    work.await
}

/// Lets the server look whether we are still there while it works on a statement; versions and
/// systems that cannot do without.
const WATCH_CLIENT: &str = "select pg_catalog.set_config('client_connection_check_interval', \
    '5s', false) where pg_catalog.current_setting('client_connection_check_interval', true) \
    is not null and pg_catalog.version() like '%linux%'";
const UNWATCH_CLIENT: &str = "select pg_catalog.set_config('client_connection_check_interval', \
    s.reset_val, false) from pg_catalog.pg_settings s \
    where s.name = 'client_connection_check_interval'";

/// Sessions of our user, in this database, that work on a statement which holds a name of ours.
fn of_statements(name: &str) -> String {
    format!(
        "from pg_catalog.pg_stat_activity a where a.datname = pg_catalog.current_database() \
         and a.usename = current_user and a.pid <> pg_catalog.pg_backend_pid() \
         and a.state = 'active' and a.query ~* '^(create|drop|alter)' \
         and pg_catalog.strpos(a.query, {}) > 0",
        quote_literal(name)
    )
}

fn cancel_sql(name: &str) -> String {
    format!("select pg_catalog.pg_cancel_backend(a.pid) {}", of_statements(name))
}

/// Indexes of the table that are named as ours and are no constraint's: name, whether it is
/// finished, and its columns, quoted.
fn indexes_sql(name: &TableName) -> String {
    format!(
        "select c.relname::text, i.indisvalid and i.indisunique and i.indpred is null \
         and i.indexprs is null, coalesce((select pg_catalog.string_agg( \
         pg_catalog.concat('\"', pg_catalog.replace(a.attname::text, '\"', '\"\"'), '\"'), ',' \
         order by k.place) from pg_catalog.unnest(i.indkey::int2[]) with ordinality k (number, place) \
         join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number), '') \
         from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid \
         where i.indrelid = {}::regclass and pg_catalog.starts_with(c.relname::text, {}) \
         and not exists (select from pg_catalog.pg_constraint k where k.conindid = i.indexrelid) \
         order by c.relname",
        quote_literal(&name.quoted()),
        quote_literal(MANAGED_KEY_PREFIX)
    )
}

/// Constraints of the table that promise NOT NULL for a key of ours.
fn checks_sql(name: &TableName) -> String {
    format!(
        "select k.conname::text from pg_catalog.pg_constraint k \
         where k.conrelid = {}::regclass and k.contype = 'c' \
         and k.conname::text ~ '^{MANAGED_KEY_PREFIX}[0-9a-f]+_nn$'",
        quote_literal(&name.quoted())
    )
}
