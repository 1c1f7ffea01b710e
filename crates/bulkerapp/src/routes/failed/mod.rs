//! `GET /failed/:destinationId`: the events that could not be loaded, a line each.

mod filter;
mod line;

use std::sync::Arc;

use appbase::{http::error_reply, telemetry::chain};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use kafkabase::{Mode, TopicId};

use super::{Admin, masked::masked_error};
use crate::state::AppState;
use filter::{Filter, Status};
use line::write_line;

/// Answers 200 and the events that were there when it was asked, as they come out of Kafka.
pub(super) async fn failed(
    _: Admin,
    State(state): State<Arc<AppState>>,
    Path(destination_id): Path<String>,
    uri: Uri,
) -> Response {
    let (status, filter) = match Filter::read(&destination_id, uri.query().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(error) => return error_reply(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let prefix = state.limits.topic_prefix.clone();
    let topic = match status {
        Status::Dead => state.failed_events.dead_letter_topic().to_owned(),
        Status::Retry => match TopicId::new(&destination_id, Mode::Retry, "", 0).name(&prefix) {
            Ok(topic) => topic,
            Err(error) => {
                let text = format!("couldn't generate topicId: {error}");
                return error_reply(StatusCode::BAD_REQUEST, &text);
            }
        },
    };
    let lines = state.failed_events.read(&topic, move |message, out| {
        if filter.wants(&prefix, message) {
            write_line(message.payload(), out);
        }
    });
    match lines.await {
        Ok(lines) => {
            let chunks =
                stream::unfold(lines, async |mut lines| Some((lines.next().await?, lines)));
            ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(chunks)).into_response()
        }
        Err(error) => masked_error("consumer error", &chain(&error)),
    }
}
