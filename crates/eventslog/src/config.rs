//! Where the log is kept. Names and defaults are those of the original.

use appbase::values::{boolean, integer};
use clap::{ArgAction, Args};

/// Settings of the events log. ClickHouse if it has a host, else Redis if it has a URL, else there
/// is no log.
#[derive(Clone, Args)]
pub struct EventsLogConfig {
    /// The default Redis.
    #[arg(long)]
    pub redis_url: Option<String>,
    /// Certificates to trust for Redis, as PEM, instead of the system's; Redis is then spoken to
    /// with TLS.
    #[arg(long)]
    pub redis_tls_ca: Option<String>,
    /// Do not verify Redis' certificate.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub redis_tls_skip_verify: bool,
    /// Redis of the events log.
    #[arg(long)]
    pub events_log_redis_url: Option<String>,
    /// Events that a stream of the events log keeps in Redis, and that are taken for it between two
    /// writes.
    #[arg(long, default_value = "1000", value_parser = integer::<u32>)]
    pub events_log_max_size: u32,
    /// ClickHouse of the events log, `host:port` of its HTTP interface.
    #[arg(long)]
    pub clickhouse_host: Option<String>,
    /// Its database.
    #[arg(long)]
    pub clickhouse_database: Option<String>,
    /// Its user.
    #[arg(long, default_value = "default")]
    pub clickhouse_username: String,
    /// Its password.
    #[arg(long)]
    pub clickhouse_password: Option<String>,
    /// Encrypt connections to it.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub clickhouse_ssl: bool,
    /// Do not verify its certificate.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub clickhouse_ssl_skip_verify: bool,
}

impl EventsLogConfig {
    /// Names that are also read without the prefix.
    pub const UNPREFIXED: &'static [&'static str] = &[
        "REDIS_URL",
        "REDIS_TLS_CA",
        "EVENTS_LOG_REDIS_URL",
        "CLICKHOUSE_HOST",
        "CLICKHOUSE_DATABASE",
        "CLICKHOUSE_USERNAME",
        "CLICKHOUSE_PASSWORD",
        "CLICKHOUSE_SSL",
    ];
}

impl std::fmt::Debug for EventsLogConfig {
    /// Without addresses: they hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventsLogConfig")
            .field("events_log_max_size", &self.events_log_max_size)
            .finish_non_exhaustive()
    }
}
