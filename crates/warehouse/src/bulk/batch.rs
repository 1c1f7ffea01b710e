//! A stream of the batch family: rows become visible together when it completes, or not at all.
//!
//! Invariant: an event that fails changes nothing else; only `complete` touches the database. In a
//! stream that replaces rows a failed event fails the whole, because what would be missing was
//! there before.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    BulkMode, StreamError,
    state::{Phase, State, Status},
};
use crate::{
    Batch, MemoryLimit, OptionError, RowError, SpillError, StreamOptions,
    load::{LoadOptions, LoadReport, Refusals, RowsOf, SchemaChanges},
    postgres::Postgres,
    rows::batch::Replaces,
};

/// A stream is all or nothing, its changes to the table included.
const LOAD: LoadOptions = LoadOptions {
    refusals: Refusals::Fail,
    schema_changes: SchemaChanges::InLoad,
    rows: RowsOf::Batch,
};

/// One batch on its way into one table.
pub struct BatchStream {
    postgres: Postgres,
    /// Until the stream ends.
    batch: Option<Batch>,
    last_error: Option<RowError>,
    state: State,
    opened: Instant,
    bytes: u64,
}

impl BatchStream {
    /// A stream into `table` (a raw name). Options that do not fit together are refused here.
    pub fn new(
        postgres: Postgres,
        table: &str,
        mode: BulkMode,
        options: Arc<StreamOptions>,
    ) -> Result<BatchStream, OptionError> {
        let replaces = match mode {
            BulkMode::Batch | BulkMode::Stream => Replaces::Nothing,
            BulkMode::ReplaceTable => Replaces::Table,
            BulkMode::ReplacePartition => Replaces::Partition,
        };
        let batch = Batch::replacing(replaces, table, options)?;
        let state = State::new(&batch.table, mode);
        let (opened, last_error) = (Instant::now(), None);
        Ok(BatchStream { postgres, batch: Some(batch), last_error, state, opened, bytes: 0 })
    }

    /// Keeps rows beyond the limit on disk. To be called before the first event.
    #[must_use]
    pub fn with_memory_limit(mut self, limit: MemoryLimit) -> BatchStream {
        self.batch = self.batch.map(|batch| batch.with_memory_limit(limit));
        self
    }

    /// The account of the stream as it is now.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Bytes of heap that the events take, roughly.
    pub fn byte_size(&self) -> usize {
        self.batch.as_ref().map_or(0, Batch::byte_size)
    }

    /// Why they take more than the memory limit, if they do.
    pub fn spill_error(&self) -> Option<SpillError> {
        self.batch.as_ref().and_then(Batch::spill_error)
    }

    /// Takes one event (JSON). A text that is no JSON object is not even counted.
    ///
    /// Errors: [`StreamError::Row`] for an event that cannot become a row; the stream goes on
    /// without it. [`StreamError::NotActive`] once the stream has ended.
    pub fn consume(&mut self, event: &[u8]) -> Result<(), StreamError> {
        let batch = self.batch.as_mut().ok_or(StreamError::NotActive)?;
        match batch.push(event) {
            Ok(()) => {
                self.bytes += event.len() as u64;
                self.state.processed_rows += 1;
                self.state.successful_rows += 1;
                Ok(())
            }
            Err(error) => {
                if !error.is_parse_error() {
                    self.state.failed_event(error.to_string());
                    self.last_error = Some(error.clone());
                }
                Err(error.into())
            }
        }
    }

    /// Stores the good events, all or none, and ends the stream; without any good one, answers the
    /// last error if there was one.
    ///
    /// Errors: [`StreamError::Load`] where nothing was stored, [`StreamError::NotActive`] once the
    /// stream has ended. A dropped call ends the stream too: its connection is closed and the
    /// server rolls back, unless COMMIT was sent.
    pub async fn complete(&mut self) -> Result<(), StreamError> {
        let batch = self.batch.take().ok_or(StreamError::NotActive)?;
        let result = self.store(batch).await;
        match &result {
            Ok(()) => self.state.status = Status::Completed,
            Err(error) => {
                self.state.status = Status::Failed;
                self.state.successful_rows = 0;
                self.state.error = Some(error.to_string());
            }
        }
        result
    }

    /// Gives the batch up. Afterwards, or after the stream has ended, it only answers the state.
    pub fn abort(&mut self) -> &State {
        if self.batch.take().is_some() {
            self.state.status = Status::Aborted;
            self.state.successful_rows = 0;
        }
        &self.state
    }

    async fn store(&mut self, batch: Batch) -> Result<(), StreamError> {
        let fails = batch.is_empty() || batch.replaces != Replaces::Nothing;
        if let Some(error) = self.last_error.take().filter(|_| fails) {
            return Err(error.into());
        }
        let consumed_in = self.opened.elapsed();
        let is_merged = batch.options.merges_into_table();
        let report = self.postgres.load(vec![batch], LOAD).await?;
        if let Some(table) = report.tables.first() {
            self.state.representation.set_table(table);
            self.state.statistics =
                Some(Phase::total(self.phases(consumed_in, is_merged, &report)));
        }
        Ok(())
    }

    fn phases(&self, consumed_in: Duration, is_merged: bool, report: &LoadReport) -> [Phase; 5] {
        [
            Phase::new("consume", self.bytes, consumed_in),
            Phase::new("batch_size", self.bytes, Duration::ZERO),
            Phase::new("postgres_prepare_data", 0, report.prepared_in),
            Phase::new("postgres_load_data", 0, report.sent_in),
            Phase::new(if is_merged { "merge" } else { "copy" }, 0, report.committed_in),
        ]
    }
}
