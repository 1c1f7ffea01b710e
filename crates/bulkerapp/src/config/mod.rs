//! Every variable of the service. Names and defaults are a contract with operators of the original.

mod ignored;

use std::{ffi::OsString, net::IpAddr, time::Duration};

use appbase::{
    AppConfig,
    auth::Access,
    config::{ConfigError, Environment, Names, Parsed},
    values::{ValueError, boolean, float, integer, seconds},
};
use clap::{ArgAction, Args, Parser};
use eventslog::EventsLogConfig;
use kafkabase::{AckMode, KafkaConfig};

pub use ignored::{IgnoredConfig, ignored_names};

use loader::LoaderConfig;

use crate::destinations::SourceConfig;

/// What names of variables start with.
pub const PREFIX: &str = "BULKER";

/// Takes events over HTTP, keeps them in Kafka, loads them into warehouses.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "bulkerapp",
    version,
    after_help = "`bulkerapp healthcheck` asks a running instance \
    for its /health and exits with 0 or 1; it reads HTTP_PORT and LISTEN_HTTP only.\n\
    `bulkerapp preflight [--back]` looks whether the switch from the original, or back to it, can be made.\n\
    `bulkerapp set-start TOPIC OFFSET|earliest|latest` sets where a topic is read from next.\n\
    `bulkerapp spool replay FOLDER` sends what an instance that is gone left in its spool;\n\
    `bulkerapp spool quarantine FOLDER [TOPIC]` sends again what Kafka had refused for good;\n\
    `bulkerapp spool quarantine discard FOLDER REASON [TOPIC]` forgets it."
)]
pub struct Config {
    #[command(flatten)]
    pub app: AppConfig,
    #[command(flatten)]
    pub kafka: KafkaConfig,
    #[command(flatten)]
    pub server: ServerConfig,
    #[command(flatten)]
    pub source: SourceConfig,
    #[command(flatten)]
    pub loader: LoaderConfig,
    #[command(flatten)]
    pub retries: RetryConfig,
    #[command(flatten)]
    pub events_log: EventsLogConfig,
    #[command(flatten)]
    pub ignored: IgnoredConfig,
}

/// Settings of this service that have an effect.
#[derive(Debug, Clone, Args)]
pub struct ServerConfig {
    /// Seconds between two looks at the cluster's topics.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub topic_manager_refresh_period_sec: Duration,
    /// Topics of one destination; events for one more are answered with 429.
    #[arg(long, default_value = "10000", value_parser = integer::<u32>)]
    pub topics_per_destination: u32,
    /// Seconds between two runs over a table's topic, unless the destination has a `frequency`.
    #[arg(long, default_value = "300", value_parser = integer::<u32>)]
    pub batch_runner_default_period_sec: u32,
    /// Events per batch, unless the destination has a `batchSize`.
    #[arg(long, default_value = "10000", value_parser = integer::<u32>)]
    pub batch_runner_default_batch_size: u32,
    /// Address that the HTTP API listens on.
    #[arg(long, default_value = "0.0.0.0")]
    pub listen_http: IpAddr,
    /// Address that the port of the metrics listens on.
    #[arg(long, default_value = "0.0.0.0")]
    pub listen_metrics: IpAddr,
    /// Whose token shows the bodies of events (`/failed`, `/log`, `/events`): `admin` or `user`.
    #[arg(long, default_value = "admin", value_parser = access)]
    pub event_bodies_for: Access,
    /// Port of the metrics alone, without tokens.
    #[arg(long, default_value = "9091", value_parser = integer::<u16>)]
    pub metrics_port: u16,
    /// Number of this instance among its siblings, from 0. Neither this nor `SHARDS` set: instances
    /// find each other.
    #[arg(long, value_parser = integer::<u32>)]
    pub instance_index: Option<u32>,
    /// How many instances share the topics.
    #[arg(long, value_parser = integer::<u32>)]
    pub shards: Option<u32>,
    /// Load topics into warehouses.
    #[arg(long, default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub enable_consumers: bool,
    /// Seconds that a stop may take.
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub shutdown_timeout_sec: Duration,
    /// Calls of `/bulk` that load at a time; more wait with their bodies unread.
    #[arg(long, default_value = "8", value_parser = integer::<u32>)]
    pub bulk_max_requests: u32,
    /// Calls of `/bulk` that wait; more are answered with 503.
    #[arg(long, default_value = "64", value_parser = integer::<u32>)]
    pub bulk_max_waiting: u32,
    /// Bytes per second of a body below which its sender is given up while other calls wait.
    #[arg(long, default_value = "1024", value_parser = integer::<u32>)]
    pub bulk_min_bytes_per_sec: u32,
    /// MiB of rows that they hold together; rows beyond it are in files without a name in TMPDIR.
    #[arg(long, default_value = "64", value_parser = integer::<u32>)]
    pub bulk_memory_limit_mb: u32,
    /// MiB that these files have together; beyond it a call is answered with 507.
    #[arg(long, default_value = "10240", value_parser = integer::<u32>)]
    pub bulk_disk_limit_mb: u32,
    /// Prometheus that `/connections-metrics` asks.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub prometheus_url: String,
}

