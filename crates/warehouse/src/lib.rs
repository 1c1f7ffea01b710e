//! The loading library: JSON events in, warehouse tables out. It knows no Kafka, no HTTP, no environment.
//!
//! Rules and SQL are apart. `batch` turns events into rows without a database; `postgres` reads the table,
//! fits the batch to it (`fit`), changes the table where columns are missing, and moves the rows by COPY.

mod batch;
mod convert;
mod data_type;
mod dedup;
mod hints;
mod identifier;
mod json;
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
pub use options::{OptionError, SchemaField, StreamOptions};
pub use postgres::{
    Checkpoint, LoadCounts, LoadError, LoadOptions, LoadReport, Refusals, RefusedRow, SchemaChanges,
};
pub use row::RowError;
pub use rows::MemoryLimit;
