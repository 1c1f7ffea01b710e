//! `POST /bulk/:destinationId`: the lines of a body straight into a table, without Kafka.
//!
//! Invariants: rows of all modes but `stream` become visible together with the 200, or not at all;
//! however long the body is, a call holds one line and a bounded part of its rows in memory, the
//! rest of the rows is on disk.

mod account;
mod lines;
mod request;

use std::{sync::Arc, time::Duration};

use appbase::{
    http::{error_reply, ok_message, ordered_json_reply},
    telemetry::chain,
};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use eventslog::{EventType, Level};
use tokio::time::Instant;
use tracing::info;
use warehouse::{
    RowError,
    bulk::{Stream, StreamError},
};

use crate::{
    metrics::{HANDLER_BULK, HANDLER_BYTES},
    routes::{Authorized, encoding::PackedBody, masked::masked_error, query},
    state::BulkState,
};
use account::Account;
use lines::{LineError, Lines};
use request::BulkRequest;

/// How long a sender may be silent in the middle of its body.
const PATIENCE: Duration = Duration::from_secs(300);
/// A line that starts so gives the load up.
const ABORT: &[u8] = b"ABORT";
/// Rows that take so many times their limit are rows that the disk does not take.
const BEYOND_LIMIT: usize = 4;

/// Why a call stored nothing, or, in mode `stream`, nothing more.
#[derive(Debug, thiserror::Error)]
enum BulkError {
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
    #[error("create stream error: {0}")]
    Create(String),
    #[error("aborted: {0}")]
    Aborted(String),
    // spelled so for ever
    #[error("unmarhsal error: {0}")]
    NoObject(RowError),
    #[error("stream consume error: {0}")]
    Consume(String),
    #[error("scanner error: {0}")]
    Lines(#[from] LineError),
    #[error("stream complete error: {0}")]
    Complete(String),
}

impl BulkError {
    fn create(error: impl Into<StreamError>) -> BulkError {
        BulkError::Create(chain(&error.into()).to_string())
    }

    fn consume(error: StreamError) -> BulkError {
        match error {
            StreamError::Row(error) if error.is_parse_error() => BulkError::NoObject(error),
            error => BulkError::Consume(chain(&error).to_string()),
        }
    }

    /// The `errorType` label: the part of the text that does not change.
    fn kind(&self) -> &'static str {
        match self {
            BulkError::UnknownDestination(_) => "destination not found",
            BulkError::Paused(_) => "destination is paused",
            BulkError::NoTable => "missing required parameter",
            BulkError::OwnTable(_) => "invalid table name",
            BulkError::Packed(_) => "unsupported content encoding",
            BulkError::Schema(_) => "schema unmarshal error",
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
            BulkError::Create(detail) => masked_error(self.kind(), detail),
            _ => error_reply(StatusCode::BAD_REQUEST, &self.to_string()),
        }
    }
}

