//! Why a load failed, split by what the caller does next.

use sqlx::postgres::PgDatabaseError;

use crate::{options::OptionError, row::RowError};

/// What PostgreSQL said, without its text: that quotes values of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Five characters, see PostgreSQL's appendix "Error Codes".
    pub sqlstate: String,
    pub table: Option<String>,
    pub column: Option<String>,
    pub constraint: Option<String>,
    /// The server's own words. They may hold values: never logged, only handed to whoever owns the data.
    pub full_text: String,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SQLSTATE {}", self.sqlstate)?;
        let named =
            [("table", &self.table), ("column", &self.column), ("constraint", &self.constraint)];
        named
            .iter()
            .filter_map(|(what, name)| Some((what, name.as_deref()?)))
            .try_for_each(|(what, name)| write!(f, ", {what} {name}"))
    }
}

/// Why a load failed. Its text and that of its sources hold no row values.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server went away or cannot be reached: the same batch, sent again, may succeed.
    #[error("lost the connection to the database: {reason}")]
    Connection { reason: String },
    /// The connection broke during COMMIT: only the database knows whether it happened.
    #[error("the answer to COMMIT was lost: {reason}")]
    CommitUnknown { reason: String },
    /// The caller's checkpoint is not what it was: somebody else loaded, nothing was loaded here.
    #[error("the checkpoint was moved by somebody else")]
    CheckpointMoved,
    /// The database is there and asks to be tried again: locks, time-outs, shutdown, too many connections.
    #[error("the database is busy: {0}")]
    Busy(Box<ServerError>),
    /// The database refused the rows: only other rows, or another table, can succeed.
    #[error("table {table} refused the batch: {error}")]
    Refused { table: String, error: Box<ServerError> },
    /// The database refused to make or change the table.
    #[error("table {table} cannot be made or changed: {error}")]
    Schema { table: String, error: Box<ServerError> },
    /// What the caller configured cannot work.
    #[error("misconfigured: {0}")]
    Config(String),
    #[error("the options do not fit")]
    Options(#[from] OptionError),
    #[error("an event cannot be loaded")]
    Row(#[from] RowError),
}

impl LoadError {
    pub fn config(reason: impl Into<String>) -> LoadError {
        LoadError::Config(reason.into())
    }

    /// Whether the same load may succeed later without anybody changing anything.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self,
            LoadError::Connection { .. } | LoadError::CommitUnknown { .. } | LoadError::Busy(_)
        )
    }

    /// Whether the database's user lacks a right.
    pub fn is_permission_denied(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "42501")
    }

    /// What the server said, if it was the server.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            LoadError::Busy(error)
            | LoadError::Refused { error, .. }
            | LoadError::Schema { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// What a statement was for; it decides what a refusal means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose<'a> {
    Rows {
        table: &'a str,
    },
    Schema {
        table: &'a str,
    },
    /// Statements of the caller.
    Other,
}

/// Sorts an error of sqlx by what the caller does next.
pub(crate) fn sort(error: sqlx::Error, purpose: Purpose<'_>) -> LoadError {
    match error {
        sqlx::Error::Database(error) => {
            let Some(error) = error.try_downcast_ref::<PgDatabaseError>() else {
                return LoadError::Connection { reason: "an error of another driver".to_owned() };
            };
            sort_server_error(error, purpose)
        }
        sqlx::Error::Configuration(error) => LoadError::Config(error.to_string()),
        // these are about the connection: their text is the operating system's or the driver's
        sqlx::Error::Io(error) => LoadError::Connection { reason: error.to_string() },
        sqlx::Error::Tls(error) => LoadError::Connection { reason: format!("TLS: {error}") },
        sqlx::Error::PoolTimedOut => {
            LoadError::Connection { reason: "no free connection in time".to_owned() }
        }
        error => LoadError::Connection { reason: kind_of(&error).to_owned() },
    }
}

fn sort_server_error(error: &PgDatabaseError, purpose: Purpose<'_>) -> LoadError {
    let detail = error.detail().map(|detail| format!(" {detail}")).unwrap_or_default();
    let server = Box::new(ServerError {
        sqlstate: error.code().to_owned(),
        table: error.table().map(ToOwned::to_owned),
        column: error.column().map(ToOwned::to_owned),
        constraint: error.constraint().map(ToOwned::to_owned),
        full_text: format!("{}{detail}", error.message()),
    });
    match (&server.sqlstate[..2.min(server.sqlstate.len())], purpose) {
        ("08", _) => LoadError::Connection { reason: server.to_string() },
        // wrong password or unknown role, unknown database
        ("28" | "3D", _) => LoadError::Config(server.full_text),
        // resources, locks and time-outs, system errors, deadlocks, shutdown
        ("53" | "55" | "57" | "58" | "40", _) => LoadError::Busy(server),
        (_, Purpose::Rows { table }) => {
            LoadError::Refused { table: table.to_owned(), error: server }
        }
        (_, Purpose::Schema { table }) => {
            LoadError::Schema { table: table.to_owned(), error: server }
        }
        (_, Purpose::Other) => {
            LoadError::Schema { table: server.table.clone().unwrap_or_default(), error: server }
        }
    }
}

fn kind_of(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Protocol(_) => "the protocol broke",
        sqlx::Error::PoolClosed => "the pool is closed",
        sqlx::Error::WorkerCrashed => "the driver's worker crashed",
        _ => "the driver failed",
    }
}
