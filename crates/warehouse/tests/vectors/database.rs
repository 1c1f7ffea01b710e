//! The destination of a case, in a database of its own.

use testkit::Database;
use warehouse::postgres::{Credentials, Postgres, Settings};

/// The default schema of a case.
pub(crate) const SCHEMA: &str = "bulker";

pub(crate) fn destination(database: &Database) -> Result<Postgres, String> {
    let mut credentials = database.credentials();
    credentials["defaultSchema"] = SCHEMA.into();
    let credentials = Credentials::read(&credentials).map_err(|error| error.to_string())?;
    Postgres::new(&credentials, Settings::default()).map_err(|error| error.to_string())
}
