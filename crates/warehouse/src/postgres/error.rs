//! Why a load failed, split by what the caller does next.

use sqlx::postgres::PgDatabaseError;

use crate::{options::OptionError, row::RowError};

/// A key that a constraint was violated for, as the server prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyHint {
    /// Names, separated by `, `.
    pub(crate) columns: String,
    /// Texts of the values, separated by `, `.
    pub(crate) values: String,
}

impl KeyHint {
    /// From `Key (a, b)=(1, 2) …`; the words around it are in the server's language.
    fn parse(detail: &str) -> Option<KeyHint> {
        let (columns, rest) = detail.split_once('(')?.1.split_once(")=(")?;
        let values = &rest[..rest.rfind(')')?];
        // names that need it are quoted
        Some(KeyHint { columns: columns.replace('"', ""), values: values.to_owned() })
    }
}

/// From `Failing row contains (1, 2, …).`; the words are in the server's language.
fn first_value(detail: &str) -> Option<String> {
    let (_, values) = detail.split_once('(')?;
    let end = values.find(", ").or_else(|| values.rfind(')'))?;
    Some(values[..end].to_owned())
}

/// The line of `COPY t, line 12, column c: …`; the words are in the server's language.
fn copy_line(context: &str) -> Option<u64> {
    let mut parts = context.strip_prefix("COPY ")?.split(", ").skip(1);
    parts.find_map(|part| {
        let (word, number) = part.split_once(' ')?;
        let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        word.chars().all(char::is_alphabetic).then(|| number[..digits].parse().ok())?
    })
}

/// What PostgreSQL said. Neither its `Display` nor its `Debug` shows a text that may quote values of rows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Five characters, see PostgreSQL's appendix "Error Codes".
    pub sqlstate: String,
    pub table: Option<String>,
    pub column: Option<String>,
    pub constraint: Option<String>,
    /// The line of a COPY that the server was at, from 1. A hint: rows are looked at in groups.
    pub(crate) copy_line: Option<u64>,
    /// The columns and values of a key that the server named.
    pub(crate) key: Option<KeyHint>,
    /// The first column's value of the row that the server named.
    pub(crate) first_value: Option<String>,
    /// The server's own words. They may hold values: never logged, only handed to whoever owns the data.
    pub full_text: String,
    /// The server's own words where they hold names and no values: which right, column or table is missing.
    pub(crate) safe_text: Option<String>,
}

