//! A document in PostgreSQL: the rows of a query, and `last_updated` says when to ask.
//!
//! Invariant: both are read in one transaction that sees one moment, and to the end: a connection
//! that breaks in between gives an error, never a short list.

use std::{str::FromStr, time::Duration};

use reqwest::Url;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, Row, ValueRef,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::time::Instant;

use super::source::{Document, Source, SourceReadError, SourceSettingsError};

/// How long `last_updated` is believed: a change with an earlier time may be committed after a
/// later one.
const BELIEVED_FOR: Duration = Duration::from_secs(60);
const BEGIN: &str = "begin isolation level repeatable read, read only; \
    set local statement_timeout = '20s'; set local time zone 'UTC'; set local datestyle = 'ISO'";
const LAST_UPDATED: &str = "select * from last_updated";
/// How the zero time of the original starts; it stands for an empty set.
const ZERO_TIME: &str = "0001-01-01 ";

/// Where the rows are, and how they are asked for.
pub struct PostgresSettings {
    /// `postgres://…`; `search_path` or `schema` in its query names the schema. May hold a
    /// password.
    pub url: String,
    /// Gives the rows of a document.
    pub query: String,
    /// How the server sees the connection.
    pub application_name: &'static str,
    /// Between two looks at `last_updated`.
    pub period: Duration,
}

/// A row of the query.
pub struct TextRow(PgRow);

impl TextRow {
    /// A value as PostgreSQL prints it, whatever its type; columns are counted from 0. `None` is
    /// NULL, no such column, or no UTF-8.
    pub fn text(&self, column: usize) -> Option<&str> {
        let value = self.0.try_get_raw(column).ok()?;
        if value.is_null() { None } else { value.as_str().ok() }
    }
}

/// A query that is asked when the table or view `last_updated` holds another time than before, and
/// once a minute in any case. Each reading takes 20 s per statement at the most. A time that starts
/// with `0001-01-01` stands for no rows. The connection is kept, and made anew after a failure.
pub struct PostgresSource<D> {
    options: PgConnectOptions,
    schema: Option<String>,
    query: String,
    period: Duration,
    parse: fn(&[TextRow]) -> Result<D, String>,
    connection: Option<PgConnection>,
    /// `last_updated` of the last reading, and when that was.
    known: Option<(String, Instant)>,
}

impl<D: Document> PostgresSource<D> {
    /// Nothing is connected yet. `parse` makes a document of all rows, or says what is wrong with
    /// them without quoting them.
    pub fn new(
        settings: PostgresSettings,
        parse: fn(&[TextRow]) -> Result<D, String>,
    ) -> Result<PostgresSource<D>, SourceSettingsError> {
        let PostgresSettings { url, query, application_name, period } = settings;
        let mut url = Url::parse(&url).map_err(|_| SourceSettingsError::Address)?;
        let schema = take_schema(&mut url);
        let options = PgConnectOptions::from_str(url.as_str())
            .map_err(|_| SourceSettingsError::Address)?
            .application_name(application_name)
            // a pooler in transaction mode keeps no prepared statements
            .statement_cache_capacity(0)
            .disable_statement_logging();
        let (connection, known) = (None, None);
        Ok(PostgresSource { options, schema, query, period, parse, connection, known })
    }

    async fn read_with(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Option<D>, SourceReadError> {
        run(connection, &self.begin()).await?;
        let rows = run(connection, LAST_UPDATED).await?;
        let last_updated = rows.first().and_then(|row| row.text(0)).map(str::to_owned);
        let last_updated = last_updated
            .ok_or_else(|| SourceReadError::new("last_updated holds no time".to_owned()))?;
        let is_known = self
            .known
            .as_ref()
            .is_some_and(|(known, at)| *known == last_updated && at.elapsed() < BELIEVED_FOR);
        let rows = if is_known {
            None
        } else if last_updated.starts_with(ZERO_TIME) {
            Some(Vec::new())
        } else {
            Some(run(connection, &self.query).await?)
        };
        run(connection, "commit").await?;
        let Some(rows) = rows else { return Ok(None) };
        let document =
            (self.parse)(&rows).map_err(|problem| SourceReadError::new(problem).of_content())?;
        self.known = Some((last_updated, Instant::now()));
        Ok(Some(document))
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

impl<D: Document> Source for PostgresSource<D> {
    type Document = D;

    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn read(&mut self) -> Result<Option<D>, SourceReadError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => PgConnection::connect_with(&self.options).await.map_err(|e| failed(&e))?,
        };
        let read = self.read_with(&mut connection).await?;
        self.connection = Some(connection); // after an error, or dropped, it is closed instead
        Ok(read)
    }

    async fn changed(&mut self) {
        tokio::time::sleep(self.period).await;
    }
}

/// The rows of statements without parameters.
async fn run(connection: &mut PgConnection, sql: &str) -> Result<Vec<TextRow>, SourceReadError> {
    let rows = connection.fetch_all(sqlx::raw_sql(sql)).await.map_err(|error| failed(&error))?;
    Ok(rows.into_iter().map(TextRow).collect())
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

/// The server's text only where it cannot quote a value: about names, rights and its own state.
fn failed(error: &sqlx::Error) -> SourceReadError {
    let sqlx::Error::Database(database) = error else {
        return SourceReadError::new(error.to_string());
    };
    let code = database.code().unwrap_or_default();
    let is_harmless = ["08", "28", "3D", "42", "53", "57"].iter().any(|c| code.starts_with(c));
    let message = if is_harmless { database.message() } else { "refused by the server" };
    SourceReadError::new(format!("{message} (SQLSTATE {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::samples::Words;

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
        let settings = PostgresSettings {
            url: "postgres://h/d?schema=a%22b".to_owned(),
            query: "select 1".to_owned(),
            application_name: "test",
            period: Duration::from_secs(1),
        };
        let source = PostgresSource::new(settings, |_| Ok(Words::default())).unwrap();
        assert!(source.begin().ends_with(r#"set local search_path = "a""b""#));
    }
}
