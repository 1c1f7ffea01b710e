//! `GET /failed/:destinationId`: the events that could not be loaded, a line each.

mod filter;
mod line;

use std::{sync::Arc, time::Duration};

use appbase::{http::error_reply, telemetry::chain};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use jiff::Timestamp;
use kafkabase::{Message, TopicId, TopicMode, headers};
use loader::{EventStates, StateOfRefused};
use tokio::time::timeout;
use tracing::warn;

use crate::{
    routes::{BodyReader, masked::masked_error, query},
    state::AdminState,
};
use filter::{Filter, Status};
use line::{Details, write_detailed_line, write_line};

/// How long the destination's database may take to tell what it knows.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// Answers 200 and the events that were there when it was asked, as they come out of Kafka.
pub(in crate::routes) async fn failed(
    _: BodyReader,
    State(state): State<Arc<AdminState>>,
    Path(destination_id): Path<String>,
    uri: Uri,
) -> Response {
    let (status, filter) = match Filter::read(&destination_id, query::of(&uri)) {
        Ok(asked) => asked,
        Err(error) => return error_reply(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let prefix = state.topic_prefix.clone();
    let topic = match status {
        Status::Dead => state.failed_events.dead_letter_topic().to_owned(),
        Status::Retry => match TopicId::new(&destination_id, TopicMode::Retry, "", 0).name(&prefix)
        {
            Ok(topic) => topic,
            Err(error) => {
                let text = format!("couldn't generate topicId: {error}");
                return error_reply(StatusCode::BAD_REQUEST, &text);
            }
        },
    };
    let mut states = event_states(&state, &destination_id, status).await;
    let lines = state.failed_events.read(&topic, move |message, out| {
        let is_wanted = filter.wants(&prefix, message)
            && states.counts(message.header(headers::ORIGIN), message.header(headers::RETRIES));
        if !is_wanted {
            return;
        }
        match filter.has_details {
            true => write_detailed_line(&details(&prefix, message, status), message.payload(), out),
            false => write_line(message.payload(), out),
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

fn details(prefix: &str, message: &Message, status: Status) -> Details {
    let text = |name| String::from_utf8_lossy(message.header(name).unwrap_or_default());
    let topic = TopicId::parse(prefix, &text(headers::ORIGINAL_TOPIC));
    let (mode, table_name) = topic.map_or_else(Default::default, |id| (id.mode.as_str(), id.table));
    Details {
        table_name,
        mode,
        reason: text(headers::ERROR).into_owned(),
        retries: text(headers::RETRIES).parse().unwrap_or(0),
        failed_at: message
            .timestamp_ms()
            .and_then(|at| Some(Timestamp::from_millisecond(at).ok()?.to_string())),
        retry_at: match status {
            Status::Retry => {
                message.header(headers::RETRY_TIME).map(|_| text(headers::RETRY_TIME).into_owned())
            }
            Status::Dead => None, // it has the time of an attempt that there will not be
        },
    }
}

/// What the destination's database knows of its refused events. Without it, all copies are shown.
async fn event_states(state: &AdminState, destination_id: &str, status: Status) -> EventStates {
    let Some(target) = state.targets.get(destination_id) else {
        return EventStates::unknown();
    };
    let wanted = match status {
        Status::Dead => StateOfRefused::Dead,
        Status::Retry => StateOfRefused::Waiting,
    };
    match timeout(ASK_WITHIN, EventStates::read(&target, wanted)).await {
        Ok(Ok(states)) => return states,
        Ok(Err(error)) => warn!(
            destination_id,
            error = %chain(&error),
            "states of refused events not known: copies of one event are shown one by one"
        ),
        Err(_) => warn!(destination_id, "states of refused events not known in time"),
    }
    EventStates::unknown()
}
