//! Why a load failed, split by what the caller does next.

use crate::rows::{options::OptionError, row::RowError};

/// Whose fault a failed load is, and so what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// The environment's: what is missing or in the way is waited for, and the same load succeeds.
    /// A short list: connections, resources, locks, time-outs, shutdown, a database that is
    /// read-only or damaged, a right or a table that was there before, configuration.
    Environment,
    /// The events', or that of the options which they came with: without them the load succeeds.
    Event,
    /// All that is on neither list: one event's, or the table's. A load with
    /// [`Refusals::Isolate`](crate::Refusals) has looked for the row, the column or the set of
    /// options, and refused what it found; the error that it ends with is the table's and counts
    /// as the environment's.
    #[default]
    Unknown,
}

/// A key that a constraint was violated for, as the server prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyHint {
    /// Names, separated by `, `.
    pub(crate) columns: String,
    /// Texts of the values, separated by `, `.
    pub(crate) values: String,
}

/// What PostgreSQL said. Neither its `Display` nor its `Debug` shows a text that may quote values
/// of rows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Five characters, see PostgreSQL's appendix "Error Codes".
    pub sqlstate: String,
    /// The table that the server named, without its schema.
    pub table: Option<String>,
    /// The column that the server named.
    pub column: Option<String>,
    /// The constraint that the server named.
    pub constraint: Option<String>,
    /// The line of a COPY that the server was at, from 1. A hint: rows are looked at in groups.
    pub(crate) copy_line: Option<u64>,
    /// The columns and values of a key that the server named.
    pub(crate) key: Option<KeyHint>,
    /// The first column's value of the row that the server named.
    pub(crate) first_value: Option<String>,
    /// The server's own words. They may quote values: never logged, only handed to the data's
    /// owner.
    pub full_text: String,
    /// The server's own words where they hold names and no values: which right, column or table is
    /// missing.
    pub(crate) safe_text: Option<String>,
    /// Whose fault it is, as far as the code and the place of the error tell.
    pub(crate) fault: Fault,
}

impl ServerError {
    pub(crate) fn is_too_slow(&self) -> bool {
        matches!(self.sqlstate.as_str(), "57014" | "25P04") && self.fault == Fault::Environment
    }
}

impl std::fmt::Debug for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SQLSTATE {}", self.sqlstate)?;
        let named =
            [("table", &self.table), ("column", &self.column), ("constraint", &self.constraint)];
        named
            .iter()
            .filter_map(|(what, name)| Some((what, name.as_deref()?)))
            .try_for_each(|(what, name)| write!(f, ", {what} {name}"))?;
        match &self.safe_text {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

/// Why a load failed. Its text and that of its sources hold no row values.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server went away or cannot be reached: the same batch, sent again, may succeed.
    #[error("lost the connection to the database: {reason}; the same load can be tried again")]
    Connection {
        /// What the operating system or the driver said.
        reason: String,
    },
    /// No connection, for want of TLS that both sides agree on. May succeed later: certificates are
    /// renewed.
    #[error(
        "no TLS connection to the database: {reason}; look at sslMode and the certificates of the credentials"
    )]
    Tls {
        /// What the TLS library said.
        reason: String,
    },
    /// The connection broke during COMMIT: only the database knows whether it happened.
    #[error("the answer to COMMIT was lost: {reason}; look at the ledger before loading again")]
    CommitUnknown {
        /// How the answer was lost.
        reason: String,
    },
    /// The ledger is not what the fence says: another loader was here, nothing was loaded.
    #[error("the position was moved by another loader; start over from where it is")]
    Fenced,
    /// The database is there and asks to be tried again: locks, time-outs, shutdown, too many
    /// connections.
    #[error("the database is busy: {0}; try again later")]
    Busy(Box<ServerError>),
    /// The database refused a statement about something else than the rows' table.
    #[error("the database refused a statement: {error}; grant the right, or repair what it names")]
    Statement {
        /// What the server said.
        error: Box<ServerError>,
    },
    /// The database refused the rows: only other rows, or another table, can succeed.
    #[error("table {table} refused the batch: {error}; other rows or another table can help")]
    Refused {
        /// The table's final name.
        table: String,
        /// What the server said. Its text may quote values.
        error: Box<ServerError>,
    },
    /// The database refused to make or change the table.
    #[error(
        "table {table} cannot be made or changed: {error}; grant the right, or change the table or the options"
    )]
    Schema {
        /// The table's final name.
        table: String,
        /// What the server said. Its text may quote values.
        error: Box<ServerError>,
    },
    /// The batch's rows beyond its memory limit cannot be read back from disk.
    #[error("rows on disk cannot be read: {0}; look at the disk of the temporary folder")]
    Spill(#[from] std::io::Error),
    /// What the caller configured cannot work.
    #[error("misconfigured: {0}")]
    Config(String),
    /// The stream's options cannot be taken, or do not fit together.
    #[error("the options do not fit")]
    Options(#[from] OptionError),
    /// An event cannot become a row, or leaves nothing to insert.
    #[error("an event cannot be loaded")]
    Row(#[from] RowError),
}

impl LoadError {
    /// Shorthand for [`LoadError::Config`].
    pub(crate) fn config(reason: impl Into<String>) -> LoadError {
        LoadError::Config(reason.into())
    }

    /// Whether the same load may succeed later although neither rows, table nor configuration
    /// change.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self,
            LoadError::Connection { .. }
                | LoadError::Tls { .. }
                | LoadError::CommitUnknown { .. }
                | LoadError::Busy(_)
        )
    }

    /// Whether another session held a lock for too long.
    pub(crate) fn is_lock_timeout(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "55P03")
    }

    /// Whether the database's user lacks a right.
    pub fn is_permission_denied(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "42501")
    }

    /// Whether a table that a statement names is not there.
    pub(crate) fn is_undefined_table(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "42P01")
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            LoadError::Connection { .. }
            | LoadError::Tls { .. }
            | LoadError::CommitUnknown { .. }
            | LoadError::Fenced
            | LoadError::Busy(_)
            | LoadError::Spill(_)
            | LoadError::Config(_) => Fault::Environment,
            LoadError::Options(_) | LoadError::Row(_) => Fault::Event,
            LoadError::Statement { error }
            | LoadError::Refused { error, .. }
            | LoadError::Schema { error, .. } => error.fault,
        }
    }

    /// The same error, once the search for what is at fault is over: it is waited for until the
    /// table, or the database, changes.
    pub(crate) fn held(mut self) -> LoadError {
        if let LoadError::Statement { error }
        | LoadError::Refused { error, .. }
        | LoadError::Schema { error, .. } = &mut self
        {
            error.fault = Fault::Environment;
        }
        self
    }

    /// Whether a batch without some of its events may succeed.
    pub fn may_be_poison_event(&self) -> bool {
        self.fault() != Fault::Environment
    }

    /// Whether the server ended a statement or a transaction that took too long: a smaller load may
    /// be done in time.
    pub fn is_too_slow(&self) -> bool {
        self.server_error().is_some_and(ServerError::is_too_slow)
    }

    /// What the server said, if it was the server.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            LoadError::Busy(error)
            | LoadError::Statement { error }
            | LoadError::Refused { error, .. }
            | LoadError::Schema { error, .. } => Some(error),
            _ => None,
        }
    }
}
