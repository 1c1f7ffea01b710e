//! Connections to one PostgreSQL destination.
//!
//! Invariant: only a connection whose last statement ended well goes back to the pool. Anything else (an
//! error, a time-out, a dropped future) closes it, because its transaction may be open or its answers
//! out of step.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::TryStreamExt;
use sqlx::{
    ConnectOptions, Connection as _, Executor, PgPool,
    pool::PoolConnection,
    postgres::{PgPoolOptions, PgRow},
};
use tokio::sync::mpsc;

use super::{
    credentials::Credentials,
    error::{LoadError, Purpose, sort},
    key::RefusedKeys,
    new_keys::Repeats,
    quote_ident,
    table::TableName,
};

/// How much later than the server we give up on a statement. The server's own time-out comes first, unless
/// the server, or the way to it, is gone without a word.
const GRACE: Duration = Duration::from_secs(30);
/// How long it is asked why there was no connection.
const ASK_WHY_FOR: Duration = Duration::from_secs(3);

/// Limits of a destination's connections.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For a connection, from the pool or new. `connect_timeout` of the credentials wins.
    pub connect_timeout: Duration,
    /// For each lock of a load.
    pub lock_timeout: Duration,
    /// For a lock that a change of a table needs. Everybody who comes later queues behind it for as long.
    pub schema_lock_timeout: Duration,
    /// How long a change of a table is tried again and again while others use the table.
    pub schema_patience: Duration,
    /// For each statement, a COPY being one.
    pub statement_timeout: Duration,
    /// After this a vanished owner loses its transaction, and with it its locks.
    pub idle_in_transaction_timeout: Duration,
    /// One more than there are loads at a time: making a key for a table with rows takes two.
    pub max_connections: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            connect_timeout: Duration::from_secs(90),
            lock_timeout: Duration::from_secs(30),
            schema_lock_timeout: Duration::from_secs(1),
            schema_patience: Duration::from_secs(120),
            statement_timeout: Duration::from_secs(600),
            idle_in_transaction_timeout: Duration::from_secs(60),
            max_connections: 10,
        }
    }
}

/// A PostgreSQL destination; cheap to clone.
#[derive(Clone)]
pub struct Postgres(Arc<Inner>);

struct Inner {
    pool: PgPool,
    default_schema: String,
    /// What the credentials set for every transaction.
    session_settings: String,
    settings: Settings,
    refused_keys: RefusedKeys,
    repeats: Repeats,
    /// Tables that have no room for more columns.
    full_tables: Mutex<HashSet<TableName>>,
}

impl Postgres {
    /// Checks the credentials; connects with the first statement.
    pub fn new(credentials: &Credentials, settings: Settings) -> Result<Postgres, LoadError> {
        let default_schema = credentials.schema()?.to_owned();
        let options = credentials.connect_options()?;
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(credentials.connect_timeout().unwrap_or(settings.connect_timeout))
            .idle_timeout(Duration::from_secs(180))
            .connect_lazy_with(options);
        Ok(Postgres(Arc::new(Inner {
            pool,
            default_schema,
            session_settings: credentials.session_settings(),
            settings,
            refused_keys: RefusedKeys::default(),
            repeats: Repeats::default(),
            full_tables: Mutex::default(),
        })))
    }

    /// The schema of tables without a namespace.
    pub fn default_schema(&self) -> &str {
        &self.0.default_schema
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(super) fn refused_keys(&self) -> &RefusedKeys {
        &self.0.refused_keys
    }

    pub(super) fn repeats(&self) -> &Repeats {
        &self.0.repeats
    }

    /// Whether this was not known of the table.
    pub(super) fn is_newly_full(&self, name: &TableName) -> bool {
        let full = self.0.full_tables.lock();
        full.unwrap_or_else(std::sync::PoisonError::into_inner).insert(name.clone())
    }

    /// A connection that answers.
    pub async fn connection(&self) -> Result<Connection, LoadError> {
        let connection = match self.0.pool.acquire().await {
            Ok(connection) => connection,
            Err(sqlx::Error::PoolTimedOut) => return Err(self.why_no_connection().await),
            Err(error) => return Err(sort(error, Purpose::Other)),
        };
        let patience = self.0.settings.statement_timeout + GRACE;
        Ok(Connection { inner: connection, is_sound: true, patience })
    }

    /// The pool tries until its time is over, and keeps to itself what went wrong: one more attempt tells.
    async fn why_no_connection(&self) -> LoadError {
        let options = self.0.pool.connect_options();
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let reason = match tokio::time::timeout(ASK_WHY_FOR, options.connect()).await {
            Err(_) => format!("{place} does not answer"),
            Ok(Err(error)) => match sort(error, Purpose::Other) {
                LoadError::Connection { reason } => format!("{place}: {reason}"),
                error => return error,
            },
            Ok(Ok(connection)) => {
                let _ = connection.close().await; // it was only a question
                "no free connection in time".to_owned()
            }
        };
        LoadError::Connection { reason }
    }

    /// Closes all connections; those in use once they come back.
    pub async fn close(&self) {
        self.0.pool.close().await;
    }

    /// Begins a transaction with its limits, in one round trip.
    pub(crate) fn begin_sql(&self) -> String {
        let Settings { lock_timeout, statement_timeout, idle_in_transaction_timeout, .. } =
            &self.0.settings;
        format!(
            "begin; set local lock_timeout = {}; set local statement_timeout = {}; \
             set local idle_in_transaction_session_timeout = {}; set local time zone 'UTC'; \
             set local tcp_keepalives_idle = 30; set local tcp_keepalives_interval = 10; \
             set local tcp_keepalives_count = 3; set local search_path = {}{}",
            lock_timeout.as_millis(),
            statement_timeout.as_millis(),
            idle_in_transaction_timeout.as_millis(),
            quote_ident(&self.0.default_schema),
            self.0.session_settings,
        )
    }
}

/// Connects, asks one question, and hangs up: whether the credentials open anything. A pool would try again and again
/// instead of telling why it cannot connect. Takes as long as the network does.
pub async fn probe(credentials: &Credentials) -> Result<(), LoadError> {
    credentials.schema()?;
    let failed = |error| sort(error, Purpose::Other);
    let mut connection = credentials.connect_options()?.connect().await.map_err(failed)?;
    connection.execute(sqlx::raw_sql("select 1")).await.map_err(failed)?;
    connection.close().await.map_err(failed)
}

/// A connection of a destination. Closed instead of pooled after anything went wrong.
pub struct Connection {
    inner: PoolConnection<sqlx::Postgres>,
    is_sound: bool,
    patience: Duration,
}

impl Connection {
    /// Runs one or more statements by the simple protocol and returns the rows of all.
    pub async fn run(&mut self, sql: &str) -> Result<Vec<PgRow>, LoadError> {
        self.run_for(sql, Purpose::Other).await
    }

