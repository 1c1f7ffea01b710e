//! The loading library: JSON events in, warehouse tables out. It knows no Kafka, no HTTP, no
//! environment.
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
//! let report = postgres.load(vec![batch], LoadOptions::default()).await?;
//! assert_eq!(report.counts.loaded, 1); // columns id, user_plan, at
//! # Ok(())
//! # }
//! ```
//!
//! Rules and SQL are apart. [`Batch`] turns events into rows without a database, in memory or,
//! beyond a limit, on disk. A [`Warehouse`] reads the table, fits the batch to it, changes the
//! table where columns are missing, and *stages* the rows: the database has them, and they are not
//! visible. Rows that it refuses fail the load or are cut out of it ([`Refusals`]).
//! [`Staged::commit`] makes them visible, in one transaction with the caller's changes of the
//! ledger ([`LedgerChanges`]). [`bulk`] keeps the account of one batch, or of events stored one by
//! one.

#![warn(missing_docs)]

pub mod bulk;
mod error;
mod kind;
mod ledger;
mod load;
pub mod postgres;
mod progress;
mod rows;

pub use error::{Fault, LoadError, ServerError};
pub use kind::{Kind, Ledger, Staged, Warehouse};
pub use ledger::{
    CountedPosition, EventChange, EventState, Fence, LedgerChanges, LedgerRights, Origin,
    OriginKey, PartitionKey, Position, Tally,
};
pub use load::{
    LoadCounts, LoadOptions, LoadReport, LoadedTable, Refusals, RefusedRow, RowsOf, SchemaChanges,
};
pub use progress::Progress;
pub use rows::{
    batch::Batch,
    data_type::DataType,
    disk_limit::DiskLimit,
    identifier::{NameOf, identifier},
    json::check_event,
    micro_batch::{MicroBatch, RowIndex},
    options::{LoadMode, OptionError, SchemaField, StreamOptions},
    own_table::is_own_table,
    row::RowError,
    row_store::{MemoryLimit, SpillError},
};
