//! A load of HTTP requests over kept connections, cheap enough to leave the machine to the server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::events::write_event;

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

/// Posts events over `connections` connections for some time. Any answer but 200 is an error.
pub(crate) async fn post(
    port: u16,
    path: &str,
    token: &str,
    connections: usize,
    time: Duration,
) -> Result<HttpLoad> {
    let started = Instant::now();
    let mut tasks = Vec::new();
    for connection in 0..connections {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: "
        );
        tasks.push(tokio::spawn(one_connection(port, head, connection as u64, started + time)));
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

async fn one_connection(port: u16, head: String, seed: u64, until: Instant) -> Result<Vec<f32>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (mut event, mut request) = (String::new(), Vec::new());
    let mut answer = vec![0; 4096];
    let mut latencies = Vec::new();
    let mut number = seed << 32;
    while Instant::now() < until {
        write_event(&mut event, number);
        number += 1;
        request.clear();
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(format!("{}\r\n\r\n", event.len()).as_bytes());
        request.extend_from_slice(event.as_bytes());
        let sent = Instant::now();
        stream.write_all(&request).await?;
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
