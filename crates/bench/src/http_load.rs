//! A load of HTTP requests over kept connections, cheap enough to leave the machine to the server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::events::write_event;

const DISTINCT_EVENTS: u64 = 4096;

/// What a load measured.
#[derive(Debug, Default)]
pub(crate) struct HttpLoad {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// Milliseconds of each request, sorted.
    latencies: Vec<f32>,
}

impl HttpLoad {
    /// The latency in milliseconds that this share of the requests did not exceed.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let index = ((self.latencies.len() as f64 * share) as usize)
            .min(self.latencies.len().saturating_sub(1));
        self.latencies.get(index).copied().map_or(0.0, f64::from)
    }
}

/// Where requests go and what they are.
pub(crate) struct Requests {
    port: u16,
    connections: usize,
    /// Whole requests, each with an event of its own. Made ahead: making them would take the
    /// server's CPU time.
    pool: Arc<Vec<Vec<u8>>>,
}

impl Requests {
    pub(crate) fn new(port: u16, path: &str, token: &str, connections: usize) -> Requests {
        let mut event = String::new();
        let request = |number| {
            write_event(&mut event, number);
            let length = event.len();
            format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{event}"
            )
            .into_bytes()
        };
        let pool = Arc::new((0..DISTINCT_EVENTS).map(request).collect());
        Requests { port, connections, pool }
    }

    /// Posts for some time; any answer but 200 is an error. Each connection sends its next request
    /// when it has the answer to the last one, with `per_second` not before its turn in that rate
    /// over all connections.
    pub(crate) async fn post(&self, time: Duration, per_second: Option<f64>) -> Result<HttpLoad> {
        let started = Instant::now();
        let mut tasks = Vec::new();
        for number in 0..self.connections {
            let connection = Connection {
                port: self.port,
                pool: self.pool.clone(),
                first: number * DISTINCT_EVENTS as usize / self.connections,
                pause: per_second.map(|rate| pause_of(rate, self.connections)),
            };
            tasks.push(tokio::spawn(connection.post_until(started + time)));
        }
        let mut load = HttpLoad::default();
        for task in tasks {
            load.latencies.extend(task.await??);
        }
        load.seconds = started.elapsed().as_secs_f64();
        load.requests = load.latencies.len() as u64;
        load.latencies.sort_unstable_by(f32::total_cmp);
        Ok(load)
    }
}

#[allow(clippy::cast_precision_loss)] // a number of connections
fn pause_of(per_second: f64, connections: usize) -> Duration {
    Duration::from_secs_f64(connections as f64 / per_second)
}

struct Connection {
    port: u16,
    pool: Arc<Vec<Vec<u8>>>,
    /// Where in the pool to begin.
    first: usize,
    pause: Option<Duration>,
}

impl Connection {
    async fn post_until(self, until: Instant) -> Result<Vec<f32>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.context("connect")?;
        stream.set_nodelay(true)?;
        let mut answer = vec![0; 4096];
        let mut latencies = Vec::new();
        let mut turn = Instant::now();
        for request in self.pool.iter().cycle().skip(self.first) {
            if let Some(pause) = self.pause {
                tokio::time::sleep_until(turn.into()).await;
                turn += pause;
            }
            let sent = Instant::now();
            if sent >= until {
                break;
            }
            stream.write_all(request).await?;
            let mut length = 0;
            loop {
                let read = stream.read(&mut answer[length..]).await?;
                ensure!(read > 0, "the server closed a connection");
                length += read;
                if is_complete(&answer[..length])? {
                    break;
                }
            }
            latencies.push(sent.elapsed().as_secs_f32() * 1000.0);
        }
        Ok(latencies)
    }
}

/// Whether a whole answer is there. Answers of both servers carry a `content-length`.
fn is_complete(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = std::str::from_utf8(&answer[..end])?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "answer: {}",
        head.lines().next().unwrap_or_default()
    );
    let length: usize = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim())
        })
        .context("answer without content-length")?
        .parse()?;
    Ok(answer.len() >= end + 4 + length)
}
