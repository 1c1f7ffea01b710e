//! Settings of where destinations come from. Names and defaults are those of the original.

use std::{path::PathBuf, time::Duration};

use appbase::{redis_client::RedisTls, values::seconds};
use clap::Args;
use eventslog::EventsLogConfig;

/// Where destinations come from, and where copies of them are kept.
#[derive(Clone, Args)]
pub struct SourceConfig {
    /// Where destinations come from: empty or `env://BULKER_<NAME>` (variables), `file://<path>` or
    /// a path (YAML), `http://…`, `https://…`, `redis` (that of `REDIS_URL`), `redis://…`,
    /// `rediss://…`, `postgres://…`.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub config_source: String,
    /// Bearer token for a configuration over HTTP.
    #[arg(long)]
    pub config_source_http_auth_token: Option<String>,
    /// Query for a configuration in PostgreSQL; gives id, kind and JSON of each destination as
    /// text.
    #[arg(long, default_value = "select * from enriched_connections")]
    pub config_source_sql_query: String,
    /// Folder for the last known configuration.
    #[arg(long)]
    pub cache_dir: Option<PathBuf>,
    /// Seconds between two looks at the configuration; at least 1.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub config_refresh_period_sec: Duration,
}

impl SourceConfig {
    /// Names that are also read without the prefix.
    pub const UNPREFIXED: &'static [&'static str] =
        &["CONFIG_SOURCE", "CONFIG_SOURCE_HTTP_AUTH_TOKEN", "CACHE_DIR"];

    pub(super) fn period(&self) -> Duration {
        self.config_refresh_period_sec.max(Duration::from_secs(1))
    }
}

/// The default Redis, which the events log uses as well.
#[derive(Clone, Default)]
pub struct RedisSettings {
    /// A source of destinations, or a place for a copy of those of a slower source.
    pub url: Option<String>,
    /// How connections to it, and to a Redis that `CONFIG_SOURCE` names, are encrypted.
    pub tls: RedisTls,
}

impl From<&EventsLogConfig> for RedisSettings {
    fn from(config: &EventsLogConfig) -> RedisSettings {
        RedisSettings {
            url: config.redis_url.clone(),
            tls: RedisTls {
                ca: config.redis_tls_ca.clone(),
                skips_verify: config.redis_tls_skip_verify,
            },
        }
    }
}

impl std::fmt::Debug for SourceConfig {
    /// Addresses and tokens are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceConfig")
            .field("cache_dir", &self.cache_dir)
            .field("config_refresh_period_sec", &self.config_refresh_period_sec)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod samples {
    use appbase::config::{Environment, Names};
    use clap::Parser;

    use super::SourceConfig;

    #[derive(Debug, Parser)]
    struct Sample {
        #[command(flatten)]
        source: SourceConfig,
    }

    /// The settings that these variables make.
    pub(crate) fn source_config(variables: &[(&str, &str)]) -> SourceConfig {
        let names = Names { unprefixed: &[SourceConfig::UNPREFIXED], fallbacks: &[] };
        let environment = Environment::new("BULKER", variables.iter().copied(), []);
        environment.parse::<Sample>(&[], &names).unwrap().config.source
    }
}
