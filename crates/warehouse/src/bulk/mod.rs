//! Streams: the life of one batch, from its first event to its outcome, and what it tells about
//! itself.
//!
//! A stream adds nothing to what is loaded; it keeps the account. Services that keep their own
//! (offsets, say) use [`Batch`](crate::Batch) and a destination's `load` without it.

mod batch;
mod event;
mod state;

use std::{str::FromStr, sync::Arc};

use serde::Serialize;

pub use batch::BatchStream;
pub use event::EventStream;
pub use state::{Phase, Representation, State, Status};

use crate::{
    error::LoadError,
    kind::Warehouse,
    rows::{
        options::{OptionError, StreamOptions},
        row::RowError,
        row_store::{MemoryLimit, SpillError},
    },
};

/// What a stream does with its events, and with the rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BulkMode {
    /// Each event is stored at once.
    Stream,
    /// All are stored when the stream completes.
    Batch,
    /// The same, instead of all rows of the table.
    ReplaceTable,
    /// The same, instead of the rows of the `partitionId`.
    ReplacePartition,
}

impl FromStr for BulkMode {
    type Err = StreamError;

    fn from_str(text: &str) -> Result<BulkMode, StreamError> {
        match text {
            "stream" => Ok(BulkMode::Stream),
            "batch" => Ok(BulkMode::Batch),
            "replace_table" => Ok(BulkMode::ReplaceTable),
            "replace_partition" => Ok(BulkMode::ReplacePartition),
            _ => Err(StreamError::Mode(text.to_owned())),
        }
    }
}

/// A stream of any mode.
pub enum Stream {
    /// Of the batch family: the modes `batch`, `replace_table` and `replace_partition`.
    Batch(Box<BatchStream>),
    /// Of the mode `stream`.
    Event(Box<EventStream>),
}

impl Stream {
    /// Opens a stream into `table` (a raw name). Options that do not fit together are refused here.
    pub fn open(
        warehouse: impl Into<Warehouse>,
        table: &str,
        mode: BulkMode,
        options: Arc<StreamOptions>,
    ) -> Result<Stream, OptionError> {
        let Warehouse::Postgres(postgres) = warehouse.into();
        Ok(match mode {
            BulkMode::Stream => Stream::Event(EventStream::new(postgres, table, options)?.into()),
            _ => Stream::Batch(BatchStream::new(postgres, table, mode, options)?.into()),
        })
    }

    /// Keeps rows beyond the limit on disk, where rows are kept at all. To be called before the
    /// first event.
    #[must_use]
    pub fn with_memory_limit(self, limit: MemoryLimit) -> Stream {
        match self {
            Stream::Batch(stream) => Stream::Batch(stream.with_memory_limit(limit).into()),
            Stream::Event(stream) => Stream::Event(stream),
        }
    }

    /// Bytes of heap that waiting events take, roughly.
    pub fn byte_size(&self) -> usize {
        match self {
            Stream::Batch(stream) => stream.byte_size(),
            Stream::Event(_) => 0,
        }
    }

    /// Why they take more than the memory limit, if they do.
    pub fn spill_error(&self) -> Option<SpillError> {
        match self {
            Stream::Batch(stream) => stream.spill_error(),
            Stream::Event(_) => None,
        }
    }

    /// Takes one event (JSON). A stream of single events stores it before it answers; dropped half
    /// way, the call leaves the event stored or not, and the account without it.
    ///
    /// Errors: those of [`BatchStream::consume`] and [`EventStream::consume`].
    pub async fn consume(&mut self, event: &[u8]) -> Result<(), StreamError> {
        match self {
            Stream::Batch(stream) => stream.consume(event),
            Stream::Event(stream) => stream.consume(event).await,
        }
    }

    /// Ends the stream and stores what is not stored yet. See [`BatchStream::complete`], also for a
    /// dropped call.
    pub async fn complete(&mut self) -> Result<(), StreamError> {
        match self {
            Stream::Batch(stream) => stream.complete().await,
            Stream::Event(stream) => {
                stream.complete();
                Ok(())
            }
        }
    }

    /// Ends the stream without storing anything more; answers its account.
    pub fn abort(&mut self) -> &State {
        match self {
            Stream::Batch(stream) => stream.abort(),
            Stream::Event(stream) => stream.abort(),
        }
    }

    /// The account of the stream as it is now.
    pub fn state(&self) -> &State {
        match self {
            Stream::Batch(stream) => stream.state(),
            Stream::Event(stream) => stream.state(),
        }
    }
}

/// Why a call of a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A text that is not the name of a [`BulkMode`].
    #[error("unsupported bulk mode: {0}")]
    Mode(String),
    /// A stream of the batch family that was completed or aborted takes nothing more.
    #[error("stream is not active")]
    NotActive,
    /// A stream of single events that was completed or aborted takes nothing more.
    #[error("stream is not active. Status: {0}")]
    Ended(Status),
    /// The options cannot be taken, or do not fit together.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The event cannot become a row; the stream goes on without it.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Of a batch nothing is in the table; of a stream of single events all but this one.
    #[error(transparent)]
    Load(#[from] LoadError),
}
