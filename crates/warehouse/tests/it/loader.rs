//! A destination in a database of its own, and what tests do with it.

use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;
use testkit::Database;
use warehouse::{
    Batch, LoadError, LoadOptions, LoadReport, Refusals, RowsOf, SchemaChanges, StreamOptions,
    postgres::{Credentials, Postgres, Settings},
};

/// As bulkerapp loads.
pub(crate) const ISOLATE: LoadOptions = LoadOptions {
    refusals: Refusals::Isolate,
    schema_changes: SchemaChanges::BeforeLoad,
    rows: RowsOf::Batch,
};
/// As the specification has it.
pub(crate) const FAIL: LoadOptions = LoadOptions {
    refusals: Refusals::Fail,
    schema_changes: SchemaChanges::InLoad,
    rows: RowsOf::Batch,
};

pub(crate) struct Loader {
    pub(crate) database: Database,
    pub(crate) postgres: Postgres,
}

impl Loader {
    pub(crate) async fn new() -> Result<Loader> {
        Loader::with_settings(Settings::default()).await
    }

    pub(crate) async fn with_settings(settings: Settings) -> Result<Loader> {
        let database = testkit::postgres().await?;
        let credentials = Credentials::read(&database.credentials())?;
        let postgres = Postgres::new(&credentials, settings)?;
        Ok(Loader { database, postgres })
    }

    /// A destination whose credentials set these parameters.
    pub(crate) async fn with_parameters(parameters: &Value) -> Result<Loader> {
        let database = testkit::postgres().await?;
        let mut credentials = database.credentials();
        credentials["parameters"] = parameters.clone();
        let postgres = Postgres::new(&Credentials::read(&credentials)?, Settings::default())?;
        Ok(Loader { database, postgres })
    }

    /// A destination whose role is not the owner of the database. `sql` is run before, for the role
    /// whose name stands for `{role}`.
    pub(crate) async fn of_plain_role(sql: &str) -> Result<Loader> {
        let database = testkit::postgres().await?;
        let mut credentials = database.credentials();
        let role = format!("{}_plain", credentials["database"].as_str().unwrap_or_default());
        database.query(&format!("create role {role} login password 'plain'")).await?;
        database.query(&sql.replace("{role}", &role)).await?;
        credentials["username"] = Value::from(role);
        credentials["password"] = Value::from("plain");
        credentials["defaultSchema"] = Value::from("public");
        let postgres = Postgres::new(&Credentials::read(&credentials)?, Settings::default())?;
        Ok(Loader { database, postgres })
    }

    /// Loads events into table `t`.
    pub(crate) async fn load(
        &self,
        options: &Value,
        events: &[String],
        how: LoadOptions,
    ) -> Result<LoadReport, LoadError> {
        let batch = batch(options, events);
        self.postgres.load(vec![batch], how).await
    }

    /// The one number that a query answers.
    pub(crate) async fn number(&self, sql: &str) -> Result<i64> {
        let rows = self.database.query(sql).await?;
        let number = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
        Ok(number.unwrap_or_default().parse()?)
    }
}

pub(crate) fn options(options: &Value) -> Arc<StreamOptions> {
    let mut parsed = StreamOptions::default();
    for (key, value) in options.as_object().into_iter().flatten() {
        parsed.set(key, value).expect("a test's options parse");
    }
    Arc::new(parsed)
}

/// A batch of events for table `t`.
pub(crate) fn batch(with: &Value, events: &[String]) -> Batch {
    let mut batch = Batch::new("t", options(with)).expect("a test's options fit together");
    for event in events {
        batch.push(event.as_bytes()).expect("a test's event is taken");
    }
    batch
}
