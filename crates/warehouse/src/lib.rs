//! The loading library: JSON events in, warehouse tables out. It knows no Kafka, no HTTP, no environment.
//!
//! ```no_run
//! use warehouse::{Batch, LoadOptions, StreamOptions};
//! use warehouse::postgres::{Credentials, Postgres, Settings};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let credentials = Credentials::read(&serde_json::json!({
//!     "host": "localhost", "database": "shop", "defaultSchema": "events",
//!     "username": "loader", "password": "…",
//! }))?;
//! let postgres = Postgres::new(&credentials, Settings::default())?;
//! let mut batch = Batch::new("signups", StreamOptions::default().into())?;
//! batch.push(br#"{"id": 1, "user": {"plan": "pro"}, "at": "2026-11-24T10:00:00Z"}"#)?;
//! let report = postgres.load(vec![batch], None, LoadOptions::default()).await?;
//! assert_eq!(report.counts.loaded, 1); // columns id, user_plan, at
//! # Ok(())
//! # }
//! ```
//!
//! Rules and SQL are apart. [`Batch`] turns events into rows without a database, in memory or, beyond a limit, on disk.
//! [`postgres`] reads the table, fits the batch to it, changes the table where columns are missing, and moves the
//! rows by COPY, in one transaction with the caller's [`Checkpoint`]. Rows that the database refuses fail the load or
//! are cut out of it ([`Refusals`]). [`stream`] keeps the account of one batch, or of events stored one by one.

mod batch;
mod convert;
mod data_type;
mod dedup;
mod hints;
mod identifier;
mod json;
mod micro_batch;
mod options;
mod path;
pub mod postgres;
mod row;
mod rows;
mod scan;
mod scratch;
mod sql_type;
pub mod stream;
mod timestamp;
mod walk;

pub use batch::{Batch, Replaces};
pub use data_type::DataType;
pub use identifier::{NameOf, identifier};
pub use json::{MAX_DEPTH, check_event};
pub use micro_batch::{MicroBatch, RowPlace};
pub use options::{OptionError, SchemaField, StreamOptions};
pub use postgres::{
    Checkpoint, LoadCounts, LoadError, LoadOptions, LoadReport, Refusals, RefusedRow, RowsOf,
    SchemaChanges,
};
pub use row::RowError;
pub use rows::MemoryLimit;
