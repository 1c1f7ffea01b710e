//! What a repository asks of a source, and of the document that it gives.

use std::future::Future;

/// What a source says at one moment.
///
/// Invariant: a document is never a part of an answer. A source that cannot read to the end gives
/// an error instead, so that what is missing from a document was really removed.
///
/// The default document stands for a source that has nothing yet. Two documents are equal when
/// their owner would do the same with both: an equal one is neither applied nor copied again.
pub trait Document: Default + PartialEq + Send + Sync + 'static {
    /// How copies are written where there is more than one way, else `()`.
    type Format: Copy + Default + Send + Sync;

    /// The document as a copy of it is written.
    fn encode(&self, format: Self::Format) -> Vec<u8>;

    /// The document of a copy. `None`: the bytes are not a document, or only a part of one.
    fn decode(bytes: &[u8], format: Self::Format) -> Option<Self>;
}

/// Where documents come from, with what it remembers to notice changes.
pub trait Source: Send {
    /// What it gives.
    type Document: Document;

    /// What operators call it, in logs and in the status.
    fn name(&self) -> &'static str;

    /// Whether it can change while the process runs.
    fn is_live(&self) -> bool {
        true
    }

    /// Everything that is there now. `None`: the same as the last time. The first reading gives a
    /// document or fails. A dropped call (it took too long, or the service stops) leaves a source
    /// that can be read again.
    fn read(
        &mut self,
    ) -> impl Future<Output = Result<Option<Self::Document>, SourceReadError>> + Send;

    /// Waits until it is worth reading again. A dropped call may forget a change that was noticed;
    /// a later reading finds it.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Why there is no source to read from; no retry mends it. Quotes no setting: they may be secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceSettingsError {
    /// The text is not an address of this kind of source.
    #[error("the address is not readable")]
    Address,
    /// The client for an address that is fine cannot be made.
    #[error("HTTP client: {0}")]
    Client(String),
}

/// Why a source gave no document. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SourceReadError {
    reason: String,
    /// The `errorType` that it is counted as.
    pub(super) label: String,
    /// There is nothing where the document should be; see [`SourceReadError::missing`].
    pub(super) is_missing: bool,
}

impl SourceReadError {
    /// A failure that is counted as `error`. The reason goes to logs and to the status.
    pub fn new(reason: String) -> SourceReadError {
        SourceReadError { reason, label: "error".to_owned(), is_missing: false }
    }

    /// What came is not what it should be: counted as `parse_error`.
    pub fn of_content(self) -> SourceReadError {
        self.labelled("parse_error".to_owned())
    }

    /// Counted as `label`, of which there may be few.
    pub fn labelled(self, label: String) -> SourceReadError {
        SourceReadError { label, ..self }
    }

    /// There is nothing where the document should be: a failure later, but no reason for a new
    /// installation not to start.
    pub fn missing(self) -> SourceReadError {
        SourceReadError { is_missing: true, ..self }
    }
}
