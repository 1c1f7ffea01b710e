//! The service: its parts, in the order in which they start and stop.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use appbase::{
    auth::TokenAuth,
    config::Environment,
    http::{Server, ServerLimits},
    lifecycle::{Deadline, stop_on_signal},
};
use eventslog::{EventsLog, LogMetrics};
use kafkabase::{
    AckMode, AckProducer, Admin, ClientSettings, ConfirmedProducer, FetcherSettings,
    ProducerMetrics, TopicSettings, topic_name, watch_spool_requests,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    bulk_places::BulkPlaces,
    config::Config,
    destinations::{Configuration, ConfigurationStatus, Destinations, RedisSettings},
    failed_events::FailedEvents,
    loading::{
        self, LoaderSettings, LoaderStatus, Loading, LoadingConfig, MetricsTopic, OwnedTopics,
        Ownership, ParkingConfig, Pauses, PausesConfig, Reporter, Shard, SharedRetry, SharesTopic,
        Stats, TargetDefaults, Targets,
    },
    metrics, routes, spool,
    state::{AppState, Limits},
    tables::Tables,
    topics::{Topics, pauses_topic},
};

/// The destination, and its table, that counts of events go to.
const METRICS: &str = "metrics";
/// How Kafka's brokers see this service.
const CLIENT_ID: &str = "bulkerapp";
/// The longest an administrative call may take; the original's second is too short for a coordinator's move.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that another service may take to answer.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long Kafka may take for refused events, while their load waits.
const PARK_TIMEOUT: Duration = Duration::from_secs(20);
/// Looks at the cluster that may fail in a row before the service is not ready.
const MISSED_LOOKS: u32 = 10;
/// How often the producer's queue is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Of the time that a stop may take, the part that requests in hand get.
const DRAIN_SHARE: u32 = 4;

