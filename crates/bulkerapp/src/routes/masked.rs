//! Replies with an id instead of a reason: the reason is for readers of the log.

use std::fmt::Display;

use appbase::http::error_reply;
use axum::{http::StatusCode, response::Response};
use tracing::error;
use uuid::Uuid;

/// 500 with an id and the kind of the error; the log has the detail beside the same id.
pub(super) fn masked_error(kind: &str, detail: &dyn Display) -> Response {
    let id = Uuid::new_v4().simple();
    error!(error_id = %id, kind, error = %detail, "request failed");
    error_reply(StatusCode::INTERNAL_SERVER_ERROR, &format!("error# {id}: {kind}"))
}
