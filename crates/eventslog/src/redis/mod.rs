//! The log in Redis: a stream for each kind, level and actor, `events_log:<kind>.<level>#<actor>`.

mod connect;
mod read;
mod write;

use std::time::Duration;

use ::redis::{Client, Pipeline, aio::MultiplexedConnection};
use tokio::{sync::Mutex, time::timeout};

use crate::{LogMetrics, StoreError};

/// The longest a call takes, making a connection included. Callers of the log do not wait for it; readers do.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// The field of an entry that holds the event.
const FIELD: &str = "event";

/// Streams on one Redis.
pub(crate) struct RedisLog {
    client: Client,
    /// Shared by all calls; gone after a failure, so that the next call makes a new one.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Entries that a stream keeps, about.
    max_size: usize,
    metrics: LogMetrics,
}

impl RedisLog {
    /// The results of all commands; those that failed alone are among them.
    async fn call(&self, pipeline: &Pipeline) -> Result<Vec<::redis::Value>, StoreError> {
        let called = timeout(CALL_LIMIT, async {
            let mut connection = self.connection().await?;
            pipeline.query_async(&mut connection).await
        });
        let failure = match called.await {
            Ok(Ok(results)) => return Ok(results),
            Ok(Err(error)) => StoreError::of_redis(error),
            Err(_) => StoreError::Timeout(CALL_LIMIT),
        };
        *self.connection.lock().await = None;
        Err(failure)
    }

    async fn connection(&self) -> ::redis::RedisResult<MultiplexedConnection> {
        let mut shared = self.connection.lock().await;
        if let Some(connection) = shared.as_ref() {
            return Ok(connection.clone());
        }
        let connection = connect::connect(&self.client).await?;
        Ok(shared.insert(connection).clone())
    }
}

impl std::fmt::Debug for RedisLog {
    /// Without the address: it holds a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisLog").field("max_size", &self.max_size).finish_non_exhaustive()
    }
}

fn stream_key(kind: &str, errors: bool, actor: &str) -> String {
    let level = if errors { "error" } else { "all" };
    format!("events_log:{kind}.{level}#{actor}")
}
