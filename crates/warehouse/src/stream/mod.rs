//! Streams: the life of one batch, from its first event to its outcome, and what it tells about itself.
//!
//! A stream adds nothing to what is loaded; it keeps the account. Services that keep their own (offsets, say)
//! use [`Batch`](crate::Batch) and a destination's `load` without it.

mod batch;
mod state;

pub use batch::BatchStream;
pub use state::{Representation, State, Status};

use crate::{options::OptionError, postgres::LoadError, row::RowError};

/// Why a call of a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("stream is not active")]
    NotActive,
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The event cannot become a row; the stream goes on without it.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Nothing of the stream is in the table.
    #[error(transparent)]
    Load(#[from] LoadError),
}
