//! What PostgreSQL's errors mean to the loader.

use sqlx::postgres::PgDatabaseError;

use crate::error::{KeyHint, LoadError, ServerError};

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

/// A right, a column, a table or a schema is missing: the words name it, and quote no value.
const WORDS_ARE_NAMES: [&str; 4] = ["42501", "42703", "42P01", "3F000"];

/// What a statement was for; it decides what a refusal means.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose<'a> {
    Rows {
        table: &'a str,
    },
    Schema {
        table: &'a str,
    },
    /// Statements of the caller.
    Other,
}

/// Classifies an error of sqlx by what the caller does next.
pub(super) fn classify(error: sqlx::Error, purpose: Purpose<'_>) -> LoadError {
    match error {
        sqlx::Error::Database(error) => {
            let Some(error) = error.try_downcast_ref::<PgDatabaseError>() else {
                return LoadError::Connection { reason: "an error of another driver".to_owned() };
            };
            classify_server_error(error, purpose)
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

fn classify_server_error(error: &PgDatabaseError, purpose: Purpose<'_>) -> LoadError {
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
        // resources, locks and time-outs, system errors, deadlocks, shutdown, a standby after a
        // failover
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
