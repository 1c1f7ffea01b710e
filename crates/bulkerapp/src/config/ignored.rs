//! Settings of the original that are accepted, so that its environment starts this service, and
//! have no effect yet, or none any more.

use std::time::Duration;

use appbase::{
    config::Parsed,
    values::{boolean, float, seconds},
};
use clap::{ArgAction, Args};
use tracing::{debug, info};

use super::{Config, names_of};

/// Settings that are accepted and have no effect yet, or none any more.
#[derive(Debug, Clone, Args)]
pub struct IgnoredConfig {
    /// Seconds without a message that end a batch.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub batch_runner_wait_for_messages_sec: Duration,
    /// Share of a batch that is retried at a time.
    #[arg(long, default_value = "0.1", value_parser = float)]
    pub batch_runner_default_retry_batch_fraction: f64,
    /// Destination of relayed metrics.
    #[arg(long)]
    pub metrics_relay_destination: Option<String>,
    /// Seconds between two relays of metrics.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub metrics_relay_period_sec: Duration,
    /// Close idle consumers: there are none that idle.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub suspend_consumers: bool,
    /// Drop consumers of quiet topics: a quiet topic has none.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub stale_topics: bool,
    /// Seconds of sleep before the end: nothing is left to wait for.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub shutdown_extra_delay_sec: Duration,
    /// Secrets of hashed keys.
    #[arg(long, default_value = "dea42a58-acf4-45af-85bb-e77e94bd5025", hide_default_value = true)]
    pub global_hash_secret: String,
}

/// Settings of the Kafka library and of logs that have no effect, beside those of
/// [`IgnoredConfig`].
const WITHOUT_EFFECT: &[&str] = &[
    "INSTANCE_ID",
    "KAFKA_SESSION_TIMEOUT_MS",
    "KAFKA_MAX_POLL_INTERVAL_MS",
    "KAFKA_ADMIN_METADATA_TIMEOUT_MS",
    "KAFKA_CONSUMER_PARTITIONS_ASSIGMENT_STRATEGY",
    "FAILOVER_LOGGER_ENABLED",
    "FAILOVER_LOGGER_LOG_ALL_MESSAGES",
    "FAILOVER_LOGGER_BASE_PATH",
    "FAILOVER_LOGGER_ROTATION_PERIOD_MINUTES",
    "FAILOVER_LOGGER_MAX_SIZE_MB",
    "FAILOVER_LOGGER_COMPRESS",
    "FAILOVER_LOGGER_LOCAL_MAX_OLD_FILES",
    "FAILOVER_LOGGER_S3_ENABLED",
    "FAILOVER_LOGGER_S3_BUCKET",
    "FAILOVER_LOGGER_S3_PREFIX",
    "FAILOVER_LOGGER_S3_REGION",
];

impl Config {
    /// Says once which settings are accepted and ignored.
    pub fn log_ignored(parsed: &Parsed<Config>) {
        for name in ignored_names() {
            if parsed.set.contains(&name) {
                info!(variable = name, "setting accepted, without effect in this version");
            } else {
                debug!(variable = name, "setting has no effect in this version");
            }
        }
    }
}

/// Names that are accepted without effect.
pub fn ignored_names() -> Vec<String> {
    let own = names_of(IgnoredConfig::augment_args(clap::Command::new("ignored")));
    WITHOUT_EFFECT.iter().map(|name| (*name).to_owned()).chain(own).collect()
}
