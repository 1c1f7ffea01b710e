//! Why a call stored nothing, and how that is answered.

use appbase::{http::error_reply, telemetry::chain};
use axum::{
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use warehouse::{RowError, SpillError, bulk::StreamError};

use super::lines::LineError;
use crate::{
    intake::bulk_permits::QueueFull,
    routes::{encoding::PackedBody, masked::masked_error},
};

/// Seconds after which a sender that found no room should try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("10");

/// Why a call stored nothing, or, in mode `stream`, nothing more.
#[derive(Debug, thiserror::Error)]
pub(super) enum BulkError {
    // types and details as clients of the original know them
    #[error("destination not found: destination not found: {0}")]
    UnknownDestination(String),
    /// An administrator holds all loading into it.
    #[error("destination is paused: {0}")]
    Paused(String),
    #[error("missing required parameter: tableName query parameter is required")]
    NoTable,
    #[error("invalid table name: {0} is a table of the loader's own")]
    OwnTable(String),
    #[error(transparent)]
    Packed(#[from] PackedBody),
    #[error("schema unmarshal error: {0}")]
    Schema(String),
    #[error("too many calls: {0}")]
    QueueFull(#[from] QueueFull),
    #[error("create stream error: {0}")]
    Create(String),
    #[error("aborted: {0}")]
    Aborted(String),
    // spelled so for ever
    #[error("unmarhsal error: {0}")]
    NoObject(RowError),
    #[error("stream consume error: {0}")]
    Consume(String),
    #[error("no room for rows: {0}")]
    NoRoom(SpillError),
    #[error("scanner error: {0}")]
    Lines(#[from] LineError),
    #[error("stream complete error: {0}")]
    Complete(String),
}

impl BulkError {
    pub(super) fn create(error: impl Into<StreamError>) -> BulkError {
        BulkError::Create(chain(&error.into()).to_string())
    }

    pub(super) fn consume(error: StreamError) -> BulkError {
        match error {
            StreamError::Row(error) if error.is_parse_error() => BulkError::NoObject(error),
            error => BulkError::Consume(chain(&error).to_string()),
        }
    }

    /// The `errorType` label: the part of the text that does not change.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            BulkError::UnknownDestination(_) => "destination not found",
            BulkError::Paused(_) => "destination is paused",
            BulkError::NoTable => "missing required parameter",
            BulkError::OwnTable(_) => "invalid table name",
            BulkError::Packed(_) => "unsupported content encoding",
            BulkError::Schema(_) => "schema unmarshal error",
            BulkError::QueueFull(_) => "too many calls",
            BulkError::NoRoom(_) => "no room for rows",
            BulkError::Create(_) => "create stream error",
            BulkError::Aborted(_) => "aborted",
            BulkError::NoObject(_) => "unmarhsal error",
            BulkError::Consume(_) => "stream consume error",
            BulkError::Lines(_) => "scanner error",
            BulkError::Complete(_) => "stream complete error",
        }
    }
}

impl IntoResponse for BulkError {
    fn into_response(self) -> Response {
        match &self {
            BulkError::Packed(_) => PackedBody.into_response(),
            BulkError::UnknownDestination(_) => {
                error_reply(StatusCode::NOT_FOUND, &self.to_string())
            }
            BulkError::Paused(_) => error_reply(StatusCode::SERVICE_UNAVAILABLE, &self.to_string()),
            BulkError::QueueFull(_) | BulkError::Lines(LineError::Slow(_)) => try_again(&self),
            BulkError::NoRoom(_) => {
                error_reply(StatusCode::INSUFFICIENT_STORAGE, &self.to_string())
            }
            BulkError::Create(detail) => masked_error(self.kind(), detail),
            _ => error_reply(StatusCode::BAD_REQUEST, &self.to_string()),
        }
    }
}

/// Nothing is wrong with the request but the moment.
fn try_again(error: &BulkError) -> Response {
    let mut response = error_reply(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
    response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    response
}
