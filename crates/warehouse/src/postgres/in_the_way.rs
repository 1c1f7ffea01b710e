//! What has the name of a table and is none: told in words, because what the server says when the
//! table is made anew does not name it.

use sqlx::Row;

use super::{catalog::TableName, client::Connection, error::Purpose, quote_literal};
use crate::error::{LoadError, ServerError};

/// What PostgreSQL itself has for an object of the wrong kind.
const WRONG_OBJECT_TYPE: &str = "42809";

/// Fails with the kind of what stands in the place of a table that was not found. Asked only where
/// a table is missing.
pub(super) async fn check(connection: &mut Connection, name: &TableName) -> Result<(), LoadError> {
    let sql = format!(
        "select c.relkind::text from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = {} and c.relname = {}",
        quote_literal(&name.schema),
        quote_literal(&name.table)
    );
    let rows = connection.run_for(&sql, Purpose::Other).await?;
    let kind: Option<String> = rows.first().and_then(|row| row.try_get(0).ok());
    let Some(words) = kind.as_deref().and_then(words) else {
        return Ok(());
    };
    let text = format!(
        "{} is {words}, not a table; drop it, rename it, or load into another table",
        name.quoted()
    );
    Err(LoadError::Schema {
        table: name.table.clone(),
        error: Box::new(ServerError {
            sqlstate: WRONG_OBJECT_TYPE.to_owned(),
            table: Some(name.table.clone()),
            full_text: text.clone(),
            safe_text: Some(text),
            ..ServerError::default()
        }),
    })
}

/// `None`: a table, which another session has just made.
fn words(relkind: &str) -> Option<&'static str> {
    Some(match relkind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        "i" | "I" => "an index",
        "c" => "a composite type",
        _ => return None,
    })
}
