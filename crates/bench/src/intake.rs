//! `POST /post` under load, beside the same load on a bare axum handler.

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use axum::{Router, body::Bytes, routing::post as post_route};
use testkit::free_port;
use tokio::net::TcpStream;

use crate::{
    http_load::{HttpLoad, Requests},
    parts::{Parts, TOKEN},
    process::Process,
    report::Comparison,
};

const PATH: &str = "/post/bench?tableName=intake";
const TOPIC: &str = "in.id.bench.m.batch.t.intake";
/// A start that takes longer is a failure.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Requests before the measured ones: connections, topic and caches are there then.
const WARM_UP: Duration = Duration::from_secs(2);

/// Requests per CPU second of the server, which counts nothing that Kafka or the load itself use.
///
/// The reference gets the same load: as many requests per second over as many connections. A server
/// that is never idle needs less CPU time for a request, so its figure at full speed stands beside.
pub(crate) async fn post(parts: &Parts, connections: usize, seconds: u64) -> Result<Comparison> {
    let time = Duration::from_secs(seconds);
    let port = free_port()?;
    // what is posted is not loaded meanwhile: that would count as the cost of intake
    let server = parts.bulkerapp("bench", "", port, false)?;
    wait_for_port(port).await?;
    let requests = Requests::new(port, PATH, TOKEN, connections);
    requests.post(WARM_UP, None).await?;
    let before = parts.count_records(TOPIC)?;
    let (ours, cpu_seconds) = measure(&server, &requests, time, None).await?;
    let found = parts.count_records(TOPIC)? - before;
    ensure!(
        u64::try_from(found).ok() == Some(ours.requests),
        "{} requests answered with 200, {found} records in Kafka",
        ours.requests
    );
    let peak_memory = server.peak_memory_mib()?;
    server.stop()?;

    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare-handler", "--port", &port.to_string()]);
    let bare = Process::start(command)?;
    wait_for_port(port).await?;
    let requests = Requests::new(port, PATH, TOKEN, connections);
    let (full, full_cpu_seconds) = measure(&bare, &requests, time, None).await?;
    let rate = per(ours.requests, ours.seconds);
    let (same, same_cpu_seconds) = measure(&bare, &requests, time, Some(rate)).await?;
    bare.stop()?;

    Ok(Comparison {
        name: format!("POST /post, {connections} connections"),
        unit: "requests per server CPU second",
        ours: per(ours.requests, cpu_seconds),
        reference: per(same.requests, same_cpu_seconds),
        reference_is: "bare axum handler under the same load",
        details: BTreeMap::from([
            ("requests_per_second", rate),
            ("reference_requests_per_second", per(same.requests, same.seconds)),
            ("reference_at_full_speed", per(full.requests, full_cpu_seconds)),
            ("reference_at_full_speed_requests_per_second", per(full.requests, full.seconds)),
            ("p50_ms", ours.percentile(0.5)),
            ("p99_ms", ours.percentile(0.99)),
            ("reference_p99_ms", same.percentile(0.99)),
            ("server_peak_memory_mib", peak_memory),
        ]),
    })
}

async fn measure(
    server: &Process,
    requests: &Requests,
    time: Duration,
    per_second: Option<f64>,
) -> Result<(HttpLoad, f64)> {
    let before = server.cpu_seconds()?;
    let load = requests.post(time, per_second).await?;
    Ok((load, server.cpu_seconds()? - before))
}

/// The reference: reads the body, answers as `/post` does, and nothing else.
pub(crate) async fn serve_bare_handler(port: u16) -> Result<()> {
    let app = Router::new().route(
        "/post/{destination}",
        post_route(async |body: Bytes| {
            std::hint::black_box(body.len());
            ([("content-type", "application/json; charset=utf-8")], r#"{"message":"ok"}"#)
        }),
    );
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, app).await.context("serve")
}

async fn wait_for_port(port: u16) -> Result<()> {
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        ensure!(started.elapsed() < START_DEADLINE, "nothing listens on port {port}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // counts of requests are far below 2^52
fn per(requests: u64, seconds: f64) -> f64 {
    requests as f64 / seconds
}