/// Loads the body's lines; answers 200 with the stream's state once they are stored.
pub(in crate::routes) async fn bulk(
    _: Authorized,
    State(state): State<Arc<BulkState>>,
    Path(destination_id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    // on its own: a client that goes away ends its request in the middle, and would take the
    // account of it along
    let call = tokio::spawn(async move {
        answer(&state, &destination_id, query::of(&uri), &headers, body).await
    });
    match call.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(response) => response,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn answer(
    state: &BulkState,
    destination_id: &str,
    query: &str,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let began = Instant::now();
    let mut lines = Lines::new(body, PATIENCE);
    let mut account = Account::default();
    let request = BulkRequest::read(destination_id, query, headers);
    let loaded = load(state, destination_id, request, &mut lines, &mut account).await;
    count(state, destination_id, &loaded, &account);
    let error = loaded.as_ref().err().map(ToString::to_string);
    let level = if error.is_some() { Level::Error } else { Level::Info };
    let record = || account.record(error.as_deref(), began.elapsed());
    state.events_log.post(destination_id, EventType::BulkerBatch, level, record);
    if let Err(error) = loaded {
        lines.discard().await;
        return error.into_response();
    }
    match account.stored().map(|stored| ordered_json_reply(StatusCode::OK, &stored)) {
        Some(reply) => reply.unwrap_or_else(|error| masked_error("state", &error)),
        None => ok_message(),
    }
}

/// Returns the table's name.
async fn load(
    state: &BulkState,
    destination_id: &str,
    request: Result<BulkRequest, BulkError>,
    lines: &mut Lines,
    account: &mut Account,
) -> Result<String, BulkError> {
    if state.destinations.get(destination_id).is_none() {
        return Err(BulkError::UnknownDestination(destination_id.to_owned()));
    }
    if state.pauses.is_paused(destination_id) {
        return Err(BulkError::Paused(destination_id.to_owned()));
    }
    let BulkRequest { table, mode, job_id, options } = request?;
    // kept to the end: a change of the configuration must not close the connections of a load
    let target = state.targets.get(destination_id);
    let target = target.ok_or_else(|| BulkError::Create("destination is not open".to_owned()))?;
    let mode = mode.parse().map_err(BulkError::create)?;
    let _permit = state.permits.take().await;
    let limit = state.permits.memory_limit();
    let most = limit.bytes * BEYOND_LIMIT;
    let stream = Stream::open(target.warehouse.clone(), &table, mode, Arc::new(options));
    let mut stream = stream.map_err(BulkError::create)?.with_memory_limit(limit);
    let stored = feed(&mut stream, lines, most, &mut account.bytes).await;
    if !matches!(stored, Ok(rows) if rows > 0) {
        stream.abort();
    }
    let error = stored.as_ref().err().map(BulkError::kind);
    // no others: they may have to do with what was sent
    let reason = match &stored {
        Err(BulkError::Complete(reason)) => Some(reason.as_str()),
        _ => None,
    };
    info!(
        destination_id,
        job_id,
        table,
        mode = ?mode,
        rows = stream.state().processed_rows,
        error,
        reason,
        "bulk load ended"
    );
    account.state = Some(stream.state().clone());
    stored.map(|_| table)
}

/// Takes all lines and stores them; returns how many there were.
async fn feed(
    stream: &mut Stream,
    lines: &mut Lines,
    most: usize,
    bytes: &mut u64,
) -> Result<u64, BulkError> {
    let mut rows = 0;
    while let Some(line) = lines.next().await? {
        if line.starts_with(ABORT) {
            return Err(BulkError::Aborted(String::from_utf8_lossy(&line).into_owned()));
        }
        stream.consume(&line).await.map_err(BulkError::consume)?;
        *bytes += line.len() as u64;
        rows += 1;
        if stream.byte_size() > most {
            return Err(BulkError::Consume(
                "rows beyond the memory limit cannot be kept on disk".to_owned(),
            ));
        }
    }
    if rows > 0 {
        let completed = stream.complete().await;
        completed.map_err(|error| BulkError::Complete(chain(&error).to_string()))?;
    }
    Ok(rows)
}

/// The table's name is the sender's and may be anything: it is a label once there is such a table.
fn count(
    state: &BulkState,
    destination_id: &str,
    loaded: &Result<String, BulkError>,
    account: &Account,
) {
    let known = state.destinations.get(destination_id);
    let (id, mode) = known.map_or(("", ""), |known| (destination_id, known.mode.as_str()));
    let (table, status, kind) = match loaded {
        Ok(table) if account.stored().is_some() => (table.as_str(), "success", ""),
        Ok(_) => ("", "success", ""),
        Err(error) => ("", "error", error.kind()),
    };
    let labels = [id, mode, table, status, kind];
    HANDLER_BULK.with_label_values(&labels).inc();
    if loaded.is_ok() {
        HANDLER_BYTES.with_label_values(&labels).inc_by(account.bytes);
    }
}
