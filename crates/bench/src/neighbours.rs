//! One topic with a long backlog beside many with an event each: what is fetched for it, and how
//! long the small ones wait.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::{parts::Parts, report::Comparison, topics};

const DEADLINE: Duration = Duration::from_secs(300);
/// Bytes from Kafka per byte of events, at most.
const LIMIT: f64 = 1.2;
const SMALL: usize = 1_000;

/// One topic of `events` events beside [`SMALL`] topics of one, all waiting at the start.
pub(crate) async fn big_beside_small(parts: &Parts, events: u64) -> Result<Comparison> {
    let destination = format!("bench{}", uuid::Uuid::new_v4().simple());
    let big = format!("in.id.{destination}.m.batch.t.bench_big");
    let small = topics::names(&destination, SMALL);
    eprintln!("making {SMALL} topics beside one with {events} events");
    parts.create_topics(&small).await?;
    parts.create_topic(&big).await?;
    parts.one_event_each(&small)?;
    // not compressed: bytes fetched are to be compared with bytes of events
    let bytes = parts.fill_topic(&big, events, "none", |number| number)?;
    let mut database = parts.database().await?;
    let started = Instant::now();
    let port = testkit::free_port()?;
    let server = parts.bulkerapp(&destination, r#"mode: "batch", frequency: 5"#, port, true)?;
    let (mut small_took, mut big_took) = (None, None);
    while small_took.is_none() || big_took.is_none() {
        ensure!(started.elapsed() < DEADLINE, "not loaded within {} s", DEADLINE.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await; // how exact the figures are
        if topics::loaded(&mut database, &destination).await >= i64::try_from(SMALL)? {
            small_took.get_or_insert_with(|| started.elapsed());
        }
        if next_offset(&mut database, &big).await >= i64::try_from(events)? {
            big_took.get_or_insert_with(|| started.elapsed());
        }
    }
    let fetched = server.bytes_received(&parts.kafka)?;
    let seconds = |took: Option<Duration>| took.unwrap_or_default().as_secs_f64();
    let details = BTreeMap::from([
        ("seconds_until_small_ones_loaded", seconds(small_took)),
        ("seconds_until_big_one_loaded", seconds(big_took)),
        ("server_peak_memory_mib", server.peak_memory_mib()?),
    ]);
    server.stop()?;
    topics::drop_tables(&mut database, SMALL).await?;
    database.execute("drop table bench_big").await.context("drop the big table")?;
    database.close().await?;
    parts.delete_topics(&small).await?;
    parts.delete_topic(&big).await?;
    #[allow(clippy::cast_precision_loss)] // a ratio with two digits
    let ours = fetched / bytes as f64;
    Ok(Comparison {
        name: format!("{events} events of one topic beside {SMALL} small topics, bytes fetched"),
        unit: "per byte of events",
        ours,
        reference: LIMIT,
        reference_is: "what it may be",
        details,
    })
}

async fn next_offset(database: &mut PgConnection, topic: &str) -> i64 {
    let sql = format!("select next_offset from public.bulker_offsets where topic = '{topic}'");
    database.fetch_one(sql.as_str()).await.map_or(0, |row| row.get(0))
}
