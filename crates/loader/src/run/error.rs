//! How a run ends: where it left its topic, or why it ended early.

use kafkabase::{AdminError, OpenError, Unconfirmed};
use warehouse::LoadError;

use crate::{
    batch::{load::BatchError, reader::ReadError},
    protocol::start::HoldReason,
    retry::refused_producer::ProduceError,
};

/// Where a run left its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// Loaded up to this offset, the first that is not loaded yet.
    At { next_offset: i64 },
    /// Nothing was loaded, and why.
    Held(HoldReason),
}

/// Why a run ended early. What it loaded before stays loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("Kafka did not answer")]
    Kafka(#[from] AdminError),
    #[error("Kafka refused to hand out the partition")]
    Assign(#[from] OpenError),
    #[error("reading the topic failed")]
    Read(#[from] ReadError),
    #[error("the warehouse did not take the batch")]
    Load(#[from] LoadError),
    #[error("refused events cannot be moved")]
    Move(#[from] Unconfirmed),
    #[error("refused events cannot be produced")]
    Produce(#[from] ProduceError),
    #[error("the run did not move for too long and was ended where it stood")]
    Aborted,
    #[error("the run panicked")]
    Panicked,
    #[error("the reading thread ended before its end")]
    ReaderDied,
    #[error("the position kept moving: another loader is at work")]
    Contended,
    #[error("the ledger is gone that says how far the topic is loaded")]
    LedgerLost,
}

impl From<BatchError> for RunError {
    fn from(error: BatchError) -> RunError {
        match error {
            BatchError::Warehouse(error) => RunError::Load(error),
            BatchError::Produce(error) => RunError::Produce(error),
        }
    }
}

impl RunError {
    /// The label of the error in `bulkerapp_consumer_error`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            RunError::Kafka(_) => "kafka error",
            RunError::Assign(_) => "assignment_error",
            RunError::Read(error) if error.is_stalled() => "stalled",
            RunError::Read(_) | RunError::ReaderDied => "consumer_error",
            RunError::Move(_) | RunError::Produce(_) => "retry_topic_error",
            RunError::Load(LoadError::Tls { .. }) => "warehouse_tls",
            RunError::Load(error) if error.is_permission_denied() => "warehouse_permission_denied",
            RunError::Load(error) if error.is_retriable() => "warehouse_unavailable",
            RunError::Load(LoadError::Config(_)) => "warehouse_misconfigured",
            RunError::Load(_) => "bulker_stream_error",
            RunError::Contended => "contended",
            RunError::LedgerLost => "ledger_lost",
            RunError::Aborted => "aborted",
            RunError::Panicked => "panic",
        }
    }

    /// Whether the reader got nothing although there was something: its client may be stuck.
    pub(crate) fn is_stalled_read(&self) -> bool {
        matches!(self, RunError::Read(error) if error.is_stalled())
    }

    /// Whether the warehouse could not be reached; `None`: it was not asked.
    pub(crate) fn tells_of_outage(&self) -> Option<bool> {
        match self {
            RunError::Aborted => Some(true),
            RunError::Load(error) => Some(error.is_retriable()),
            _ => None,
        }
    }
}