/// How refused events are tried again.
#[derive(Debug, Clone, Args)]
pub struct RetryConfig {
    /// Seconds between two runs over a retry topic.
    #[arg(long, default_value = "300", value_parser = integer::<u32>)]
    pub batch_runner_default_retry_period_sec: u32,
    /// Messages per batch of a retry topic.
    #[arg(long, default_value = "10000", value_parser = integer::<u32>)]
    pub retry_consumer_batch_size: u32,
    /// Attempts before an event is a dead letter.
    #[arg(long, default_value = "5", value_parser = integer::<u32>)]
    pub messages_retry_count: u32,
    /// Minutes, the base of the pause between attempts.
    #[arg(long, default_value = "5", value_parser = float)]
    pub messages_retry_backoff_base: f64,
    /// Minutes, the longest pause between attempts.
    #[arg(long, default_value = "1440", value_parser = float)]
    pub messages_retry_backoff_max_delay: f64,
    /// Seconds, the pause between attempts instead of one that grows.
    #[arg(long, value_parser = seconds)]
    pub messages_retry_pause_sec: Option<Duration>,
}

/// Names of this service that are also read without the prefix.
const UNPREFIXED: &[&str] = &["METRICS_RELAY_DESTINATION", "PROMETHEUS_URL"];

const NAMES: Names = Names {
    unprefixed: &[
        AppConfig::UNPREFIXED,
        KafkaConfig::UNPREFIXED,
        SourceConfig::UNPREFIXED,
        EventsLogConfig::UNPREFIXED,
        UNPREFIXED,
    ],
    fallbacks: &[
        AppConfig::FALLBACKS[0],
        ("EVENTS_LOG_REDIS_URL", &["BULKER_REDIS_URL", "REDIS_URL"]),
    ],
};

/// The name of those whom something is open to, and to all above them.
fn access(text: &str) -> Result<Access, ValueError> {
    match text {
        "" | "admin" => Ok(Access::Admin),
        "user" => Ok(Access::User),
        _ => Err(ValueError("neither admin nor user")),
    }
}

/// Why settings that are fine one by one do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error("{PREFIX}_SHARDS must be at least 1")]
    NoShards,
    #[error("{PREFIX}_{0} must be greater than 0")]
    Zero(&'static str),
    #[error("{PREFIX}_{0} must be greater than 0 and at most 1")]
    NoShare(&'static str),
}

impl Config {
    /// Reads all settings and checks what holds between them.
    pub fn parse(
        environment: &Environment,
        arguments: &[OsString],
    ) -> Result<Parsed<Config>, ConfigError> {
        environment.parse(arguments, &NAMES)
    }

    /// Cross-field checks, before the first connection.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        if self.server.shards == Some(0) {
            return Err(InvalidConfig::NoShards);
        }
        if self.loader.loader_workers == 0 {
            return Err(InvalidConfig::Zero("LOADER_WORKERS"));
        }
        if self.server.bulk_max_requests == 0 {
            return Err(InvalidConfig::Zero("BULK_MAX_REQUESTS"));
        }
        if self.server.topic_manager_refresh_period_sec.is_zero() {
            return Err(InvalidConfig::Zero("TOPIC_MANAGER_REFRESH_PERIOD_SEC"));
        }
        if !(self.kafka.spool_topic_share > 0.0 && self.kafka.spool_topic_share <= 1.0) {
            return Err(InvalidConfig::NoShare("SPOOL_TOPIC_SHARE"));
        }
        if self.kafka.spool().is_some() && self.kafka.spool_max_mb == 0 {
            return Err(InvalidConfig::Zero("SPOOL_MAX_MB"));
        }
        let waits = self.kafka.ack_mode == AckMode::Durable;
        if waits && self.kafka.producer_wait_for_delivery_ms.is_zero() {
            return Err(InvalidConfig::Zero("PRODUCER_WAIT_FOR_DELIVERY_MS"));
        }
        Ok(())
    }
}

