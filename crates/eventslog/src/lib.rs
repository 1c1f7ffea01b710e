//! The latest events of each destination (or site), for people to look at: what came in, what
//! became of it.
//!
//! The log is for people, so it never gets in the way of the events themselves: [`EventsLog::post`]
//! does not wait, memory has a bound whatever the store does, and an event that would not be kept
//! is not even encoded. What is dropped for that is counted. What was taken is written every few
//! seconds, kept while the store is away, and written at the stop.
//!
//! Two stores, as the original has them: Redis streams, trimmed to a size, and a ClickHouse table.
//! An entry may be in the store twice when its answer was lost: the buffer is then written again.

mod bodies;
mod buffer;
mod clickhouse;
mod config;
mod error;
mod event;
mod flush;
mod log;
mod metrics;
mod record;
mod redis;
mod shared;

pub use bodies::{BatchBody, IncomingBody, IncomingStatus, StreamBody, StreamStatus};
pub use config::EventsLogConfig;
pub use error::{OpenError, StoreError};
pub use event::{EventType, Level};
pub use flush::Flusher;
pub use log::{EventsLog, open};
pub use metrics::LogMetrics;
pub use record::{Found, Position, Query, Record, RecordId, StreamName};
