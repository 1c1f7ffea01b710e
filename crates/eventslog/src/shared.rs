//! What handles of the log and its flusher share: the buffer, and the store behind it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::{
    LogMetrics,
    buffer::{Buffer, Streams},
    clickhouse::ClickHouseLog,
    event::EventType,
    metrics::{Dropped, Reason},
    redis::RedisLog,
};

/// What handles and the flusher share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) buffer: Mutex<Buffer>,
    pub(crate) store: Store,
    pub(crate) metrics: LogMetrics,
    pub(crate) dropped: Dropped,
    /// Bytes that ask for an early write.
    pub(crate) early_bytes: usize,
    pub(crate) early: Notify,
}

/// Where the log is kept.
#[derive(Debug)]
pub(crate) enum Store {
    None,
    Redis(Box<RedisLog>),
    ClickHouse(ClickHouseLog),
}

impl Shared {
    pub(crate) fn take(&self) -> Streams {
        self.buffer().take()
    }

    pub(crate) fn stored(&self) {
        self.buffer().stored();
    }

    pub(crate) fn put_back(&self, taken: Streams) {
        self.buffer().put_back(taken, &|kind, reason| self.drop_one(kind, reason));
    }

    pub(crate) fn drop_one(&self, kind: EventType, reason: Reason) {
        self.dropped.of(kind, reason).inc();
    }

    pub(crate) fn buffer(&self) -> MutexGuard<'_, Buffer> {
        // nothing in there can be half done
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
