//! `POST /post/:destinationId`: one event into the topic of its table.
//!
//! Invariant: 200 means (in durable mode) that Kafka acknowledged the event or that it is synced
//! into the spool, and that it is one JSON object.

use std::{borrow::Cow, sync::Arc, time::Duration};

use appbase::http::{BodyError, error_reply, ok_message, read_body};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use kafkabase::{
    AdminError, SendError, TopicMode, TopicNameError, check_length, headers, topic_name,
};
use tracing::error;
use uuid::Uuid;
use warehouse::{RowError, check_event, is_own_table};

use crate::{
    destinations::Destination,
    metrics::HANDLER_EVENTS,
    routes::{
        Authorized,
        encoding::{PackedBody, check_unpacked},
        query,
    },
    state::IntakeState,
    topics::NotAdmitted,
};

/// Seconds after which a refused sender should try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");
/// The largest number of a table's further topics.
const MAX_PARTITION: u32 = 1023;
/// How long a request waits until its topic is made, or seen, where its event cannot go elsewhere.
pub(super) const MADE_WITHIN: Duration = Duration::from_secs(15);

/// Why an event is not taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::routes) enum PostError {
    // the type of the error and its detail, which repeats it, as clients of the original know them
    #[error("destination not found: destination not found: {0}")]
    UnknownDestination(String),
    #[error("invalid bulker mode: invalid bulker mode: {0}")]
    Mode(String),
    #[error("missing required parameter: tableName query parameter is required")]
    NoTable,
    #[error("invalid table name: {0} is a table of the loader's own")]
    OwnTable(String),
    #[error(transparent)]
    Packed(#[from] PackedBody),
    #[error("invalid partition: {0} (should be at most {MAX_PARTITION})")]
    Partition(u32),
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    #[error("couldn't generate topicId: {0}")]
    TopicName(#[from] TopicNameError),
    #[error("error reading HTTP body: {0}")]
    Body(#[from] BodyError),
    #[error("invalid event: {0}")]
    Event(#[from] RowError),
    #[error("couldn't create topic: topicId {topic}: [topic-manager] {source}")]
    Topic {
        topic: String,
        #[source]
        source: AdminError,
    },
    #[error("couldn't create topic: topicId {0}: [topic-manager] not made in time")]
    TopicLater(String),
    /// Of a topic that its reader makes.
    #[error("topic not found: {0}")]
    NoTopic(String),
    #[error("producer error: {0}")]
    Send(#[from] SendError),
}

impl PostError {
    fn status(&self) -> StatusCode {
        match self {
            PostError::Packed(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            PostError::NotAdmitted(NotAdmitted::TooMany(_)) => StatusCode::TOO_MANY_REQUESTS,
            PostError::NotAdmitted(NotAdmitted::Collides(_)) => StatusCode::BAD_REQUEST,
            PostError::Topic { source, .. } if source.is_name_collision() => {
                StatusCode::BAD_REQUEST
            }
            PostError::UnknownDestination(_) | PostError::NoTopic(_) => StatusCode::NOT_FOUND,
            PostError::Mode(_)
            | PostError::NoTable
            | PostError::OwnTable(_)
            | PostError::Partition(_)
            | PostError::TopicName(_)
            | PostError::Event(_)
            | PostError::Body(BodyError::Read(_)) => StatusCode::BAD_REQUEST,
            PostError::Body(BodyError::TooLarge { .. }) | PostError::Send(SendError::TooLarge) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            PostError::Body(BodyError::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            PostError::Topic { source, .. } if source.is_refusal() => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            PostError::Topic { .. } | PostError::TopicLater(_) => StatusCode::SERVICE_UNAVAILABLE,
            PostError::Send(error) if error.is_retriable() => StatusCode::SERVICE_UNAVAILABLE,
            PostError::Send(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The `errorType` label: the part of the text that does not change.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            PostError::UnknownDestination(_) => "destination not found",
            PostError::Mode(_) => "invalid bulker mode",
            PostError::NoTable => "missing required parameter",
            PostError::OwnTable(_) => "invalid table name",
            PostError::Partition(_) => "invalid partition",
            PostError::NotAdmitted(NotAdmitted::TooMany(_)) => "too many tables",
            PostError::NotAdmitted(NotAdmitted::Collides(_)) => "invalid table name",
            PostError::Packed(_) => "unsupported content encoding",
            PostError::TopicName(_) => "couldn't generate topicId",
            PostError::Body(_) => "error reading HTTP body",
            PostError::Event(_) => "invalid event",
            PostError::Topic { .. } | PostError::TopicLater(_) => "couldn't create topic",
            PostError::NoTopic(_) => "topic not found",
            PostError::Send(_) => "producer error",
        }
    }
}

impl IntoResponse for PostError {
    fn into_response(self) -> Response {
        let status = self.status();
        if let PostError::Packed(packed) = self {
            return packed.into_response();
        }
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            error!(error = %self, "event refused");
        }
        let mut response = error_reply(status, &self.to_string());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        response
    }
}

/// Takes one event; answers 200 `{"message":"ok"}` once Kafka or the spool has it.
pub(in crate::routes) async fn post(
    _: Authorized,
    State(state): State<Arc<IntakeState>>,
    Path(destination_id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, PostError> {
    let taken = take(&state, &destination_id, &uri, &headers, body).await;
    if let Err(error) = &taken {
        // the table's name is the sender's and may be anything: no label
        let known = state.destinations.get(&destination_id);
        let known = known.as_deref();
        let (id, mode) = known.map_or(("", ""), |d| (d.config.id.as_str(), d.mode.as_str()));
        HANDLER_EVENTS.with_label_values(&[id, mode, "", "error", error.kind()]).inc();
    }
    taken.map(|()| ok_message())
}

async fn take(
    state: &IntakeState,
    destination_id: &str,
    uri: &Uri,
    headers: &HeaderMap,
    body: Body,
) -> Result<(), PostError> {
    let destination = state
        .destinations
        .get(destination_id)
        .ok_or_else(|| PostError::UnknownDestination(destination_id.to_owned()))?;
    let request = Request::read(&destination, query::of(uri), headers)?;
    let topic = topic_name(
        &state.topic_prefix,
        destination_id,
        request.mode,
        &request.table,
        request.partition,
    );
    let topic = check_length(topic)?;
    check_unpacked(headers)?;
    let event = read_body(body, state.body_limits).await?;
    check_event(&event)?;
    let known = state.tables.get(&topic);
    let is_known = state.topics.is_known(&topic);
    let (table, is_there) = match known.filter(|table| is_known && table.is_counted_by_name) {
        Some(table) => (table, true),
        None => {
            let is_there = is_known || is_made(state, destination_id, &topic).await?;
            let labels = (destination_id, request.mode, request.table.as_ref());
            (state.tables.add(&topic, is_there, &state.producer, labels), is_there)
        }
    };
    let mut key = Uuid::encode_buffer();
    let key = Uuid::new_v4().hyphenated().encode_lower(&mut key).as_bytes();
    let headers = [
        (headers::METRICS_META.as_str(), request.metrics_meta.as_bytes()),
        (headers::STREAM_OPTIONS.as_str(), request.stream_options.as_bytes()),
    ];
    let headers = if request.stream_options.is_empty() { &headers[..1] } else { &headers[..] };
    if is_there {
        state.producer.send(&table.topic, key, &event, headers).await?;
    } else {
        state.producer.send_later(&table.topic, key, &event, headers).await?;
    }
    table.events.inc();
    table.bytes.inc_by(event.len() as u64);
    Ok(())
}

/// Makes the topic. False: Kafka is away, and the event can go to the spool until it is there.
async fn is_made(
    state: &IntakeState,
    destination_id: &str,
    topic: &str,
) -> Result<bool, PostError> {
    let place = state.topics.admit(destination_id, topic)?;
    let refused = |source| PostError::Topic { topic: topic.to_owned(), source };
    let has_spool = state.producer.spool().is_some();
    let table = state.tables.get(topic).filter(|_| has_spool);
    if table.is_none()
        && let Some(other) = state.producer.spool().and_then(|spool| spool.colliding_with(topic))
    {
        return Err(NotAdmitted::Collides(other).into()); // spooled by a former process
    }
    let is_spooling = table.is_some_and(|table| state.producer.is_spooling(&table.topic));
    let is_made = if is_spooling || (has_spool && state.topics.is_away()) {
        false
    } else {
        let wait = if has_spool { state.topic_wait } else { MADE_WITHIN };
        match tokio::time::timeout(wait, state.topics.ensure(topic)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) if !has_spool || error.is_refusal() => return Err(refused(error)),
            Err(_) if !has_spool => return Err(PostError::TopicLater(topic.to_owned())),
            Ok(Err(_)) | Err(_) => false,
        }
    };
    place.keep();
    Ok(is_made)
}

/// What a request says beside its body. Headers win over the query.
struct Request<'a> {
    mode: TopicMode,
    table: Cow<'a, str>,
    partition: u32,
    metrics_meta: Cow<'a, str>,
    stream_options: Cow<'a, str>,
}

impl<'a> Request<'a> {
    fn read(
        destination: &Destination,
        query: &'a str,
        headers: &'a HeaderMap,
    ) -> Result<Request<'a>, PostError> {
        let mut request = Request {
            mode: destination.mode,
            table: Cow::Borrowed(""),
            partition: 0,
            metrics_meta: Cow::Borrowed(""),
            stream_options: Cow::Borrowed(""),
        };
        let mut mode = Cow::Borrowed("");
        for (name, value) in query::parameters(query) {
            match name.as_ref() {
                "tableName" => request.table = value,
                "modeOverride" => mode = value,
                "partition" => request.partition = value.parse().unwrap_or(0),
                "metricsMeta" => request.metrics_meta = value,
                "streamOptions" => request.stream_options = value,
                _ => {}
            }
        }
        if let Some(meta) = header(headers, "metricsmeta") {
            request.metrics_meta = meta;
        }
        if let Some(options) = header(headers, "streamoptions") {
            request.stream_options = options;
        }
        if !mode.is_empty() {
            let parsed = TopicMode::parse(&mode)
                .filter(|m| matches!(m, TopicMode::Batch | TopicMode::Stream));
            request.mode = parsed.ok_or_else(|| PostError::Mode(mode.into_owned()))?;
        }
        if request.table.is_empty() {
            return Err(PostError::NoTable);
        }
        if request.partition > MAX_PARTITION {
            return Err(PostError::Partition(request.partition));
        }
        if is_own_table(&request.table) {
            return Err(PostError::OwnTable(request.table.into_owned()));
        }
        Ok(request)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    let value = headers.get(name)?.as_bytes();
    (!value.is_empty()).then(|| String::from_utf8_lossy(value))
}