/// Starts everything, serves until a signal, stops in reverse order within the deadline.
pub async fn run(config: &Config, environment: &Environment) -> Result<()> {
    metrics::register();
    loading::register_metrics();
    let stop = stop_on_signal().context("watch for signals")?;
    let auth = Arc::new(TokenAuth::new(&config.app)?);
    let redis = RedisSettings::from(&config.events_log);
    let configuration = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        started = Configuration::start(&config.source, &redis, environment) => started?,
    };
    let destinations = configuration.destinations();
    let configuration_status = configuration.status();

    let client = config.kafka.client_settings(CLIENT_ID);
    let admin = Admin::new(&client, ADMIN_TIMEOUT).context("Kafka's settings")?;
    let counters = ProducerMetrics {
        messages: metrics::PRODUCER_MESSAGES.clone(),
        rebuilt: metrics::PRODUCER_REBUILDS.clone(),
    };
    let topics = Arc::new(Topics::new(admin.clone(), &config.kafka, destinations.clone()));
    let spool = spool::open(&config.kafka, topics.clone())?;
    let producer =
        AckProducer::new(&config.kafka, CLIENT_ID, counters, spool).context("Kafka's settings")?;
    if producer.mode() == AckMode::Async {
        warn!("ACK_MODE=async: an event is answered before Kafka has it, and a crash loses it");
    }
    let failed_events = FailedEvents::new(
        client.clone(),
        admin.clone(),
        config.kafka.kafka_destinations_dead_letter_topic_name.clone(),
        config.loader.loader_stall_timeout_sec,
    );
    let log_metrics = LogMetrics {
        errors: metrics::EVENTS_LOG_ERRORS.clone(),
        dropped: metrics::EVENTS_LOG_DROPPED.clone(),
    };
    let (events_log, log_flusher) =
        eventslog::open(&config.events_log, log_metrics).context("settings of the events log")?;
    let pauses = Arc::new(pauses(config, &client, admin.clone(), &topics));
    let targets = open_targets(config, destinations.clone());
    let list_targets = {
        let targets = targets.clone();
        Box::new(move || targets.opened().iter().cloned().collect())
    };
    let prefix = &config.kafka.kafka_topic_prefix;
    let stats = Arc::new(Stats::new(admin.clone(), topics.clone(), prefix, list_targets));
    let http = reqwest::Client::builder().timeout(HTTP_TIMEOUT).build().context("HTTP client")?;

    // bound before anything is loaded: a taken port ends the start
    let listener = bind(config.app.http_port, "HTTP_PORT").await?;
    let metrics_listener = bind(config.server.metrics_port, "METRICS_PORT").await?;

    let background = CancellationToken::new();
    let refresh = config.server.topic_manager_refresh_period_sec;
    let watching = {
        let (topics, stop) = (topics.clone(), background.clone());
        tokio::spawn(async move { topics.watch(refresh, stop).await })
    };
    let obeying = {
        let (pauses, stop) = (pauses.clone(), background.clone());
        tokio::spawn(async move { pauses.watch(refresh, stop).await })
    };
    let asked = watch_spool_requests(config.kafka.spool(), producer.clone(), background.clone());
    let listening = tokio::spawn(asked);
    let measuring = tokio::spawn(measure(
        producer.clone(),
        configuration_status.clone(),
        targets.clone(),
        background.clone(),
    ));
    let following = tokio::spawn(configuration.follow(background.clone()));
    let logging = tokio::spawn(log_flusher.run(background.clone()));
    let loading = start_loading(
        config,
        (&client, admin),
        &topics,
        (targets.clone(), destinations.clone(), events_log.clone()),
        &pauses,
        stop.clone(),
    )?;

    let limits = Limits {
        body: config.kafka.producer_message_max_bytes(),
        producer_queue: config.kafka.producer_queue_threshold(),
        topics_age: refresh * MISSED_LOOKS,
        topic_prefix: config.kafka.kafka_topic_prefix.clone(),
        topic_wait: config.kafka.producer_wait_for_delivery_ms,
    };
    let state = Arc::new(AppState {
        auth,
        destinations,
        configuration: configuration_status,
        targets,
        bulk: BulkPlaces::new(
            config.server.bulk_max_requests as usize,
            (config.server.bulk_memory_limit_mb as usize) << 20,
            std::env::temp_dir(),
        ),
        topics,
        tables: Arc::new(Tables::default()),
        producer: producer.clone(),
        loader: loading.status.clone(),
        pauses,
        stats: stats.clone(),
        failed_events,
        http,
        prometheus_url: config.server.prometheus_url.clone(),
        events_log,
        limits,
    });
    let server_limits = ServerLimits {
        connections: config.app.http_max_connections,
        header_timeout: config.app.http_header_timeout_sec,
        drain: config.server.shutdown_timeout_sec / DRAIN_SHARE,
    };
    let server =
        Server::new(listener, routes::router(state), server_limits, || metrics::PANICS.inc());
    let metrics_server =
        Server::new(metrics_listener, routes::metrics_router(stats), server_limits, || {
            metrics::PANICS.inc()
        });
    let metrics_serving = tokio::spawn(metrics_server.run(background.clone()));
    info!(port = config.app.http_port, metrics_port = config.server.metrics_port, "serving");

    // intake and loader both end with the signal; the producer is flushed once no request waits for it
    let serving = tokio::spawn(server.run(stop.clone()));
    stop.cancelled().await;
    let deadline = Deadline::after(config.server.shutdown_timeout_sec);
    end(deadline, "intake", serving).await;
    if let Some(spool) = producer.spool() {
        // what Kafka does not take now is safe: the loader gets the rest of the time
        producer.flush(deadline.remaining() / 2).await;
        spool.close(deadline).await;
    } else {
        let unsent = producer.flush(deadline.remaining()).await;
        if unsent > 0 {
            warn!(unsent, "events that were never answered with 200 stay unsent");
        }
    }
    end(deadline, "loader", loading.task).await;
    background.cancel();
    end(deadline, "topics", watching).await;
    end(deadline, "pauses", obeying).await;
    end(deadline, "configuration", following).await;
    end(deadline, "measuring", measuring).await;
    end(deadline, "spool", listening).await;
    end(deadline, "metrics", metrics_serving).await;
    // writes what is left of it, all that posts having ended; last, for its store may hang
    end(deadline, "events log", logging).await;
    info!("stopped");
    Ok(())
}