    /// The same for statements that make or change a table of the caller's; errors name it.
    pub async fn run_on(&mut self, table: &str, sql: &str) -> Result<Vec<PgRow>, LoadError> {
        self.run_for(sql, Purpose::Schema { table }).await
    }

    pub(crate) async fn run_for(
        &mut self,
        sql: &str,
        purpose: Purpose<'_>,
    ) -> Result<Vec<PgRow>, LoadError> {
        self.is_sound = false;
        // every name and value in our statements went through `quote_ident` or `quote_literal`
        let rows = self.inner.fetch_all(sqlx::raw_sql(sql));
        let rows = in_time(self.patience, purpose, rows).await?;
        self.is_sound = true;
        Ok(rows)
    }

    /// Runs a statement that may take long, outside of a transaction.
    pub(crate) async fn run_long(
        &mut self,
        sql: &str,
        purpose: Purpose<'_>,
        patience: Duration,
    ) -> Result<(), LoadError> {
        let usual = std::mem::replace(&mut self.patience, patience);
        let ran = self.run_for(sql, purpose).await;
        self.patience = usual;
        ran.map(drop)
    }

    /// Runs statements and returns how many rows the last one hit.
    pub(crate) async fn execute(
        &mut self,
        sql: &str,
        purpose: Purpose<'_>,
    ) -> Result<u64, LoadError> {
        self.is_sound = false;
        let mut results = self.inner.execute_many(sqlx::raw_sql(sql));
        let last = async {
            let mut hit = 0;
            while let Some(done) = results.try_next().await? {
                hit = done.rows_affected();
            }
            Ok(hit)
        };
        let hit = in_time(self.patience, purpose, last).await?;
        drop(results);
        self.is_sound = true;
        Ok(hit)
    }

    /// Sends COPY text as it comes; returns the number of rows stored.
    pub(crate) async fn copy(
        &mut self,
        sql: &str,
        chunks: &mut mpsc::Receiver<Vec<u8>>,
        purpose: Purpose<'_>,
    ) -> Result<u64, LoadError> {
        self.is_sound = false;
        let patience = self.patience;
        let mut copy = in_time(patience, purpose, self.inner.copy_in_raw(sql)).await?;
        while let Some(chunk) = chunks.recv().await {
            let Ok(sent) = tokio::time::timeout(patience, copy.send(chunk)).await else {
                return Err(no_answer());
            };
            if sent.is_err() {
                break; // the server's reason comes with `finish`; `abort` would hide it and leave answers unread
            }
        }
        let stored = in_time(patience, purpose, copy.finish()).await?;
        self.is_sound = true;
        Ok(stored)
    }

    /// The connection is not to be used again, whatever its last statement said.
    pub(crate) fn give_up(&mut self) {
        self.is_sound = false;
    }

    /// Ends the transaction after a refusal, so that its locks go now and not when the server notices the
    /// closed connection. It is closed all the same: a refused COPY may leave answers unread.
    pub(crate) async fn roll_back_and_close(&mut self) {
        let _ = self.run("rollback").await; // the reason is the caller's first error, not this one
        self.is_sound = false;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.is_sound {
            self.inner.close_on_drop();
        }
    }
}

async fn in_time<T>(
    patience: Duration,
    purpose: Purpose<'_>,
    answer: impl Future<Output = sqlx::Result<T>>,
) -> Result<T, LoadError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map_err(|error| sort(error, purpose)),
        Err(_) => Err(no_answer()),
    }
}

fn no_answer() -> LoadError {
    LoadError::Connection { reason: "no answer in time".to_owned() }
}
