//! What goes wrong with a store. Texts hold no value of an event and no secret: what a server
//! answers may quote both, so only its codes are kept.

use std::time::Duration;

use ::redis::RedisError;

/// The longest a call takes, making a connection included. Callers of the log do not wait for it;
/// readers do.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Why the log cannot be opened: settings that no retry mends.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    // the cause is left out where it could quote the setting
    #[error("EVENTS_LOG_REDIS_URL (or REDIS_URL) is not redis://[user:password@]host[:port][/db]")]
    RedisUrl,
    #[error("REDIS_TLS_CA is not a certificate in PEM")]
    RedisCertificate,
    #[error("CLICKHOUSE_HOST is not host:port")]
    ClickHouseHost,
    #[error("HTTP client of the events log")]
    Http(#[source] reqwest::Error),
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("redis: {0}")]
    Redis(String),
    #[error("clickhouse: {0}")]
    ClickHouse(String),
    /// With ClickHouse's own number of the error.
    #[error("clickhouse answered {status}, code {code}")]
    ClickHouseRefused { status: u16, code: String },
}

impl StoreError {
    /// The `errorType` label.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            StoreError::Timeout(_) => "redis error: ERR_TIMEOUT",
            StoreError::Redis(_) => "redis error: UNKNOWN",
            StoreError::ClickHouse(_) => "clickhouse error",
            StoreError::ClickHouseRefused { .. } => "clickhouse error: refused",
        }
    }

    pub(crate) fn of_redis(error: RedisError) -> StoreError {
        if error.is_timeout() {
            return StoreError::Timeout(CALL_LIMIT);
        }
        if error.is_io_error() {
            return StoreError::Redis(error.to_string());
        }
        let fallback = error.code().unwrap_or_else(|| error.category()).to_owned();
        // why a transaction was not begun, say OOM or NOPERM
        let causes = error.into_server_errors();
        let cause = causes.as_deref().and_then(|causes| Some(causes.first()?.1.code().to_owned()));
        StoreError::Redis(format!("answered {}", cause.unwrap_or(fallback)))
    }

    pub(crate) fn of_http(error: reqwest::Error) -> StoreError {
        // the URL holds the query
        StoreError::ClickHouse(appbase::telemetry::chain(&error.without_url()).to_string())
    }
}
