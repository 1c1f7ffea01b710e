//! What PostgreSQL's errors mean to the loader.

use sqlx::postgres::PgDatabaseError;

use crate::error::{Fault, KeyHint, LoadError, ServerError};

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

/// Classes whose words may quote values of rows: data that does not fit a type, and what functions
/// say.
const WORDS_MAY_BE_VALUES: [&str; 7] = ["22", "2F", "38", "39", "HV", "P0", "XX"];
/// Where the languages of functions raise what a function asks them to: the server's own code is
/// not what such an error means.
const RAISING_FILES: [&str; 6] =
    ["pl_exec.c", "plpy_elog.c", "plpy_plpymodule.c", "plperl.c", "pltcl.c", "plv8.cc"];

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
    let origin = Origin::of(error);
    let fault = fault(error, origin, purpose);
    let server = Box::new(ServerError {
        sqlstate: error.code().to_owned(),
        table: error.table().map(ToOwned::to_owned),
        column: error.column().map(ToOwned::to_owned),
        constraint: error.constraint().map(ToOwned::to_owned),
        copy_line: error.r#where().and_then(copy_line),
        key: error.detail().and_then(KeyHint::parse),
        first_value: error.detail().and_then(first_value),
        full_text: format!("{}{detail}", error.message()),
        safe_text: words_of_names(error, origin),
        fault,
    });
    let is_environment = fault == Fault::Environment;
    match (class(error), purpose) {
        ("08", _) if is_environment => LoadError::Connection { reason: server.to_string() },
        // wrong password or unknown role, unknown database
        ("28" | "3D", _) if is_environment => LoadError::Config(server.full_text),
        ("53" | "55" | "57" | "58" | "40" | "25", _) if is_environment => LoadError::Busy(server),
        (_, Purpose::Rows { table }) if !is_environment => {
            LoadError::Refused { table: table.to_owned(), error: server }
        }
        (_, Purpose::Rows { table } | Purpose::Schema { table }) => {
            LoadError::Schema { table: table.to_owned(), error: server }
        }
        (_, Purpose::Other) => LoadError::Statement { error: server },
    }
}

/// What of the server an error comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The statement that we sent.
    Statement,
    /// A function or a trigger that ran for it: it may be about any other table.
    Function,
    /// A function raised it: it may have any code and any words.
    Raised,
}

impl Origin {
    fn of(error: &PgDatabaseError) -> Origin {
        let file = error.file().and_then(|path| path.rsplit(['/', '\\']).next());
        if file.is_some_and(|file| RAISING_FILES.contains(&file)) {
            return Origin::Raised;
        }
        // in any language; a place in COPY's data is the statement's own
        let is_own = |context: &str| context.starts_with("COPY ");
        match error.r#where() {
            Some(context) if !is_own(context) => Origin::Function,
            _ => Origin::Statement,
        }
    }
}

/// Whose fault an error is. What is not known to be the environment's, or the rows', is unknown.
fn fault(error: &PgDatabaseError, origin: Origin, purpose: Purpose<'_>) -> Fault {
    let is_own = origin == Origin::Statement;
    match (class(error), error.code()) {
        // two sessions that make the same thing collide in the catalog
        ("23", _) if error.schema() == Some("pg_catalog") => Fault::Environment,
        // values, constraints, limits of a row or a statement, and what a function says of a row
        ("21" | "22" | "23" | "44" | "54" | "P0", _) => Fault::Event,
        // a policy of row level security refuses a row with the code of a missing right
        (_, "42501") if error.routine() == Some("ExecWithCheckOptions") => Fault::Event,
        _ if origin == Origin::Raised => Fault::Unknown,
        // resources, shutdown, system errors, deadlocks, the server's configuration
        ("53" | "57" | "58" | "40" | "F0", _) => Fault::Environment,
        // a lock or an object in use; read-only, as a standby is after a failover; transactions
        // that took too long; damage
        (_, "55P03" | "55006" | "25006" | "25P02" | "25P03" | "25P04" | "XX001" | "XX002") => {
            Fault::Environment
        }
        ("08" | "28" | "3D", _) if is_own => Fault::Environment,
        (_, "42501") if is_own => Fault::Environment,
        // a table or a column that was there when the rows were fitted to it
        (_, "42P01" | "42703") if is_own && !matches!(purpose, Purpose::Schema { .. }) => {
            Fault::Environment
        }
        ("42" | "3F", _) if matches!(purpose, Purpose::Other) => Fault::Environment,
        _ => Fault::Unknown,
    }
}

fn class(error: &PgDatabaseError) -> &str {
    error.code().get(..2).unwrap_or_default()
}

/// What the server says where that holds names and no values. A function may build its statements
/// from values of rows, and raise what it likes; the details of a constraint quote the row.
fn words_of_names(error: &PgDatabaseError, origin: Origin) -> Option<String> {
    if origin != Origin::Statement || WORDS_MAY_BE_VALUES.contains(&class(error)) {
        return None;
    }
    let detail = error.detail().filter(|_| class(error) != "23");
    let detail = detail.map(|detail| format!("; {detail}")).unwrap_or_default();
    Some(format!("{}{detail}", error.message()))
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
