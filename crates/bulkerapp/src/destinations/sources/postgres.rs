//! Destinations in PostgreSQL: a query gives a row for each, and `last_updated` says when to ask.
//!
//! Invariant: both are read in one transaction that sees one moment, and to the end: a connection that breaks in
//! between gives an error, never a short list.

use std::{str::FromStr, time::Duration};

use reqwest::Url;
use serde_json::Value;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, Row, ValueRef,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::time::Instant;

use super::{ReadError, SourceError};
use crate::destinations::{
    document::{Document, Found},
    parse::{Syntax, read_object},
};

/// How long `last_updated` is believed: a change with an earlier time may be committed after a later one.
const BELIEVED_FOR: Duration = Duration::from_secs(60);
const BEGIN: &str = "begin isolation level repeatable read, read only; \
    set local statement_timeout = '20s'; set local time zone 'UTC'; set local datestyle = 'ISO'";
const LAST_UPDATED: &str = "select * from last_updated";
/// How the zero time of the original starts; it stands for an empty set.
const ZERO_TIME: &str = "0001-01-01 ";

pub(super) struct PostgresSource {
    options: PgConnectOptions,
    schema: Option<String>,
    query: String,
    connection: Option<PgConnection>,
    /// `last_updated` of the last reading, and when that was.
    known: Option<(String, Instant)>,
}

impl PostgresSource {
    pub(super) fn new(url: &str, query: &str) -> Result<PostgresSource, SourceError> {
        let mut url = Url::parse(url).map_err(|_| SourceError::Url("postgres://"))?;
        let schema = take_schema(&mut url);
        let options = PgConnectOptions::from_str(url.as_str())
            .map_err(|_| SourceError::Url("postgres://"))?
            .application_name("bulkerapp")
            // a pooler in transaction mode keeps no prepared statements
            .statement_cache_capacity(0)
            .disable_statement_logging();
        Ok(PostgresSource {
            options,
            schema,
            query: query.to_owned(),
            connection: None,
            known: None,
        })
    }

    pub(super) async fn read(&mut self) -> Result<Option<Document>, ReadError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => PgConnection::connect_with(&self.options).await.map_err(|e| failed(&e))?,
        };
        let read = self.read_with(&mut connection).await?;
        self.connection = Some(connection); // after an error it is closed instead
        Ok(read)
    }

    async fn read_with(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Option<Document>, ReadError> {
        let run = async |connection: &mut PgConnection, sql: &str| {
            connection.fetch_all(sqlx::raw_sql(sql)).await.map_err(|error| failed(&error))
        };
        run(connection, &self.begin()).await?;
        let rows = run(connection, LAST_UPDATED).await?;
        let last_updated = rows.first().and_then(|row| text(row, 0));
        let last_updated =
            last_updated.ok_or_else(|| ReadError::new("last_updated holds no time".to_owned()))?;
        let is_known = self
            .known
            .as_ref()
            .is_some_and(|(known, at)| *known == last_updated && at.elapsed() < BELIEVED_FOR);
        let document = if is_known {
            None
        } else if last_updated.starts_with(ZERO_TIME) {
            Some(Document::default())
        } else {
            let rows = run(connection, &self.query).await?;
            let cells = rows.iter().map(|row| [text(row, 0), text(row, 1), text(row, 2)]);
            Some(parse(cells))
        };
        run(connection, "commit").await?;
        if document.is_some() {
            self.known = Some((last_updated, Instant::now()));
        }
        Ok(document)
    }

    fn begin(&self) -> String {
        match &self.schema {
            Some(schema) => {
                let schema = schema.replace('"', "\"\"");
                format!("{BEGIN}; set local search_path = \"{schema}\"")
            }
            None => BEGIN.to_owned(),
        }
    }
}

/// The schema that the address names, which is not for the driver.
fn take_schema(url: &mut Url) -> Option<String> {
    let pairs: Vec<_> = url.query_pairs().into_owned().collect();
    let (schema, others): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(name, _)| name == "search_path" || name == "schema");
    if others.is_empty() {
        url.set_query(None);
    } else {
        url.query_pairs_mut().clear().extend_pairs(others);
    }
    let named = |wanted: &str| schema.iter().find(|(name, _)| name == wanted);
    let found = named("search_path").or_else(|| named("schema"));
    found.map(|(_, schema)| schema.clone()).filter(|schema| !schema.is_empty())
}

/// A value as PostgreSQL prints it, whatever its type; `None` is NULL, or no such column.
fn text(row: &PgRow, column: usize) -> Option<String> {
    let value = row.try_get_raw(column).ok()?;
    if value.is_null() { None } else { value.as_str().ok().map(str::to_owned) }
}

/// Rows of id, kind and JSON.
fn parse(rows: impl Iterator<Item = [Option<String>; 3]>) -> Document {
    let found = rows.filter_map(|[id, kind, json]| {
        let object = read_object(json.as_deref().unwrap_or_default(), Syntax::Json);
        let is_for_us = object.as_ref().map_or(true, |object| {
            object.get("usesBulker") == Some(&Value::Bool(true)) || kind.as_deref() == Some("sync")
        });
        // the id inside counts; the row's is the next best
        let has_id = object.as_ref().is_ok_and(|object| object.contains_key("id"));
        let place = format!("row {}", id.as_deref().unwrap_or("without an id"));
        is_for_us.then_some(Found { place, id: id.filter(|_| !has_id), object })
    });
    Document(found.collect())
}

/// The server's text only where it cannot quote a value: about names, rights and its own state.
fn failed(error: &sqlx::Error) -> ReadError {
    let sqlx::Error::Database(database) = error else {
        return ReadError::new(error.to_string());
    };
    let code = database.code().unwrap_or_default();
    let is_harmless = ["08", "28", "3D", "42", "53", "57"].iter().any(|c| code.starts_with(c));
    let message = if is_harmless { database.message() } else { "refused by the server" };
    ReadError::new(format!("{message} (SQLSTATE {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_count_when_they_use_bulker_or_are_syncs() {
        let rows = [
            ("a", "destination", r#"{"id":"inside","usesBulker":true}"#),
            ("b", "sync", r#"{"type":"postgres"}"#),
            ("c", "destination", r#"{"id":"c"}"#),
            ("d", "destination", r#"{"id":"#),
        ];
        let rows = rows.map(|(id, kind, json)| [id, kind, json].map(|text| Some(text.to_owned())));
        let document = parse(rows.into_iter());
        let ids: Vec<_> = document.0.iter().map(|found| found.id()).collect();
        assert_eq!(ids, [Some("inside"), Some("b"), Some("d")]);
        assert_eq!(document.0[2].place, "row d");
    }

    #[test]
    fn the_schema_is_taken_out_of_the_address() {
        for (address, schema, rest) in [
            ("postgres://u:p@h/d?schema=a", Some("a"), "postgres://u:p@h/d"),
            (
                "postgres://h/d?sslmode=disable&search_path=b&schema=a",
                Some("b"),
                "postgres://h/d?sslmode=disable",
            ),
            ("postgres://h/d?sslmode=disable", None, "postgres://h/d?sslmode=disable"),
        ] {
            let mut url = Url::parse(address).unwrap();
            assert_eq!(take_schema(&mut url).as_deref(), schema, "{address}");
            assert_eq!(url.as_str(), rest);
        }
    }

    #[test]
    fn the_schema_is_quoted() {
        let source = PostgresSource::new("postgres://h/d?schema=a%22b", "select 1").unwrap();
        assert!(source.begin().ends_with(r#"set local search_path = "a""b""#));
    }
}
