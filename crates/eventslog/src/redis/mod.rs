//! The log in Redis: a stream for each kind, level and actor, `events_log:<kind>.<level>#<actor>`.

mod read;
mod write;

use ::redis::{Pipeline, aio::MultiplexedConnection};
use appbase::redis_client::{RedisClient, RedisClientError, RedisTls};
use tokio::{sync::Mutex, time::timeout};

use crate::{EventsLogConfig, LogMetrics, OpenError, StoreError, error::CALL_LIMIT};

/// The field of an entry that holds the event.
const FIELD: &str = "event";

/// Streams on one Redis.
pub(crate) struct RedisLog {
    client: RedisClient,
    /// Shared by all calls; gone after a failure, so that the next call makes a new one.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Entries that a stream keeps, about.
    max_size: usize,
    metrics: LogMetrics,
}

impl RedisLog {
    pub(crate) fn open(
        url: &str,
        config: &EventsLogConfig,
        metrics: LogMetrics,
    ) -> Result<RedisLog, OpenError> {
        let tls = RedisTls {
            ca: config.redis_tls_ca.clone(),
            skips_verify: config.redis_tls_skip_verify,
        };
        let client = RedisClient::new(url, &tls).map_err(|error| match error {
            RedisClientError::Address(_) => OpenError::RedisUrl,
            RedisClientError::Certificates(_) => OpenError::RedisCertificate,
        })?;
        // the limit of the whole call is the one that counts
        let client = client.with_limits(CALL_LIMIT, CALL_LIMIT);
        let max_size = config.events_log_max_size as usize;
        Ok(RedisLog { client, connection: Mutex::new(None), max_size, metrics })
    }

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
        let connection = self.client.connect().await?;
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
