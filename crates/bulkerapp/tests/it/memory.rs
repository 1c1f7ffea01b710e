//! What clients and databases do to memory: the most that a process takes stays near the loader's
//! limit, whatever the bytes are in.
//!
//! Each test prints what it saw; `docs/performance.md` has a table of it.

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use testkit::{ForeignRecord, proxy::PostgresProxy, wait_until};

use crate::app::{App, DESTINATION, PATIENCE, Setup, TOKEN};

/// The loader's limit of these tests, and what a process may take at its peak: the program itself,
/// what the intake holds, and two batches beside the limit.
const LIMIT: &str = "32";
const MOST_MIB: u64 = 250;

/// The most memory that the process had, in MiB.
fn peak_mib(app: &App) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", app.service.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024)
}

fn check(app: &App, world: &str) -> Result<()> {
    let peak = peak_mib(app)?;
    println!("{world}: {peak} MiB at the peak, with a limit of {LIMIT} MiB");
    assert!(peak < MOST_MIB, "{world}: {peak} MiB");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_as_large_as_they_may_be_keep_the_limit() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with("BULKER_LOADER_MEMORY_LIMIT_MB", LIMIT);
    let topic = kafka.adopt(setup.topic("t"));
    // given 200 MB of events, three more of which are refused
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    database.execute("create table t (id bigint check (id >= 0), text text)").await?;
    let text = "z".repeat(980_000);
    let events = (-3..200).map(|id| format!(r#"{{"id":{id},"text":"{text}"}}"#));
    kafka.produce_all(topic.name(), 0, events).await?;
    // when they are loaded
    let app = setup.start().await?;
    wait_until(PATIENCE, || async { database.count("t").await.is_ok_and(|n| n == 200) }).await?;
    // then memory stays near the limit
    check(&app, "events of 1 MB")?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn small_events_with_large_headers_keep_the_limit() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with("BULKER_LOADER_MEMORY_LIMIT_MB", LIMIT);
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    // given small events with 400 KB of headers each, first readings and returning ones
    let header = vec![b'x'; 390_000];
    let written = stream::iter(0..500).map(|id| {
        let (kafka, topic, header) = (&kafka, topic.name(), header.as_slice());
        async move {
            let event = format!(r#"{{"id":{id}}}"#);
            let origin = format!(r#"{{"cluster":"c","topic":"x","partition":0,"offset":{id}}}"#);
            let first = [("metrics_meta", header)];
            let returning = [("metrics_meta", header), ("bulker_origin", origin.as_bytes())];
            let headers = if id % 2 == 0 { first.as_slice() } else { returning.as_slice() };
            let value = Some(event.as_bytes());
            let record = ForeignRecord { value, headers, ..ForeignRecord::default() };
            kafka.produce_foreign(topic, 0, record).await
        }
    });
    written.buffer_unordered(8).try_collect::<Vec<_>>().await?;
    // when they are loaded
    let app = setup.start().await?;
    wait_until(PATIENCE, || async { database.count("t").await.is_ok_and(|n| n == 500) }).await?;
    // then memory stays near the limit
    check(&app, "400 KB of headers")?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_of_a_long_parent_with_many_keys_takes_little_more_than_its_size() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with("BULKER_LOADER_MEMORY_LIMIT_MB", LIMIT);
    let _topic = kafka.adopt(setup.topic("wide"));
    let _other = kafka.adopt(setup.topic("other"));
    let app = setup.start().await?;
    // given half a megabyte that would be a gigabyte if each key's whole name were written out
    let children: Vec<_> = (0..55_000).map(|n| format!(r#""{n:x}":1"#)).collect();
    let event = format!(r#"{{"id":1,"{}":{{{}}}}}"#, "k".repeat(20_000), children.join(","));
    let bearer = format!("Bearer {TOKEN}");
    let path = format!("/post/{DESTINATION}?tableName=wide");
    let headers = [("authorization", bearer.as_str())];
    let answer = app.request("POST", &path, &headers, event.as_bytes()).await?;
    assert!([200, 400, 413].contains(&answer.status), "{}", answer.body);
    // when it is loaded, or refused, and others follow
    assert_eq!(app.post("wide", r#"{"id":2}"#).await?, 200);
    assert_eq!(app.post("other", r#"{"id":3}"#).await?, 200);
    let id = "select 1 from wide where id = 2";
    wait_until(PATIENCE, || async { database.value(id).await.is_ok() }).await?;
    wait_until(PATIENCE, || async { database.count("other").await.is_ok_and(|n| n == 1) }).await?;
    // then memory stays near the limit
    check(&app, "a long parent of 55,000 keys")?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_behind_a_database_that_hangs_keep_the_limit() -> Result<()> {
    const TOPICS: usize = 500;
    const EVENTS: usize = 60;
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let setup = Setup::new(&kafka, &database)
        .with_options(r#"mode: "stream""#)
        .through(&proxy.host(), proxy.port())
        .with("BULKER_LOADER_MEMORY_LIMIT_MB", LIMIT);
    // given many stream topics whose tails are followed
    let tables: Vec<_> = (0..TOPICS).map(|number| format!("t{number}")).collect();
    let topics: Vec<_> =
        tables.iter().map(|table| kafka.adopt(setup.stream_topic(table))).collect();
    let made = stream::iter(&topics).map(|topic| async {
        kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        kafka.produce(topic.name(), 0, "k", r#"{"id":0}"#, &[]).await
    });
    made.buffer_unordered(16).try_collect::<Vec<_>>().await?;
    let app = setup.start().await?;
    let positions = "select count(*) from bulker_offsets where topic like '%.m.stream.t.%'";
    let all = TOPICS.to_string();
    let are_loaded = || async { database.value(positions).await.is_ok_and(|n| n == all) };
    wait_until(4 * PATIENCE, are_loaded).await?;
    // when the database hangs, and 300 MB of events arrive
    proxy.pause();
    let text = "y".repeat(10_000);
    let appended = stream::iter(&topics).map(|topic| {
        let events = (1..=EVENTS).map(|id| format!(r#"{{"id":{id},"text":"{text}"}}"#));
        kafka.produce_all(topic.name(), 0, events)
    });
    appended.buffer_unordered(8).try_collect::<Vec<_>>().await?;
    let waiting = TOPICS * EVENTS;
    let is_seen = || async {
        let metrics = app.get("/metrics").await.unwrap_or_default();
        let sizes =
            metrics.lines().filter(|line| line.starts_with("bulkerapp_consumer_queue_size{"));
        let sum: f64 = sizes.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        sum >= waiting as f64 * 0.9
    };
    wait_until(4 * PATIENCE, is_seen).await.context("the backlog is not seen")?;
    // then memory stays near the limit, and so it does when it answers again
    check(&app, "500 streams behind a database that hangs")?;
    proxy.resume();
    let moved = format!("{positions} and next_offset > {EVENTS}");
    let are_loaded = || async { database.value(&moved).await.is_ok_and(|n| n == all) };
    wait_until(8 * PATIENCE, are_loaded).await?;
    check(&app, "500 streams after it")?;
    app.stop().await
}
