//! A batch stream: rows become visible together when it completes, or not at all.
//!
//! Invariant: an event that fails is left out and changes nothing else; only `complete` touches the database.

use std::sync::Arc;

use super::{
    StreamError,
    state::{State, Status},
};
use crate::{
    Batch, OptionError, RowError, StreamOptions,
    postgres::{Postgres, SchemaChanges},
};

/// One batch on its way into one table.
pub struct BatchStream {
    postgres: Postgres,
    /// Until the stream ends.
    batch: Option<Batch>,
    last_error: Option<RowError>,
    state: State,
}

impl BatchStream {
    /// A stream into `table` (a raw name). Options that do not fit together are refused here.
    pub fn new(
        postgres: Postgres,
        table: &str,
        options: Arc<StreamOptions>,
    ) -> Result<BatchStream, OptionError> {
        let batch = Batch::new(table, options)?;
        let state = State::new(table, "batch");
        Ok(BatchStream { postgres, batch: Some(batch), last_error: None, state })
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes one event (JSON). A text that is no JSON object is not even counted.
    pub fn consume(&mut self, event: &[u8]) -> Result<(), StreamError> {
        let batch = self.batch.as_mut().ok_or(StreamError::NotActive)?;
        match batch.push(event) {
            Ok(()) => {
                self.state.processed_rows += 1;
                self.state.successful_rows += 1;
                Ok(())
            }
            Err(error) => {
                if !error.is_parse_error() {
                    self.state.error_row_index = self.state.processed_rows;
                    self.state.error = Some(error.to_string());
                    self.last_error = Some(error.clone());
                }
                Err(error.into())
            }
        }
    }

    /// Stores the good events; without any, answers the last error if there was one.
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
        if batch.is_empty() {
            return match self.last_error.take() {
                Some(error) => Err(error.into()),
                None => Ok(()), // nothing came: nothing is touched, not even the connection
            };
        }
        // a stream is all or nothing, its changes to the table included
        self.postgres.load_with(vec![batch], None, SchemaChanges::InLoad).await?;
        Ok(())
    }
}
