//! `POST /destinations/:destinationId/pause` and `…/resume`: holds the loading into a destination,
//! on all instances.

use std::sync::Arc;

use appbase::{
    http::{error_reply, json_reply},
    telemetry::chain,
};
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use loader::PauseError;
use serde_json::json;
use tracing::warn;

use crate::{routes::AdminToken, state::AdminState};

/// Answers with `{"destinationId":…,"paused":true,"since":…}` once the pause is kept. 404 for an
/// unknown destination, 503 where Kafka does not keep it.
pub(in crate::routes) async fn pause(
    _: AdminToken,
    State(state): State<Arc<AdminState>>,
    Path(destination_id): Path<String>,
) -> Response {
    if state.destinations.get(&destination_id).is_none() {
        return unknown(&destination_id);
    }
    match state.pauses.pause(&destination_id).await {
        Ok(since) => {
            let reply = json!({"destinationId": destination_id, "paused": true, "since": since.to_string()});
            json_reply(StatusCode::OK, &reply)
        }
        Err(error) => not_kept(&destination_id, &error),
    }
}

/// Answers with `{"destinationId":…,"paused":false}`, also where it was not paused. 404 for a
/// destination that is neither configured nor paused.
pub(in crate::routes) async fn resume(
    _: AdminToken,
    State(state): State<Arc<AdminState>>,
    Path(destination_id): Path<String>,
) -> Response {
    match state.pauses.resume(&destination_id).await {
        Ok(false) if state.destinations.get(&destination_id).is_none() => unknown(&destination_id),
        Ok(_) => {
            json_reply(StatusCode::OK, &json!({"destinationId": destination_id, "paused": false}))
        }
        Err(error) => not_kept(&destination_id, &error),
    }
}

fn unknown(destination_id: &str) -> Response {
    error_reply(StatusCode::NOT_FOUND, &format!("destination not found: {destination_id}"))
}

fn not_kept(destination_id: &str, error: &PauseError) -> Response {
    warn!(destination_id, error = %chain(error), "pause or resume not kept");
    error_reply(StatusCode::SERVICE_UNAVAILABLE, &chain(error).to_string())
}