fn start_loading(
    config: &Config,
    (client, admin): (&ClientSettings, Admin),
    topics: &Arc<Topics>,
    (targets, destinations, events_log): (Arc<Targets>, Arc<Destinations>, EventsLog),
    pauses: &Arc<Pauses>,
    stop: CancellationToken,
) -> Result<Loading> {
    if !config.server.enable_consumers {
        info!("ENABLE_CONSUMERS=false: nothing is loaded here");
        let (_, status) = watch::channel(LoaderStatus::default());
        return Ok(Loading { status, task: tokio::spawn(async {}) });
    }
    let retries = &config.retries;
    let ownership = Arc::new(ownership(config));
    let producer = ConfirmedProducer::new(&config.kafka, CLIENT_ID, PARK_TIMEOUT)
        .context("Kafka's settings")?;
    let prefix = config.kafka.kafka_topic_prefix.clone();
    let metrics_topic: MetricsTopic = Arc::new(move || {
        let mode = destinations.get(METRICS)?.mode;
        Some(topic_name(&prefix, METRICS, mode, METRICS, 0))
    });
    let loading = LoadingConfig {
        reporter: Arc::new(Reporter::new(events_log, metrics_topic, producer.clone())),
        producer,
        parking: ParkingConfig {
            topic_prefix: config.kafka.kafka_topic_prefix.clone(),
            dead_letter_topic: config.kafka.kafka_destinations_dead_letter_topic_name.clone(),
            retry_settings: TopicSettings::retry(&config.kafka),
            dead_letter_settings: TopicSettings::dead_letter(&config.kafka),
            retry_count: retries.messages_retry_count,
            backoff_base: retries.messages_retry_backoff_base,
            backoff_max: retries.messages_retry_backoff_max_delay,
        },
        ownership: ownership.clone(),
        pauses: pauses.clone(),
        client: client.clone(),
        fetcher: FetcherSettings {
            fetch_message_max_bytes: config.kafka.kafka_fetch_message_max_bytes as usize,
            ..FetcherSettings::default()
        },
        admin,
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
    };
    let shared_retry = SharedRetry {
        topic: config.kafka.kafka_destinations_retry_topic_name.clone(),
        period: i64::from(retries.batch_runner_default_retry_period_sec),
    };
    let source = Arc::new(OwnedTopics::new(topics.clone(), targets, ownership, shared_retry));
    loading::spawn(loading, source, stop).context("Kafka's settings")
}

/// Three quarters: the others get some also while one destination hangs.
fn workers_per_destination(config: &Config) -> u32 {
    let workers = config.loader.loader_workers;
    (workers - workers / 4).min(workers.saturating_sub(1)).max(1)
}

/// Opens the destinations; nothing is connected yet.
pub(crate) fn open_targets(config: &Config, destinations: Arc<Destinations>) -> Arc<Targets> {
    let per_destination = workers_per_destination(config);
    // a run, and a tail, needs two connections at most, one loads, one asks; a call of /bulk needs one
    let for_loader = per_destination.saturating_mul(4);
    let connections = for_loader.saturating_add(config.server.bulk_max_requests);
    let defaults = TargetDefaults {
        period: i64::from(config.server.batch_runner_default_period_sec),
        retry_period: i64::from(config.retries.batch_runner_default_retry_period_sec),
        batch_size: u64::from(config.server.batch_runner_default_batch_size),
        remember_fates: 2
            * (config.kafka.kafka_retry_topic_retention_hours
                + config.kafka.kafka_topic_retention_hours
                + config.kafka.kafka_dead_topic_retention_hours),
        tail_loads: per_destination as usize,
    };
    Arc::new(Targets::new(destinations, connections, defaults))
}

fn pauses(config: &Config, client: &ClientSettings, admin: Admin, topics: &Arc<Topics>) -> Pauses {
    let kafka = config.kafka.clone();
    let pauses = PausesConfig {
        topic: pauses_topic(&config.kafka.kafka_topic_prefix),
        settings: TopicSettings {
            partitions: 1,
            replication_factor: config.kafka.kafka_topic_replication_factor,
            entries: vec![("cleanup.policy", "compact".to_owned())],
        },
        client: client.clone(),
        producer: Box::new(move || ConfirmedProducer::new(&kafka, CLIENT_ID, PARK_TIMEOUT)),
    };
    Pauses::new(pauses, admin, topics.clone())
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

async fn bind(port: u16, variable: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await;
    listener.with_context(|| format!("listen on port {port}; BULKER_{variable} moves it"))
}

/// Keeps gauges true of what tells nobody by itself, and targets open where nothing is loaded.
async fn measure(
    producer: AckProducer,
    configuration: watch::Receiver<ConfigurationStatus>,
    targets: Arc<Targets>,
    stop: CancellationToken,
) {
    let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    loop {
        metrics::PRODUCER_QUEUE_LENGTH.set(gauge(producer.queue_length()));
        metrics::PRODUCER_BLOCKED_TOPICS.set(gauge(producer.blocked_topics()));
        if let Some(spool) = producer.spool() {
            spool::measure(spool);
        }
        let age = configuration.borrow().age().unwrap_or_default().as_secs();
        metrics::CONFIGURATION_AGE.set(i64::try_from(age).unwrap_or(i64::MAX));
        targets.opened();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(MEASURE_EVERY) => {}
        }
    }
}

/// Waits for a part's end, not beyond the deadline.
async fn end(deadline: Deadline, part: &str, task: JoinHandle<()>) {
    match deadline.cut(task).await {
        Some(Ok(())) => {}
        Some(Err(_)) => warn!(part, "part of the service panicked"),
        None => warn!(part, "part of the service did not end in time"),
    }
}
