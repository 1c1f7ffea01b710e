//! Many topics on one instance: how long until an event of each is loaded, and what they cost while
//! nothing comes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::{parts::Parts, report::Comparison};

const DEADLINE: Duration = Duration::from_secs(600);
/// How long the idle instance is watched.
const IDLE: Duration = Duration::from_secs(20);
/// Time to come to rest before that.
const REST: Duration = Duration::from_secs(5);

/// MiB that an instance may take: 150 for 1,000 topics, 300 for 5,000.
const LIMIT_MIB: (f64, f64) = (112.5, 0.0375);

/// One event in each of `count` topics, loaded after the start; then idle.
pub(crate) async fn many(parts: &Parts, count: usize) -> Result<Comparison> {
    let destination = format!("bench{}", uuid::Uuid::new_v4().simple());
    let topics = names(&destination, count);
    eprintln!("making {count} topics");
    parts.create_topics(&topics).await?;
    parts.one_event_each(&topics)?;
    let mut database = parts.database().await?;
    let started = Instant::now();
    let port = testkit::free_port()?;
    let server = parts.bulkerapp(&destination, r#"mode: "batch", frequency: 5"#, port, true)?;
    while loaded(&mut database, &destination).await < i64::try_from(count)? {
        ensure!(started.elapsed() < DEADLINE, "not loaded within {} s", DEADLINE.as_secs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let took = started.elapsed();
    let threads_at_work = server.threads()?;
    tokio::time::sleep(REST).await;
    let before = server.cpu_seconds()?;
    tokio::time::sleep(IDLE).await;
    let idle_cores = (server.cpu_seconds()? - before) / IDLE.as_secs_f64();
    let details = BTreeMap::from([
        ("seconds_until_all_rows", took.as_secs_f64()),
        ("idle_cores", idle_cores),
        ("threads_idle", server.threads()?),
        ("threads_at_work", threads_at_work),
        ("memory_idle_mib", server.memory_mib()?),
    ]);
    let peak = server.peak_memory_mib()?;
    server.stop()?;
    drop_tables(&mut database, count).await?;
    database.close().await?;
    parts.delete_topics(&topics).await?;
    Ok(Comparison {
        name: format!("{count} topics on one instance, peak memory"),
        unit: "MiB",
        ours: peak,
        reference: LIMIT_MIB.0 + LIMIT_MIB.1 * f64::from(u32::try_from(count)?),
        reference_is: "what it may take",
        details,
    })
}

/// Topics of a destination, each of a table of its own.
pub(crate) fn names(destination: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("in.id.{destination}.m.batch.t.bench_many_{number}")).collect()
}

/// How many of them are loaded. 0 before the offsets table is there.
pub(crate) async fn loaded(database: &mut PgConnection, destination: &str) -> i64 {
    let sql = format!(
        "select count(*) from public.bulker_offsets where topic like 'in.id.{destination}.m.batch.t.bench_many_%' and next_offset > 0"
    );
    database.fetch_one(sql.as_str()).await.map_or(0, |row| row.get(0))
}

/// Drops their tables, in groups: locks of one transaction are bounded.
pub(crate) async fn drop_tables(database: &mut PgConnection, count: usize) -> Result<()> {
    let names: Vec<_> = (0..count).map(|number| format!("bench_many_{number}")).collect();
    for group in names.chunks(200) {
        let sql = format!("drop table if exists {}", group.join(", "));
        database.execute(sql.as_str()).await.context("drop tables")?;
    }
    Ok(())
}
