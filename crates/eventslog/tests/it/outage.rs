//! Redis goes away and comes back; whoever posts does not notice.

use anyhow::Result;
use eventslog::{EventType, EventsLog, Level, Query};
use serde_json::json;
use testkit::{native::OwnRedis, wait_until};

use crate::running::{PATIENCE, QUICKLY, Running, actor, connect, entries, in_redis, stream};

const KIND: EventType = EventType::BulkerBatch;

fn post(log: &EventsLog, actor: &str, numbers: std::ops::Range<u32>) {
    for n in numbers {
        log.post(actor, KIND, Level::Info, || json!({ "n": n }));
    }
}

#[tokio::test]
async fn events_of_an_outage_are_stored_after_it() -> Result<()> {
    let own = OwnRedis::start().await?;
    let actor = actor();
    let key = format!("events_log:bulker_batch.all#{actor}");
    let running = Running::start(&in_redis(own.url(), 10), QUICKLY)?;
    // given a log that was written before
    post(&running.log, &actor, 0..1);
    let mut redis = connect(own.url()).await?;
    wait_until(PATIENCE, || {
        let (mut redis, key) = (redis.clone(), key.clone());
        async move { entries(&mut redis, &key).await.is_ok_and(|found| found.len() == 1) }
    })
    .await?;
    // when Redis crashes, more is posted than is kept, and Redis comes back
    own.kill9().await?;
    post(&running.log, &actor, 1..8);
    wait_until(PATIENCE, || async { running.errors("redis error: UNKNOWN") > 2 }).await?;
    post(&running.log, &actor, 8..30);
    let query = Query { streams: vec![stream("bulker_batch", &actor)], ..Query::default() };
    let error = running.log.read(&query).await.unwrap_err().to_string();
    assert!(error.starts_with("redis: "), "{error}");
    own.restart().await?;
    running.stop().await?;
    // then the first events of the outage are there, in order and once
    redis = connect(own.url()).await?;
    let expected: Vec<_> = (1..11).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    assert_eq!(entries(&mut redis, &key).await?, expected);
    Ok(())
}

#[tokio::test]
async fn a_redis_that_hangs_holds_up_readers_for_a_while_and_posting_not_at_all() -> Result<()> {
    let own = OwnRedis::start().await?;
    let actor = actor();
    let running = Running::start(&in_redis(own.url(), 10), QUICKLY)?;
    let query = Query { streams: vec![stream("bulker_batch", &actor)], ..Query::default() };
    assert!(running.log.read(&query).await?.records.is_empty());
    own.stop_process()?;
    post(&running.log, &actor, 0..100_000);
    assert_eq!(running.dropped("bulker_batch", "full"), 100_000 - 10);
    let error = running.log.read(&query).await.unwrap_err().to_string();
    assert_eq!(error, "no answer within 5s");
    wait_until(PATIENCE, || async { running.errors("redis error: ERR_TIMEOUT") >= 2 }).await?;
    own.continue_process()?;
    let is_there =
        || async { running.log.read(&query).await.is_ok_and(|all| all.records.len() >= 10) };
    wait_until(PATIENCE, is_there).await?;
    running.stop().await
}
