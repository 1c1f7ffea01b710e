//! The words of a load that all kinds of warehouses share: how batches are loaded, and what became
//! of their events.

use std::time::Duration;

use crate::error::ServerError;

/// How batches are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// What a refused row does to the others.
    pub refusals: Refusals,
    /// Where the table gets the columns and the key that it lacks.
    pub schema_changes: SchemaChanges,
    /// Whether the rows are a batch's or those of single events.
    pub rows: RowsOf,
}

/// What the rows of a batch stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowsOf {
    /// A batch: all rows have all its columns, those that an event lacks are NULL.
    #[default]
    Batch,
    /// Single events that are alike ([`MicroBatch`](crate::MicroBatch)): the result is that of
    /// inserting one after the other. What an event lacks stays as it is, or gets its default.
    Events,
}

/// What a row that the database refuses does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Refusals {
    /// Nothing is loaded.
    #[default]
    Fail,
    /// The others are loaded, and the report names it. A batch that replaces rows fails all the
    /// same.
    Isolate,
}

/// Where tables are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchemaChanges {
    /// In short transactions of their own, before the load: its locks on the table are not held
    /// while rows are sent.
    #[default]
    BeforeLoad,
    /// In the load's transaction, rolled back with it. So are, always, those for a batch that
    /// replaces rows.
    InLoad,
}

/// What became of the events of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadCounts {
    /// Rows inserted or updated.
    pub loaded: u64,
    /// Events that are no row of their own: replaced by another one with the same key in their
    /// batch, or without any column where the batch has none.
    pub merged: u64,
    /// Rows that the database refused.
    pub refused: u64,
}

/// A row that the database refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRow {
    /// The index of its batch among those of the load.
    pub batch: usize,
    /// The number of its event in the batch, from 0.
    pub row: usize,
    /// What the server said of the row. Its text may quote the row's values.
    pub error: ServerError,
}

/// A table that rows were loaded into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadedTable {
    /// The index of its batch among those of the load.
    pub batch: usize,
    /// The table's final name, without its schema.
    pub name: String,
    /// Names and SQL types, in the table's order.
    pub columns: Vec<(String, String)>,
    /// Columns of the primary key, in its order.
    pub key: Vec<String>,
    /// The name of the primary key's constraint; `None`: the table has no primary key.
    pub key_name: Option<String>,
}

/// What a load did.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// The sums over all batches.
    pub counts: LoadCounts,
    /// In the order of the batches and their events.
    pub refused: Vec<RefusedRow>,
    /// One for each batch that had work to do, in their order.
    pub tables: Vec<LoadedTable>,
    /// How long reading and changing tables took.
    pub prepared_in: Duration,
    /// How long sending the rows and merging them took.
    pub sent_in: Duration,
    /// How long moving the ledger and COMMIT took; zero until then.
    pub committed_in: Duration,
}