/// Names of all settings, as variables without their prefix.
pub fn all_names() -> Vec<String> {
    names_of(<Config as clap::CommandFactory>::command())
}

fn names_of(command: clap::Command) -> Vec<String> {
    command
        .get_arguments()
        .filter(|argument| argument.get_long().is_some())
        .map(|argument| argument.get_id().as_str().to_uppercase())
        .filter(|name| name != "HELP" && name != "VERSION")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Config {
        let servers = [("KAFKA_BOOTSTRAP_SERVERS", "a:1")];
        let environment = Environment::new(PREFIX, servers.iter().chain(variables).copied(), []);
        Config::parse(&environment, &[]).unwrap().config
    }

    #[test]
    fn brokers_are_the_only_setting_without_a_default() {
        let config = parse(&[]);
        assert_eq!(config.app.http_port, 3042);
        assert_eq!(config.server.metrics_port, 9091);
        assert!(config.server.enable_consumers);
        assert!(config.validate().is_ok());
        let nothing = Environment::new(PREFIX, [], []);
        let error = Config::parse(&nothing, &[]).unwrap_err();
        assert_eq!(error.to_string(), "BULKER_KAFKA_BOOTSTRAP_SERVERS is not set");
    }

    #[test]
    fn settings_that_would_stop_the_work_are_refused() {
        assert_eq!(parse(&[("BULKER_SHARDS", "0")]).validate(), Err(InvalidConfig::NoShards));
        let error = parse(&[("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", "0")]).validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS must be greater than 0"
        );
        for share in ["0", "1.01", "-1", "NaN"] {
            let error = parse(&[("BULKER_SPOOL_TOPIC_SHARE", share)]).validate().unwrap_err();
            assert_eq!(error, InvalidConfig::NoShare("SPOOL_TOPIC_SHARE"), "{share}");
        }
        let asynchronous =
            parse(&[("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", "0"), ("BULKER_ACK_MODE", "async")]);
        assert!(asynchronous.validate().is_ok());
    }

    #[test]
    fn zeros_that_would_stop_the_work_are_named() {
        for name in ["LOADER_WORKERS", "BULK_MAX_REQUESTS", "TOPIC_MANAGER_REFRESH_PERIOD_SEC"] {
            let error = parse(&[(&format!("BULKER_{name}"), "0")]).validate().unwrap_err();
            assert_eq!(error, InvalidConfig::Zero(name));
        }
    }

    #[test]
    fn the_events_log_is_in_the_redis_that_is_named_nearest() {
        let url = |variables: &[_]| parse(variables).events_log.events_log_redis_url;
        assert_eq!(url(&[]), None);
        let redis = ("REDIS_URL", "redis://a");
        assert_eq!(url(&[redis]).as_deref(), Some("redis://a"));
        let bulker = ("BULKER_REDIS_URL", "redis://b");
        assert_eq!(url(&[redis, bulker]).as_deref(), Some("redis://b"));
        let own = ("EVENTS_LOG_REDIS_URL", "redis://c");
        assert_eq!(url(&[redis, bulker, own]).as_deref(), Some("redis://c"));
    }

    #[test]
    fn names_without_effect_exist() {
        let all = all_names();
        for name in ignored_names() {
            assert!(all.contains(&name), "{name}");
        }
        for name in NAMES.unprefixed.iter().copied().flatten() {
            assert!(all.iter().any(|known| known == name), "{name}");
        }
    }
}
