//! The service: its parts, in the order in which they start; a stop is the reverse of it.

mod clock;
mod loading;
mod parts;
mod targets;
mod tasks;

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use appbase::{
    auth::TokenAuth,
    config::Environment,
    http::{Server, ServerLimits},
    lifecycle::{Deadline, Parts, stop_on_signal},
    raise_descriptor_limit,
};
use eventslog::LogMetrics;
use kafkabase::watch_spool_requests;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub(crate) use loading::loaders_group;
pub(crate) use targets::open_targets;

use crate::{
    config::Config,
    destinations::{Configuration, RedisSettings},
    metrics, routes,
};
use parts::Shared;
use tasks::Measured;

/// How Kafka's brokers see this service.
const CLIENT_ID: &str = "bulkerapp";
/// How long Kafka may take for refused events, while their load waits.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(20);
/// Of the time that a stop may take, the part that requests in hand get.
const DRAIN_SHARE: u32 = 4;

/// Connections to the port of the metrics: scrapers come alone.
const METRICS_CONNECTIONS: u32 = 16;

/// Starts everything, serves until a signal, stops in reverse order within the deadline.
///
/// Fails where a setting is not usable, a port is taken or the first configuration cannot be had;
/// what runs by then ends with the runtime.
pub async fn run(config: &Config, environment: &Environment) -> Result<()> {
    metrics::register();
    loader::register_metrics();
    let stop = stop_on_signal().context("watch for signals")?;
    // before clients of Kafka and databases take some
    let open_files = raise_descriptor_limit();
    let auth = Arc::new(TokenAuth::new(&config.app)?);
    let redis = RedisSettings::from(&config.events_log);
    let configuration = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        started = Configuration::start(&config.source, &redis, environment) => started?,
    };
    let log_metrics = LogMetrics {
        errors: metrics::EVENTS_LOG_ERRORS.clone(),
        dropped: metrics::EVENTS_LOG_DROPPED.clone(),
    };
    let (events_log, log_flusher) =
        eventslog::open(&config.events_log, log_metrics).context("settings of the events log")?;
    let shared = Shared::open(config, auth, &configuration, events_log)?;

    // bound before anything is loaded: a taken port ends the start
    let server = &config.server;
    let listener = bind((server.listen_http, config.app.http_port), "HTTP").await?;
    let metrics_listener = bind((server.listen_metrics, server.metrics_port), "METRICS").await?;
    let drain = config.server.shutdown_timeout_sec / DRAIN_SHARE;
    let limits = config.app.server_limits(open_files, drain);
    let metrics_limits = ServerLimits { connections: METRICS_CONNECTIONS, ..limits };

    // intake and loader are told with the signal, the others together once both have ended
    let background = CancellationToken::new();
    let refresh = config.server.topic_manager_refresh_period_sec;
    let mut parts = Parts::default();
    // the last to be waited for: it writes what posts have left, and its store may hang
    parts.spawn("events log", &background, |stop| log_flusher.run(stop));
    parts.spawn("metrics", &background, |stop| {
        let router = routes::metrics_router(shared.stats.clone());
        let probes = &["/metrics"];
        Server::new(metrics_listener, router, metrics_limits, probes, || metrics::PANICS.inc())
            .run(stop)
    });
    parts.spawn("spool", &background, |stop| {
        watch_spool_requests(config.kafka.spool(), shared.producer.clone(), stop)
    });
    parts.spawn("measuring", &background, |stop| Measured::of(&shared).measure(stop));
    parts.spawn("configuration", &background, |stop| configuration.follow(stop));
    parts.spawn("pauses", &background, |stop| {
        let pauses = shared.pauses.clone();
        async move { pauses.watch(refresh, stop).await }
    });
    parts.spawn("topics", &background, |stop| shared.topics.clone().watch(refresh, stop));
    let loading = loading::start(config, &shared, stop.clone())?;
    parts.adopt("loader", stop.clone(), loading.task);
    tasks::flush_on_stop(&mut parts, &shared.producer);
    let state = shared.state(config, loading.status)?;
    parts.spawn("intake", &stop, |stop| {
        let (router, probes) = (routes::router(state), &["/ready", "/health"]);
        Server::new(listener, router, limits, probes, || metrics::PANICS.inc()).run(stop)
    });
    info!(port = config.app.http_port, metrics_port = config.server.metrics_port, "serving");

    stop.cancelled().await;
    parts.stop(Deadline::after(config.server.shutdown_timeout_sec)).await;
    info!("stopped");
    Ok(())
}

async fn bind((address, port): (IpAddr, u16), what: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind((address, port)).await;
    listener.with_context(|| {
        format!(
            "listen on {address}, port {port}; BULKER_LISTEN_{what} and BULKER_{what}_PORT move it"
        )
    })
}
