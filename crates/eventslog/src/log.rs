//! The handle that posts and reads.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tracing::info;

use crate::{
    EventsLogConfig, Flusher, Found, LogMetrics, OpenError, Query, StoreError,
    buffer::{Buffer, Event, Limits},
    clickhouse::ClickHouseLog,
    event::{EventType, Level},
    metrics::Dropped,
    redis::RedisLog,
    shared::{Shared, Store},
};

/// Memory for events that are not stored yet, whatever their number.
const BUFFER_BYTES: usize = 16 << 20;
/// Bytes that are written at once instead of at the next turn, where the store keeps everything.
const EARLY_BYTES: usize = BUFFER_BYTES / 8;

/// The log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventsLog(pub(crate) Arc<Shared>);

/// Opens the log that the settings name, without a look at the server. Nothing is stored until the
/// flusher runs.
pub fn open(
    config: &EventsLogConfig,
    metrics: LogMetrics,
) -> Result<(EventsLog, Flusher), OpenError> {
    let redis_url = config.events_log_redis_url.as_ref().or(config.redis_url.as_ref());
    let max_size = config.events_log_max_size as usize;
    let limits = Limits { events_per_stream: max_size, bytes: BUFFER_BYTES, error_streams: true };
    let everything = Limits { events_per_stream: usize::MAX, error_streams: false, ..limits };
    let (store, limits, early_bytes) = if let Some(host) = &config.clickhouse_host {
        info!("events log in ClickHouse");
        (Store::ClickHouse(ClickHouseLog::open(host, config)?), everything, EARLY_BYTES)
    } else if let Some(url) = redis_url {
        info!(max_size, "events log in Redis");
        let redis = RedisLog::open(url, config, metrics.clone())?;
        (Store::Redis(Box::new(redis)), limits, usize::MAX)
    } else {
        info!("no events log: neither ClickHouse nor Redis is configured for it");
        (Store::None, limits, usize::MAX)
    };
    let shared = Arc::new(Shared {
        buffer: Mutex::new(Buffer::new(limits)),
        store,
        dropped: Dropped::new(&metrics),
        metrics,
        early_bytes,
        early: Notify::new(),
    });
    Ok((EventsLog(shared.clone()), Flusher::new(shared)))
}

impl EventsLog {
    /// Whether an event would be kept, for callers that would have to prepare more than
    /// [`EventsLog::post`]'s `body`. An event that would not counts as dropped by this question.
    pub fn wants(&self, actor: &str, kind: EventType, level: Level) -> bool {
        if matches!(self.0.store, Store::None) {
            return false;
        }
        self.0.buffer().has_room(actor, kind, level, &|kind, reason| self.0.drop_one(kind, reason))
    }

    /// Logs an event; never waits. `body` is only called when the event will be kept: the first
    /// ones of an actor, kind and level between two writes. It serializes as an object; see
    /// [`BatchBody`](crate::BatchBody) and its neighbours.
    pub fn post<T: Serialize>(
        &self,
        actor: &str,
        kind: EventType,
        level: Level,
        body: impl FnOnce() -> T,
    ) {
        if !self.wants(actor, kind, level) {
            return;
        }
        let Ok(body) = serde_json::to_vec(&body()) else {
            self.0.metrics.error("marshal_error");
            return;
        };
        let event = Event { at: Timestamp::now().as_millisecond(), level, body: body.into() };
        let waiting = {
            let mut buffer = self.0.buffer();
            buffer.push(actor, kind, &event, &|kind, reason| self.0.drop_one(kind, reason));
            buffer.waiting_bytes()
        };
        if waiting >= self.0.early_bytes {
            self.0.early.notify_one();
        }
    }

    /// Records of several streams, newest first.
    pub async fn read(&self, query: &Query) -> Result<Found, StoreError> {
        let read = match &self.0.store {
            Store::None => Ok(Found::default()),
            Store::Redis(redis) => redis.read(query).await,
            Store::ClickHouse(clickhouse) => clickhouse.read(query, &self.0.metrics).await,
        };
        read.inspect_err(|error| self.0.metrics.error(error.label()))
    }
}