/// A right, a column, a table or a schema is missing: the words name it, and quote no value.
const WORDS_ARE_NAMES: [&str; 4] = ["42501", "42703", "42P01", "3F000"];

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
    Connection { reason: String },
    /// No connection, for want of TLS that both sides agree on. May succeed later: certificates are renewed.
    #[error(
        "no TLS connection to the database: {reason}; look at sslMode and the certificates of the credentials"
    )]
    Tls { reason: String },
    /// The connection broke during COMMIT: only the database knows whether it happened.
    #[error("the answer to COMMIT was lost: {reason}; look at the checkpoint before loading again")]
    CommitUnknown { reason: String },
    /// The caller's checkpoint is not what it was: somebody else loaded, nothing was loaded here.
    #[error("the checkpoint was moved by somebody else; start over from where it is")]
    CheckpointMoved,
    /// The caller could not say where the checkpoint moves to: nothing was loaded.
    #[error("the checkpoint cannot be moved: {0}; the same load can be tried again")]
    CheckpointFailed(String),
    /// The database is there and asks to be tried again: locks, time-outs, shutdown, too many connections.
    #[error("the database is busy: {0}; try again later")]
    Busy(Box<ServerError>),
    /// The database refused a statement about something else than the rows' table.
    #[error("the database refused a statement: {error}; grant the right, or repair what it names")]
    Statement { error: Box<ServerError> },
    /// The database refused the rows: only other rows, or another table, can succeed.
    #[error("table {table} refused the batch: {error}; other rows or another table can help")]
    Refused { table: String, error: Box<ServerError> },
    /// The database refused to make or change the table.
    #[error(
        "table {table} cannot be made or changed: {error}; grant the right, or change the table or the options"
    )]
    Schema { table: String, error: Box<ServerError> },
    /// The batch's rows beyond its memory limit cannot be read back from disk.
    #[error("rows on disk cannot be read: {0}; look at the disk of the temporary folder")]
    Spill(#[from] std::io::Error),
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
            LoadError::Connection { .. }
                | LoadError::Tls { .. }
                | LoadError::CommitUnknown { .. }
                | LoadError::CheckpointFailed(_)
                | LoadError::Busy(_)
        )
    }

    /// Whether somebody else held a lock for too long.
    pub(crate) fn is_lock_timeout(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "55P03")
    }

    /// Whether the database's user lacks a right.
    pub fn is_permission_denied(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "42501")
    }

    /// Whether a table that a statement names is not there.
    pub fn is_undefined_table(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "42P01")
    }

    /// Whether the table cannot be changed as one event alone may ask for: a type that does not exist, a default that is
    /// none. Without that event the load may succeed.
    pub fn may_be_one_events_fault(&self) -> bool {
        let LoadError::Schema { error, .. } = self else {
            return false;
        };
        // undefined type, syntax of a type, invalid column definition, type of a default
        matches!(error.sqlstate.as_str(), "42704" | "42601" | "42611" | "42804" | "42P16")
            || error.sqlstate.starts_with("22")
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
        sqlx::Error::Tls(error) => LoadError::Tls { reason: error.to_string() },
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
        copy_line: error.r#where().and_then(copy_line),
        key: error.detail().and_then(KeyHint::parse),
        first_value: error.detail().and_then(first_value),
        full_text: format!("{}{detail}", error.message()),
        safe_text: has_names_only(error).then(|| error.message().to_owned()),
    });
    match (&server.sqlstate[..2.min(server.sqlstate.len())], purpose) {
        ("08", _) => LoadError::Connection { reason: server.to_string() },
        // wrong password or unknown role, unknown database
        ("28" | "3D", _) => LoadError::Config(server.full_text),
        // resources, locks and time-outs, system errors, deadlocks, shutdown, a standby after a failover
        ("53" | "55" | "57" | "58" | "40" | "25", _) => LoadError::Busy(server),
        // a right, a column or a type is missing: no row can help that
        ("42", Purpose::Rows { table }) => {
            LoadError::Schema { table: table.to_owned(), error: server }
        }
        (_, Purpose::Rows { table }) => {
            LoadError::Refused { table: table.to_owned(), error: server }
        }
        (_, Purpose::Schema { table }) => {
            LoadError::Schema { table: table.to_owned(), error: server }
        }
        (_, Purpose::Other) => LoadError::Statement { error: server },
    }
}

/// A trigger may raise any code with any words.
fn has_names_only(error: &PgDatabaseError) -> bool {
    WORDS_ARE_NAMES.contains(&error.code()) && error.routine() != Some("exec_stmt_raise")
}

fn kind_of(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Protocol(_) => "the protocol broke",
        sqlx::Error::PoolClosed => "the pool is closed",
        sqlx::Error::WorkerCrashed => "the driver's worker crashed",
        _ => "the driver failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_copy_is_found_in_any_language() {
        let cases = [
            ("COPY t, line 12, column c: \"x, y 9\"", Some(12)),
            ("COPY my, table, Zeile 7", Some(7)),
            ("COPY t, line 3: \"1,2\"", Some(3)),
            ("SQL statement \"insert, line 5\"", None),
            ("COPY t", None),
        ];
        for (context, line) in cases {
            assert_eq!(copy_line(context), line, "{context}");
        }
    }

    #[test]
    fn a_key_is_found_in_any_language() {
        let hint = KeyHint::parse("Schlüssel »(a, b)=(1, x(2))« ist nicht da.").unwrap();
        assert_eq!((hint.columns.as_str(), hint.values.as_str()), ("a, b", "1, x(2)"));
        let quoted = KeyHint::parse("Key (\"userId\")=(5) already exists.").unwrap();
        assert_eq!((quoted.columns.as_str(), quoted.values.as_str()), ("userId", "5"));
        assert_eq!(KeyHint::parse("Failing row contains (1, 2)."), None);
        assert_eq!(first_value("Failing row contains (1, 2).").as_deref(), Some("1"));
        assert_eq!(first_value("Failing row contains (x y).").as_deref(), Some("x y"));
    }
}
