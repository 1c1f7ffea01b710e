//! One PostgreSQL destination: its connections, their limits, and what is remembered of its tables
//! between loads.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use sqlx::{
    ConnectOptions, Connection as _, Executor, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    client::Connection,
    credentials::Credentials,
    error::{Purpose, classify},
    known::{FullTables, Paces, RefusedKeys, Repeats, Taken},
    quote_ident,
};
use crate::{error::LoadError, progress::Progress};

/// How much later than the server we give up on a statement. The server's own time-out comes first,
/// unless the server, or the network to it, is gone without a word.
const GRACE: Duration = Duration::from_secs(30);
/// What triggers have to say holds values of rows, and nobody listens: while rows are sent, the
/// server would wait for us to read it, and we for the server.
const QUIET: &str = "set local client_min_messages = error";
/// Limit of the one attempt that tells why there was no connection.
const ASK_WHY_FOR: Duration = Duration::from_secs(3);

/// Lets the server look whether we are still there while it works on a statement, so that one whose
/// load was dropped or killed ends; versions and systems that cannot, do without.
const WATCH_CLIENT: &str = "select pg_catalog.set_config('client_connection_check_interval', \
    '5s', true) where pg_catalog.current_setting('client_connection_check_interval', true) \
    is not null and pg_catalog.version() like '%linux%'";

/// Limits of a destination's connections.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For a connection, from the pool or new. `connect_timeout` of the credentials wins.
    pub connect_timeout: Duration,
    /// For each lock of a load.
    pub lock_timeout: Duration,
    /// For a lock that a change of a table needs. All later statements on the table queue behind it
    /// for as long.
    pub schema_lock_timeout: Duration,
    /// How long a change of a table is tried again and again while others use the table.
    pub schema_patience: Duration,
    /// For each statement, a COPY being one.
    pub statement_timeout: Duration,
    /// After this the server ends the transaction of a loader that has vanished, and with it its
    /// locks.
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
pub struct Postgres {
    inner: Arc<Inner>,
    progress: Progress,
}

struct Inner {
    pool: PgPool,
    default_schema: String,
    /// What the credentials set for every transaction.
    session_settings: String,
    settings: Settings,
    refused_keys: RefusedKeys,
    repeats: Repeats,
    full_tables: FullTables,
    taken: Taken,
    paces: Paces,
}

impl Postgres {
    /// Checks the credentials; connects with the first statement. Needs a runtime.
    ///
    /// Errors: [`LoadError::Config`] for a schema that is missing, TLS that cannot be set up, or a
    /// way to authenticate that is not supported.
    pub fn new(credentials: &Credentials, settings: Settings) -> Result<Postgres, LoadError> {
        let default_schema = credentials.schema()?.to_owned();
        let options = credentials.connect_options()?;
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(credentials.connect_timeout().unwrap_or(settings.connect_timeout))
            .idle_timeout(Duration::from_secs(180))
            .connect_lazy_with(options);
        let inner = Inner {
            pool,
            default_schema,
            session_settings: credentials.session_settings(),
            settings,
            refused_keys: RefusedKeys::default(),
            repeats: Repeats::default(),
            full_tables: FullTables::default(),
            taken: Taken::default(),
            paces: Paces::default(),
        };
        Ok(Postgres { inner: Arc::new(inner), progress: Progress::default() })
    }

    /// The same destination, whose loads count their steps here.
    #[must_use]
    pub fn watched_by(&self, progress: &Progress) -> Postgres {
        Postgres { inner: self.inner.clone(), progress: progress.clone() }
    }

    /// Where the steps of loads are counted.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How connections are made, for one that is not the pool's.
    pub(super) fn connect_options(&self) -> Arc<PgConnectOptions> {
        self.inner.pool.connect_options()
    }

    /// The schema of tables without a namespace.
    pub(super) fn default_schema(&self) -> &str {
        &self.inner.default_schema
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(super) fn refused_keys(&self) -> &RefusedKeys {
        &self.inner.refused_keys
    }

    pub(super) fn repeats(&self) -> &Repeats {
        &self.inner.repeats
    }

    pub(super) fn full_tables(&self) -> &FullTables {
        &self.inner.full_tables
    }

    pub(super) fn paces(&self) -> &Paces {
        &self.inner.paces
    }

    pub(super) fn taken(&self) -> &Taken {
        &self.inner.taken
    }

    /// A connection that answers, from the pool or new, within `connect_timeout`. A drop leaves
    /// nothing behind.
    ///
    /// Errors: why there is none, [`LoadError::Connection`] where all are in use for too long.
    pub async fn connection(&self) -> Result<Connection, LoadError> {
        let connection = match self.inner.pool.acquire().await {
            Ok(connection) => connection,
            Err(sqlx::Error::PoolTimedOut) => return Err(self.why_no_connection().await),
            Err(error) => return Err(classify(error, Purpose::Other)),
        };
        let patience = self.inner.settings.statement_timeout + GRACE;
        Ok(Connection::new(connection, patience, self.progress.clone()))
    }

    /// The pool tries until its time is over, and keeps to itself what went wrong: one more attempt
    /// tells.
    async fn why_no_connection(&self) -> LoadError {
        let options = self.inner.pool.connect_options();
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let reason = match tokio::time::timeout(ASK_WHY_FOR, options.connect()).await {
            Err(_) => format!("{place} does not answer"),
            Ok(Err(error)) => match classify(error, Purpose::Other) {
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

    /// Closes all connections; those in use once they come back, which it waits for. Afterwards,
    /// and after a drop, no connection can be had.
    pub async fn close(&self) {
        self.inner.pool.close().await;
    }

    /// Begins a transaction with its limits, in one round trip. Whatever the role's default is, it
    /// keeps no snapshot from one statement to the next: an index that is built concurrently waits
    /// for each that is older than it, the one beside a key of ours included.
    pub(super) fn begin_sql(&self) -> String {
        let Settings { lock_timeout, statement_timeout, idle_in_transaction_timeout, .. } =
            &self.inner.settings;
        format!(
            "begin isolation level read committed; {QUIET}; set local lock_timeout = {}; set local statement_timeout = {}; \
             set local idle_in_transaction_session_timeout = {}; set local time zone 'UTC'; \
             set local tcp_keepalives_idle = 30; set local tcp_keepalives_interval = 10; \
             set local tcp_keepalives_count = 3; {WATCH_CLIENT}; set local search_path = {}{}",
            lock_timeout.as_millis(),
            statement_timeout.as_millis(),
            idle_in_transaction_timeout.as_millis(),
            quote_ident(&self.inner.default_schema),
            self.inner.session_settings,
        )
    }
}

/// Connects, asks one question, and hangs up: whether the credentials open anything. A pool would
/// try again and again instead of telling why it cannot connect. Takes as long as the network does;
/// a drop closes the connection.
///
/// The credentials are a client's: they open no file and no socket of this machine.
pub async fn probe(credentials: &Credentials) -> Result<(), LoadError> {
    credentials.refuse_local_files()?;
    credentials.schema()?;
    let options = credentials.connect_options()?;
    // the server is a stranger's, and the driver (sqlx 0.8.6) panics at a message that is shorter
    // than its length
    let asked = AssertUnwindSafe(ask(&options)).catch_unwind().await;
    let hostile = || LoadError::Connection { reason: "the protocol broke".to_owned() };
    asked.map_err(|_| hostile())?.map_err(|error| classify(error, Purpose::Other))
}

async fn ask(options: &PgConnectOptions) -> sqlx::Result<()> {
    let mut connection = options.connect().await?;
    connection.execute(sqlx::raw_sql("select 1")).await?;
    connection.close().await
}
