//! Putting the loader together: what is loaded here, how much at a time, and by which settings.

use std::sync::Arc;

use anyhow::{Context, Result};
use kafkabase::{ConfirmedProducer, FetcherSettings, TopicSettings, topic_name};
use loader::{
    LoaderSettings, LoaderStatus, Loading, LoadingConfig, MetricsTopic, OwnedTopics, Ownership,
    RefusalConfig, Reporter, RetryBackoff, Shard, SharedRetry, SharesTopic,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    CLIENT_ID, PRODUCE_TIMEOUT, clock::clock, parts::Shared, targets::workers_per_destination,
};
use crate::{
    config::{Config, RetryConfig},
    destinations::Destinations,
};

/// The destination, and its table, that counts of events go to.
const METRICS: &str = "metrics";

/// Starts the loader, unless this instance only takes events in. It ends some time after `stop`.
pub(super) fn start(config: &Config, shared: &Shared, stop: CancellationToken) -> Result<Loading> {
    if !config.server.enable_consumers {
        info!("ENABLE_CONSUMERS=false: nothing is loaded here");
        let (_, status) = watch::channel(LoaderStatus::default());
        return Ok(Loading { status, task: tokio::spawn(async {}) });
    }
    let ownership = Arc::new(ownership(config));
    let shared_retry = SharedRetry {
        topic: config.kafka.kafka_destinations_retry_topic_name.clone(),
        period: i64::from(config.retries.batch_runner_default_retry_period_sec),
    };
    let source = Arc::new(OwnedTopics::new(
        shared.topics.view(),
        shared.targets.clone(),
        ownership.clone(),
        shared_retry,
    ));
    let loading = settings(config, shared, ownership)?;
    loader::spawn(loading, source, stop).context("Kafka's settings")
}

fn settings(config: &Config, shared: &Shared, ownership: Arc<Ownership>) -> Result<LoadingConfig> {
    let retries = &config.retries;
    let producer = ConfirmedProducer::new(&config.kafka, CLIENT_ID, PRODUCE_TIMEOUT)
        .context("Kafka's settings")?;
    let metrics_topic = metrics_topic(config, shared.destinations.clone());
    let reporter = Reporter::new(shared.events_log.clone(), metrics_topic, producer.clone());
    Ok(LoadingConfig {
        reporter: Arc::new(reporter),
        producer,
        refusals: RefusalConfig {
            topic_prefix: config.kafka.kafka_topic_prefix.clone(),
            dead_letter_topic: config.kafka.kafka_destinations_dead_letter_topic_name.clone(),
            retry_settings: TopicSettings::retry(&config.kafka),
            dead_letter_settings: TopicSettings::dead_letter(&config.kafka),
            retry_count: retries.messages_retry_count,
            backoff: backoff(retries),
        },
        ownership,
        pauses: shared.pauses.clone(),
        client: config.kafka.client_settings(CLIENT_ID),
        fetcher: FetcherSettings {
            fetch_message_max_bytes: config.kafka.kafka_fetch_message_max_bytes as usize,
            ..FetcherSettings::default()
        },
        admin: shared.admin.clone(),
        clock: clock(),
        memory_limit: (config.loader.loader_memory_limit_mb as usize) << 20,
        claim_every: config.loader.loader_claim_period_sec,
        stall_after: config.loader.loader_stall_timeout_sec,
        retry_batch_size: retries.retry_consumer_batch_size as usize,
        loader: LoaderSettings {
            workers: config.loader.loader_workers as usize,
            workers_per_destination: workers_per_destination(config) as usize,
            sweep_every: config.server.topic_manager_refresh_period_sec,
            stop_within: config.server.shutdown_timeout_sec,
            alarm_after: config.loader.loader_alarm_after_sec,
            heal_after: config.loader.loader_heal_after_sec,
        },
    })
}

/// The same pause before each attempt where it is set, else the original's.
fn backoff(retries: &RetryConfig) -> RetryBackoff {
    match retries.messages_retry_pause_sec {
        Some(pause) => RetryBackoff::always(pause),
        None => RetryBackoff::from_minutes(
            retries.messages_retry_backoff_base,
            retries.messages_retry_backoff_max_delay,
        ),
    }
}

/// The topic that counts of events go to; there is one while its destination is configured.
fn metrics_topic(config: &Config, destinations: Arc<Destinations>) -> MetricsTopic {
    let prefix = config.kafka.kafka_topic_prefix.clone();
    Arc::new(move || {
        let mode = destinations.get(METRICS)?.mode;
        Some(topic_name(&prefix, METRICS, mode, METRICS, 0))
    })
}

/// The consumer group by which instances share the topics.
pub(crate) fn loaders_group(prefix: &str) -> String {
    format!("{prefix}bulker-loaders")
}

/// The static rule where it is set, else the group of all instances.
fn ownership(config: &Config) -> Ownership {
    let (index, count) = (config.server.instance_index, config.server.shards);
    if let (None, None) = (index, count) {
        let prefix = &config.kafka.kafka_topic_prefix;
        return Ownership::by_group(SharesTopic {
            name: format!("{prefix}bulker-shares"),
            group: loaders_group(prefix),
            settings: TopicSettings::shares(&config.kafka),
        });
    }
    Ownership::by_shard(Shard { index: index.unwrap_or(0), count: count.unwrap_or(1) })
}
