//! Mode `stream`: from the post of an event to its row, and a backlog that is drained.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    events::write_event,
    parts::{Parts, TOKEN},
    report::Comparison,
};

/// Events before those that are measured: tables are made, caches filled.
const WARM_UP: u64 = 50;
const TABLE: &str = "bench_latency";
/// A row that takes longer is a failure, not a result.
const DEADLINE: Duration = Duration::from_secs(10);

/// One event after the other: posted, then looked for until its row is there. Beside the same rows
/// inserted by the client itself.
pub(crate) async fn latency(parts: &Parts, events: u64) -> Result<Comparison> {
    let destination = format!("bench{}", uuid::Uuid::new_v4().simple());
    let port = testkit::free_port()?;
    let server = parts.bulkerapp(&destination, r#"mode: "stream""#, port, true)?;
    let mut database = parts.database().await?;
    let mut client = connect(port).await?;
    let mut took = Vec::new();
    for number in 0..WARM_UP + events {
        let started = Instant::now();
        post(&mut client, &destination, number).await?;
        let visible = visible(&mut database, number, started).await?;
        if number >= WARM_UP {
            took.push(visible);
        }
    }
    server.stop()?;
    let mut bare = Vec::new();
    for number in 0..events {
        let started = Instant::now();
        let insert =
            format!("insert into {TABLE} select * from {TABLE} where id = {}", number % WARM_UP);
        database.execute(insert.as_str()).await?;
        bare.push(started.elapsed());
    }
    database.execute(format!("drop table {TABLE}").as_str()).await?;
    database.close().await?;
    parts.delete_topic(&format!("in.id.{destination}.m.stream.t.{TABLE}")).await?;
    took.sort_unstable();
    bare.sort_unstable();
    Ok(Comparison {
        name: "stream, post to visible row, closed loop, p99".to_owned(),
        unit: "ms",
        ours: percentile(&took, 99),
        reference: percentile(&bare, 99),
        reference_is: "an insert by the client itself, p99",
        details: BTreeMap::from([
            ("p50_ms", percentile(&took, 50)),
            ("max_ms", percentile(&took, 100)),
            ("reference_p50_ms", percentile(&bare, 50)),
        ]),
    })
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}

async fn connect(port: u16) -> Result<TcpStream> {
    let started = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => {
                ensure!(started.elapsed() < DEADLINE, "bulkerapp does not listen: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn post(client: &mut TcpStream, destination: &str, number: u64) -> Result<()> {
    let mut event = String::new();
    write_event(&mut event, number);
    let request = format!(
        "POST /post/{destination}?tableName={TABLE} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n{event}",
        event.len()
    );
    client.write_all(request.as_bytes()).await?;
    let mut answer = [0; 512];
    let read = client.read(&mut answer).await?;
    ensure!(answer[..read].starts_with(b"HTTP/1.1 200"), "event {number} was not taken");
    Ok(())
}

/// Looks for the row until it is there; the time since `started`.
async fn visible(database: &mut PgConnection, number: u64, started: Instant) -> Result<Duration> {
    let sql = format!("select count(*) from {TABLE} where id = {number}");
    loop {
        // the table is not there before the first event
        let found = database.fetch_one(sql.as_str()).await;
        if found.is_ok_and(|row| row.get::<i64, _>(0) > 0) {
            return Ok(started.elapsed());
        }
        ensure!(started.elapsed() < DEADLINE, "event {number} is not there");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}
