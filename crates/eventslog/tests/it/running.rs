//! A log as a binary runs it, and a look into Redis past it.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use eventslog::{EventsLog, EventsLogConfig, LogMetrics, OpenError, StreamName};
use prometheus::{IntCounterVec, Opts};
use redis::{aio::MultiplexedConnection, streams::StreamRangeReply};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const QUICKLY: Duration = Duration::from_millis(20);
/// No write before the stop, but the first one.
pub(crate) const NEVER: Duration = Duration::from_secs(3600);

pub(crate) struct Running {
    pub(crate) log: EventsLog,
    pub(crate) metrics: LogMetrics,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(config: &EventsLogConfig, every: Duration) -> Result<Running, OpenError> {
        let metrics = metrics();
        let (log, flusher) = eventslog::open(config, metrics.clone())?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(flusher.every(every).run(stop.clone()));
        Ok(Running { log, metrics, stop, task })
    }

    pub(crate) fn errors(&self, kind: &str) -> u64 {
        self.metrics.errors.with_label_values(&[kind]).get()
    }

    pub(crate) fn dropped(&self, kind: &str, reason: &str) -> u64 {
        self.metrics.dropped.with_label_values(&[kind, reason]).get()
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.context("no end")?.context("a panic")
    }
}

/// Settings as a binary reads them.
pub(crate) fn config(arguments: &[&str]) -> EventsLogConfig {
    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        log: EventsLogConfig,
    }
    Settings::parse_from(["it"].iter().chain(arguments)).log
}

pub(crate) fn in_redis(url: &str, max_size: usize) -> EventsLogConfig {
    let (url, size) =
        (format!("--events-log-redis-url={url}"), format!("--events-log-max-size={max_size}"));
    config(&[&url, &size])
}

fn metrics() -> LogMetrics {
    let counter = |name: &str, labels: &[&str]| {
        IntCounterVec::new(Opts::new(name, name), labels).expect("a name and labels")
    };
    LogMetrics {
        errors: counter("errors", &["errorType"]),
        dropped: counter("dropped", &["type", "reason"]),
    }
}

/// An actor of one test alone.
pub(crate) fn actor() -> String {
    format!("it-{}", uuid::Uuid::new_v4().simple())
}

pub(crate) fn stream(kind: &str, actor: &str) -> StreamName {
    StreamName { kind: kind.to_owned(), actor: actor.to_owned() }
}

pub(crate) async fn connect(url: &str) -> Result<MultiplexedConnection> {
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection().await?)
}

/// Runs one command.
pub(crate) async fn ask<T: redis::FromRedisValue>(
    redis: &mut MultiplexedConnection,
    words: &[&str],
) -> Result<T> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(redis).await.with_context(|| words.join(" "))
}

/// The events in a stream of Redis, oldest first.
pub(crate) async fn entries(redis: &mut MultiplexedConnection, key: &str) -> Result<Vec<String>> {
    let reply: StreamRangeReply = ask(redis, &["XRANGE", key, "-", "+"]).await?;
    let only_event = |entry: redis::streams::StreamId| {
        anyhow::ensure!(entry.map.len() == 1, "other fields in {entry:?}");
        entry.get::<String>("event").with_context(|| format!("no event in {entry:?}"))
    };
    reply.ids.into_iter().map(only_event).collect()
}
