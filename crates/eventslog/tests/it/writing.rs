//! What reaches Redis, and what does not.

use std::cell::Cell;

use anyhow::Result;
use eventslog::{BatchBody, EventType, Level};
use serde_json::{json, value::RawValue};
use testkit::{native::OwnRedis, wait_until};

use crate::running::{
    NEVER, PATIENCE, QUICKLY, Running, actor, ask, config, connect, entries, in_redis,
};

#[tokio::test]
async fn every_event_is_in_the_stream_of_all_and_failures_in_theirs_too() -> Result<()> {
    let url = testkit::redis_url().await?;
    let (mut redis, actor) = (connect(&url).await?, actor());
    let running = Running::start(&in_redis(&url, 1000), QUICKLY)?;
    // given an ordered object, as rows and schemas are
    let row: &RawValue = serde_json::from_str(r#"{"z":1.0,"a":{"<":"Zoë"}}"#)?;
    let state = json!({"status": "COMPLETED", "processedRows": 1});
    running.log.post(&actor, EventType::BulkerBatch, Level::Info, || BatchBody {
        state: &state,
        last_mapped_row: Some(row),
    });
    running.log.post(&actor, EventType::BulkerBatch, Level::Error, || json!({"status": "FAILED"}));
    running.log.post(&actor, EventType::BulkerStream, Level::Info, || json!({"status": "SUCCESS"}));
    running.stop().await?;

    // then it is stored in full
    let batch =
        r#"{"status":"COMPLETED","processedRows":1,"lastMappedRow":{"z":1.0,"a":{"<":"Zoë"}}}"#;
    let failed = r#"{"status":"FAILED"}"#;
    let key = |level: &str| format!("events_log:{level}#{actor}");
    assert_eq!(entries(&mut redis, &key("bulker_batch.all")).await?, [batch, failed]);
    assert_eq!(entries(&mut redis, &key("bulker_batch.error")).await?, [failed]);
    assert_eq!(entries(&mut redis, &key("bulker_stream.all")).await?, [r#"{"status":"SUCCESS"}"#]);
    let none: bool = ask(&mut redis, &["EXISTS", &key("bulker_stream.error")]).await?;
    assert!(!none);
    Ok(())
}

#[tokio::test]
async fn what_waits_at_the_stop_is_written() -> Result<()> {
    let url = testkit::redis_url().await?;
    let (mut redis, actor) = (connect(&url).await?, actor());
    let running = Running::start(&in_redis(&url, 1000), NEVER)?;
    let key = format!("events_log:incoming.all#{actor}");
    // given that the first turn is over
    running.log.post(&actor, EventType::Incoming, Level::Info, || json!({"n": 1}));
    let mut asking = redis.clone();
    wait_until(PATIENCE, || {
        let (mut redis, key) = (asking.clone(), key.clone());
        async move { entries(&mut redis, &key).await.is_ok_and(|found| !found.is_empty()) }
    })
    .await?;
    running.log.post(&actor, EventType::Incoming, Level::Info, || json!({"n": 2}));
    assert_eq!(entries(&mut asking, &key).await?.len(), 1);
    running.stop().await?;
    assert_eq!(entries(&mut redis, &key).await?, [r#"{"n":1}"#, r#"{"n":2}"#]);
    Ok(())
}

#[tokio::test]
async fn an_event_that_would_be_dropped_is_not_encoded() -> Result<()> {
    let url = testkit::redis_url().await?;
    let (mut redis, actor) = (connect(&url).await?, actor());
    let running = Running::start(&in_redis(&url, 100), NEVER)?;
    let encoded = Cell::new(0);
    for n in 0..250 {
        running.log.post(&actor, EventType::BulkerStream, Level::Info, || {
            encoded.set(encoded.get() + 1);
            json!({ "n": n })
        });
    }
    assert_eq!(encoded.get(), 100);
    assert!(!running.log.wants(&actor, EventType::BulkerStream, Level::Info));
    assert!(
        running.log.wants(&actor, EventType::BulkerStream, Level::Error),
        "has room of its own"
    );
    assert_eq!(running.dropped("bulker_stream", "full"), 151, "the question counts, too");
    running.stop().await?;
    let stored = entries(&mut redis, &format!("events_log:bulker_stream.all#{actor}")).await?;
    let first: Vec<_> = (0..100).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    assert_eq!(stored, first, "the first ones of the period");
    Ok(())
}

#[tokio::test]
async fn a_stream_keeps_about_as_many_entries_as_it_may() -> Result<()> {
    let url = testkit::redis_url().await?;
    let (mut redis, actor) = (connect(&url).await?, actor());
    let running = Running::start(&in_redis(&url, 100), QUICKLY)?;
    let key = format!("events_log:bulker_stream.all#{actor}");
    let mut posted = 0;
    while posted < 1000 {
        let log = &running.log;
        if log.wants(&actor, EventType::BulkerStream, Level::Info) {
            log.post(&actor, EventType::BulkerStream, Level::Info, || json!({ "n": posted }));
            posted += 1;
        } else {
            tokio::time::sleep(QUICKLY).await;
        }
    }
    running.stop().await?;
    let stored = entries(&mut redis, &key).await?;
    // Redis trims by whole nodes, which have 100 entries
    assert!((100..=200).contains(&stored.len()), "{}", stored.len());
    assert_eq!(stored.last().map(String::as_str), Some(r#"{"n":999}"#));
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_no_stream_costs_its_own_entries_only() -> Result<()> {
    let url = testkit::redis_url().await?;
    let (mut redis, taken, free) = (connect(&url).await?, actor(), actor());
    let key = |actor: &str| format!("events_log:bulker_batch.all#{actor}");
    let () = ask(&mut redis, &["SET", &key(&taken), "somebody's"]).await?;
    let running = Running::start(&in_redis(&url, 100), QUICKLY)?;
    for actor in [&taken, &free] {
        running.log.post(actor, EventType::BulkerBatch, Level::Info, || json!({"n": 1}));
    }
    wait_until(PATIENCE, || async { running.dropped("bulker_batch", "refused") == 1 }).await?;
    assert_eq!(running.errors("redis error: UNKNOWN"), 1);
    running.log.post(&free, EventType::BulkerBatch, Level::Info, || json!({"n": 2}));
    running.stop().await?;
    assert_eq!(entries(&mut redis, &key(&free)).await?, [r#"{"n":1}"#, r#"{"n":2}"#]);
    Ok(())
}

#[tokio::test]
async fn what_redis_has_no_memory_for_waits_and_is_stored_once() -> Result<()> {
    let own = OwnRedis::start().await?;
    let (mut redis, actor) = (connect(own.url()).await?, actor());
    let () = ask(&mut redis, &["CONFIG", "SET", "maxmemory", "1"]).await?;
    let running = Running::start(&in_redis(own.url(), 100), QUICKLY)?;
    running.log.post(&actor, EventType::BulkerBatch, Level::Error, || json!({"n": 1}));
    wait_until(PATIENCE, || async { running.errors("redis error: UNKNOWN") > 2 }).await?;
    let () = ask(&mut redis, &["CONFIG", "SET", "maxmemory", "0"]).await?;
    running.stop().await?;
    for level in ["all", "error"] {
        let key = format!("events_log:bulker_batch.{level}#{actor}");
        assert_eq!(entries(&mut redis, &key).await?, [r#"{"n":1}"#]);
    }
    Ok(())
}

#[tokio::test]
async fn without_a_store_nothing_is_encoded_and_nothing_read() -> Result<()> {
    let running = Running::start(&config(&[]), QUICKLY)?;
    running.log.post("a", EventType::Incoming, Level::Info, || -> () { panic!("encoded") });
    assert!(!running.log.wants("a", EventType::Incoming, Level::Info));
    assert!(running.log.read(&eventslog::Query::default()).await?.records.is_empty());
    assert_eq!(running.dropped("incoming", "full"), 0);
    running.stop().await
}
