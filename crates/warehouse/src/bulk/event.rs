//! A stream of single events: each is visible at once, and fails alone.

use std::sync::Arc;

use super::{
    BulkMode, StreamError,
    state::{State, Status},
};
use crate::{
    Batch, OptionError, StreamOptions,
    postgres::{Postgres, Table},
};

/// An unbounded sequence of events into one table.
pub struct EventStream {
    postgres: Postgres,
    table: String,
    options: Arc<StreamOptions>,
    /// The table as the last event left it; forgotten after a failure.
    known: Option<Table>,
    state: State,
}

impl EventStream {
    /// A stream into `table` (a raw name). Options that do not fit together are refused here.
    pub fn new(
        postgres: Postgres,
        table: &str,
        options: Arc<StreamOptions>,
    ) -> Result<EventStream, OptionError> {
        let options = Arc::new(StreamOptions::clone(&options).of_single_events());
        let batch = Batch::new(table, options.clone())?;
        let state = State::new(&batch.table, BulkMode::Stream);
        Ok(EventStream { postgres, table: table.to_owned(), options, known: None, state })
    }

    /// The account of the stream as it is now.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Stores one event (JSON). A text that is no JSON object is not even counted.
    ///
    /// Errors: [`StreamError::Row`] for an event that cannot become a row, [`StreamError::Load`]
    /// for one that cannot be stored; the stream goes on after both. [`StreamError::Ended`] once
    /// the stream has ended. A dropped call leaves the event stored or not, columns that were added
    /// for it in any case, and counts it as processed only.
    pub async fn consume(&mut self, event: &[u8]) -> Result<(), StreamError> {
        if self.state.status != Status::Active {
            return Err(StreamError::Ended(self.state.status));
        }
        let mut batch = Batch::new(&self.table, self.options.clone())?;
        if let Err(error) = batch.push(event) {
            if !error.is_parse_error() {
                self.state.failed_event(error.to_string());
            }
            return Err(error.into());
        }
        self.state.processed_rows += 1;
        match self.postgres.insert(batch, self.known.take()).await {
            Ok(table) => {
                self.state.successful_rows += 1;
                if let Some(table) = &table {
                    self.state
                        .representation
                        .set_table(&table.describe(0, &self.state.representation.name));
                }
                self.known = table;
                Ok(())
            }
            Err(error) => {
                self.state.failed_event(error.to_string());
                Err(error.into())
            }
        }
    }

    /// Ends the stream; that always succeeds, for its events are stored or refused already.
    pub fn complete(&mut self) -> &State {
        self.state.status = Status::Completed;
        &self.state
    }

    /// Ends the stream; what was stored stays.
    pub fn abort(&mut self) -> &State {
        self.state.status = Status::Aborted;
        &self.state
    }
}
