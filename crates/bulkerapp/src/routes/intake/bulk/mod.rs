//! `POST /bulk/:destinationId`: the lines of a body straight into a table, without Kafka.
//!
//! Invariants: rows of all modes but `stream` become visible together with the 200, or not at all;
//! however long the body is, a call holds one line and a bounded part of its rows in memory, and
//! all calls together a bounded part on disk; a call that waits for its turn ends with its client,
//! one that loads ends with its body.

mod account;
mod error;
mod lines;
mod request;

use std::{sync::Arc, time::Duration};

use appbase::{
    http::{ok_message, ordered_json_reply},
    telemetry::chain,
};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use eventslog::{EventType, Level};
use loader::LoadTarget;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tracing::info;
use warehouse::{
    SpillError,
    bulk::{BulkMode, Stream},
};

use crate::{
    metrics::{HANDLER_BULK, HANDLER_BYTES},
    routes::{Authorized, masked::masked_error, query},
    state::BulkState,
};
use account::Account;
use error::BulkError;
use lines::{Lines, Pace};
use request::BulkRequest;

/// How long a sender may be silent in the middle of its body.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a sender may be slower than others wait for.
const SLOW_FOR: Duration = Duration::from_secs(30);
/// A line that starts so gives the load up.
const ABORT: &[u8] = b"ABORT";
/// Rows that take so many times their limit are rows that the disk does not take.
const BEYOND_LIMIT: usize = 4;

/// Loads the body's lines; answers 200 with the stream's state once they are stored.
pub(in crate::routes) async fn bulk(
    _: Authorized,
    State(state): State<Arc<BulkState>>,
    Path(destination_id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let pace = Pace { silent_for: PATIENCE, slow_for: SLOW_FOR, least: state.permits.least_pace() };
    let is_wanted = {
        let state = state.clone();
        move || state.permits.are_wanted()
    };
    let lines = Lines::new(body, pace, is_wanted);
    let request = BulkRequest::read(&destination_id, query::of(&uri), &headers);
    let mut call =
        Call { state, destination_id, lines, account: Account::default(), began: Instant::now() };
    let load = match call.admit(request).await {
        Ok(load) => load,
        Err(error) => return call.end(Err(error)).await,
    };
    // on its own: a client that goes away ends its request in the middle, and would take the
    // account of it along
    let call = tokio::spawn(async move {
        let loaded = call.load(load).await;
        call.end(loaded).await
    });
    match call.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(response) => response,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// One request.
struct Call {
    state: Arc<BulkState>,
    destination_id: String,
    lines: Lines,
    account: Account,
    began: Instant,
}

/// A request that has its turn.
struct Load {
    request: BulkRequest,
    mode: BulkMode,
    /// Kept to the end: a change of the configuration must not close the connections of a load.
    target: Arc<LoadTarget>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Call {
    /// Waits for its turn. Dropped, it has done nothing.
    async fn admit(&mut self, request: Result<BulkRequest, BulkError>) -> Result<Load, BulkError> {
        let id = &self.destination_id;
        if self.state.destinations.get(id).is_none() {
            return Err(BulkError::UnknownDestination(id.clone()));
        }
        if self.state.pauses.is_paused(id) {
            return Err(BulkError::Paused(id.clone()));
        }
        let request = request?;
        let target = self.state.targets.get(id);
        let target =
            target.ok_or_else(|| BulkError::Create("destination is not open".to_owned()))?;
        let mode = request.mode.parse().map_err(BulkError::create)?;
        let read_ahead = async { Ok(self.lines.read_ahead().await?) };
        let permit = self.state.permits.take::<BulkError>(read_ahead).await?;
        Ok(Load { request, mode, target, _permit: permit })
    }

    /// Returns the table's name.
    async fn load(&mut self, load: Load) -> Result<String, BulkError> {
        let BulkRequest { table, job_id, options, .. } = load.request;
        let limit = self.state.permits.memory_limit();
        let most = limit.bytes * BEYOND_LIMIT;
        let warehouse = load.target.warehouse.clone();
        let stream = Stream::open(warehouse, &table, load.mode, Arc::new(options));
        let mut stream = stream.map_err(BulkError::create)?.with_memory_limit(limit);
        let stored = feed(&mut stream, &mut self.lines, most, &mut self.account.bytes).await;
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
            destination_id = self.destination_id,
            job_id,
            table,
            mode = ?load.mode,
            rows = stream.state().processed_rows,
            error,
            reason,
            "bulk load ended"
        );
        self.account.state = Some(stream.state().clone());
        stored.map(|_| table)
    }

    /// Counts and records the call, and answers it.
    async fn end(self, loaded: Result<String, BulkError>) -> Response {
        let Call { state, destination_id, lines, account, began } = self;
        count(&state, &destination_id, &loaded, &account);
        let error = loaded.as_ref().err().map(ToString::to_string);
        let level = if error.is_some() { Level::Error } else { Level::Info };
        // a name that a client invented gets no stream in the store
        if !matches!(loaded, Err(BulkError::UnknownDestination(_))) {
            let record = || account.record(error.as_deref(), began.elapsed());
            state.events_log.post(&destination_id, EventType::BulkerBatch, level, record);
        }
        if let Err(error) = loaded {
            lines.discard().await;
            return error.into_response();
        }
        match account.stored().map(|stored| ordered_json_reply(StatusCode::OK, &stored)) {
            Some(reply) => reply.unwrap_or_else(|error| masked_error("state", &error)),
            None => ok_message(),
        }
    }
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
        match stream.spill_error() {
            // some more in memory is better than a load that fails
            Some(SpillError::Folder(_)) if stream.byte_size() <= most => {}
            Some(error) => return Err(BulkError::NoRoom(error)),
            None => {}
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
        Ok(table) if account.stored().is_some() => {
            (state.table_names.label(id, table), "success", "")
        }
        Ok(_) => ("", "success", ""),
        Err(error) => ("", "error", error.kind()),
    };
    let labels = [id, mode, table, status, kind];
    HANDLER_BULK.with_label_values(&labels).inc();
    if loaded.is_ok() {
        HANDLER_BYTES.with_label_values(&labels).inc_by(account.bytes);
    }
}
