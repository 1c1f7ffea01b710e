//! The service: its parts, in the order in which they start and stop.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use appbase::{
    auth::TokenAuth,
    config::Environment,
    http::{Server, ServerLimits},
    lifecycle::{Deadline, stop_on_signal},
};
use kafkabase::{AckMode, AckProducer, Admin, FetcherSettings, ProducerMetrics};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Config,
    destinations::Destinations,
    loading::{
        self, LoaderSettings, LoaderStatus, Loading, LoadingConfig, OwnedTopics, Shard, open_all,
    },
    metrics, routes, spool,
    state::{AppState, Limits},
    tables::Tables,
    topics::Topics,
};

/// How Kafka's brokers see this service.
const CLIENT_ID: &str = "bulkerapp";
/// The longest an administrative call may take; the original's second is too short for a coordinator's move.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
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
    let destinations = Arc::new(Destinations::load(&config.server.config_source, environment)?);

    let client = config.kafka.client_config(CLIENT_ID);
    let admin = Admin::new(&client, ADMIN_TIMEOUT).context("Kafka's settings")?;
    let counters = ProducerMetrics {
        messages: metrics::PRODUCER_MESSAGES.clone(),
        rebuilt: metrics::PRODUCER_REBUILDS.clone(),
    };
    let topics = Arc::new(Topics::new(admin, &config.kafka, destinations.clone()));
    let spool = spool::open(&config.kafka, topics.clone())?;
    let producer =
        AckProducer::new(&config.kafka, CLIENT_ID, counters, spool).context("Kafka's settings")?;
    if producer.mode() == AckMode::Async {
        warn!("ACK_MODE=async: an event is answered before Kafka has it, and a crash loses it");
    }

    // bound before anything is loaded: a taken port ends the start
    let listener = bind(config.app.http_port, "HTTP_PORT").await?;
    let metrics_listener = bind(config.server.metrics_port, "METRICS_PORT").await?;

    let background = CancellationToken::new();
    let refresh = config.server.topic_manager_refresh_period_sec;
    let watching = {
        let (topics, stop) = (topics.clone(), background.clone());
        tokio::spawn(async move { topics.watch(refresh, stop).await })
    };
    let measuring = tokio::spawn(measure(producer.clone(), background.clone()));
    let asked = spool::watch_requests(config.kafka.spool(), producer.clone(), background.clone());
    let listening = tokio::spawn(asked);
    let loading = start_loading(config, &client, &topics, &destinations, stop.clone())?;

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
        topics,
        tables: Arc::new(Tables::default()),
        producer: producer.clone(),
        loader: loading.status.clone(),
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
        Server::new(metrics_listener, routes::metrics_router(), server_limits, || {
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
        spool::close(spool, deadline).await;
    } else {
        let unsent = producer.flush(deadline.remaining()).await;
        if unsent > 0 {
            warn!(unsent, "events that were never answered with 200 stay unsent");
        }
    }
    end(deadline, "loader", loading.task).await;
    background.cancel();
    end(deadline, "topics", watching).await;
    end(deadline, "measuring", measuring).await;
    end(deadline, "spool", listening).await;
    end(deadline, "metrics", metrics_serving).await;
    info!("stopped");
    Ok(())
}

fn start_loading(
    config: &Config,
    client: &rdkafka::ClientConfig,
    topics: &Arc<Topics>,
    destinations: &Destinations,
    stop: CancellationToken,
) -> Result<Loading> {
    if !config.server.enable_consumers {
        info!("ENABLE_CONSUMERS=false: nothing is loaded here");
        let (_, status) = tokio::sync::watch::channel(LoaderStatus::default());
        return Ok(Loading { status, task: tokio::spawn(async {}) });
    }
    let workers = config.loader.loader_workers as usize;
    let per_destination = workers.div_ceil(2);
    let loading = LoadingConfig {
        client: client.clone(),
        fetcher: FetcherSettings {
            fetch_message_max_bytes: config.kafka.kafka_fetch_message_max_bytes as usize,
            ..FetcherSettings::default()
        },
        admin_timeout: ADMIN_TIMEOUT,
        memory_limit: (config.loader.loader_memory_limit_mb as usize) << 20,
        claim_every: config.loader.loader_claim_period_sec,
        stall_after: config.loader.loader_stall_timeout_sec,
        loader: LoaderSettings {
            workers,
            workers_per_destination: per_destination,
            sweep_every: config.server.topic_manager_refresh_period_sec,
            stop_within: config.server.shutdown_timeout_sec,
        },
    };
    // a run needs two connections at most: one loads, one asks
    let connections = u32::try_from(per_destination * 2).unwrap_or(u32::MAX);
    let defaults = (
        i64::from(config.server.batch_runner_default_period_sec),
        u64::from(config.server.batch_runner_default_batch_size),
    );
    let targets = open_all(destinations, connections, defaults);
    let shard = Shard { index: config.server.instance_index, count: config.server.shards };
    let source = Arc::new(OwnedTopics::new(topics.clone(), targets, shard));
    loading::spawn(loading, source, stop).context("Kafka's settings")
}

async fn bind(port: u16, variable: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await;
    listener.with_context(|| format!("listen on port {port}; BULKER_{variable} moves it"))
}

/// Keeps gauges of the producer true.
async fn measure(producer: AckProducer, stop: CancellationToken) {
    let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    loop {
        metrics::PRODUCER_QUEUE_LENGTH.set(gauge(producer.queue_length()));
        metrics::PRODUCER_BLOCKED_TOPICS.set(gauge(producer.blocked_topics()));
        if let Some(spool) = producer.spool() {
            spool::measure(spool);
        }
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
