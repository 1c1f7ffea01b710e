//! Mode `stream`: events are in their table as they come, in their order, each once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use testkit::{
    Database, Kafka, Topic,
    proxy::{Event, PostgresProxy, Then},
    wait_until,
};

use crate::app::{App, PATIENCE, Setup, assert_exactly_once, events, loaded_to};

const STREAM: &str = r#"mode: "stream", retryFrequency: 0.0167"#;
const MERGED: &str = r#"mode: "stream", deduplicate: true, primaryKey: "id""#;

struct Streaming {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    topic: Topic,
}

impl Streaming {
    async fn new(options: &str) -> Result<Streaming> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let setup = Setup::new(&kafka, &database)
            .with_options(options)
            .with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "0");
        let topic = kafka.adopt(setup.stream_topic("t"));
        kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        Ok(Streaming { kafka, database, setup, topic })
    }

    async fn produce<V: AsRef<[u8]>>(&self, values: impl IntoIterator<Item = V>) -> Result<()> {
        self.kafka.produce_all(self.topic.name(), 0, values).await
    }

    async fn loaded_to(&self, offset: i64) -> Result<()> {
        loaded_to(&self.database, self.topic.name(), offset).await
    }

    async fn count(&self) -> Result<u64> {
        self.database.count("t").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_visible_without_waiting_for_others() -> Result<()> {
    let streaming = Streaming::new(STREAM).await?;
    let app = streaming.setup.start().await?;
    for (number, event) in (1..).zip(events(0..20)) {
        assert_eq!(app.post("t", &event).await?, 200);
        let is_there = || async { streaming.count().await.is_ok_and(|count| count == number) };
        wait_until(PATIENCE, is_there).await.with_context(|| format!("event {number}"))?;
    }
    app.stop().await?;
    assert_exactly_once(&streaming.database, "t", 20).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_loaded_and_then_the_tail_followed() -> Result<()> {
    let streaming = Streaming::new(STREAM).await?;
    streaming.produce(events(0..20_000)).await?;
    let app = streaming.setup.start().await?;
    streaming.loaded_to(20_000).await?;
    streaming.produce(events(20_000..20_010)).await?;
    streaming.loaded_to(20_010).await?;
    app.stop().await?;
    assert_exactly_once(&streaming.database, "t", 20_010).await?;
    // a clean stop leaves Kafka where the row is, so that the original can go on
    let group = streaming.topic.name();
    let committed = streaming.kafka.committed(group, group, 0).await?.context("no offset")?;
    assert_eq!(committed.offset, 20_010);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_key_are_merged_in_their_order_and_leave_alone_what_they_lack() -> Result<()>
{
    let streaming = Streaming::new(MERGED).await?;
    let app = streaming.setup.start().await?;
    let updates = [
        r#"{"id":1,"a":1}"#,
        r#"{"id":1,"b":2}"#,
        r#"{"id":2,"a":1}"#,
        r#"{"id":1,"a":3}"#,
        r#"{"id":2,"b":4,"a":null}"#,
    ];
    streaming.produce(updates).await?;
    streaming.loaded_to(5).await?;
    app.stop().await?;
    let sql = "select string_agg(concat_ws(' ', id, a, b), ', ' order by id) from t";
    assert_eq!(streaming.database.value(sql).await?, "1 3 2, 2 1 4");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_event_goes_to_retry_alone_and_comes_back() -> Result<()> {
    let streaming = Streaming::new(STREAM).await?;
    streaming
        .database
        .execute("create table t (id bigint, name text constraint no_three check (id <> 3))")
        .await?;
    let retry = streaming.kafka.adopt(streaming.setup.retry_topic());
    let setup = streaming.setup.clone().with("BULKER_MESSAGES_RETRY_COUNT", "1000");
    let app = setup.start().await?;
    streaming.produce(events(0..10)).await?;
    let others = || async { streaming.count().await.is_ok_and(|count| count == 9) };
    wait_until(PATIENCE, others).await?;
    let waits = || async {
        streaming.kafka.read_all(retry.name()).await.is_ok_and(|waiting| !waiting.is_empty())
    };
    wait_until(PATIENCE, waits).await?;
    streaming.database.execute("alter table t drop constraint no_three").await?;
    let all = || async { streaming.count().await.is_ok_and(|count| count == 10) };
    wait_until(PATIENCE, all).await?;
    app.stop().await?;
    assert_exactly_once(&streaming.database, "t", 10).await
}

/// Freezes or kills a streaming bulkerapp at a moment of a transaction, while another one goes on.
async fn overtaken(event: Event) -> Result<()> {
    let streaming = Streaming::new(STREAM).await?;
    let proxy = PostgresProxy::start(streaming.database.host(), streaming.database.port()).await?;
    let first: App = streaming.setup.clone().through(&proxy.host(), proxy.port()).start().await?;
    streaming.produce(events(0..5)).await?;
    streaming.loaded_to(5).await?;
    let (freeze, frozen) = (first.service.freezer(), Arc::new(AtomicBool::new(false)));
    let seen = frozen.clone();
    proxy.on(event, move |moment| {
        if moment.copied_bytes > 0 && !seen.swap(true, Ordering::SeqCst) {
            freeze();
        }
        Then::Forward
    });
    streaming.produce(events(5..10)).await?;
    wait_until(PATIENCE, || async { frozen.load(Ordering::SeqCst) }).await?;
    let second = streaming.setup.start().await?;
    streaming.produce(events(10..15)).await?;
    streaming.loaded_to(15).await?;
    first.service.continue_process()?;
    streaming.produce(events(15..20)).await?;
    streaming.loaded_to(20).await?;
    first.stop().await?;
    second.stop().await?;
    assert_exactly_once(&streaming.database, "t", 20).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_tail_that_wakes_after_another_took_over_loads_nothing_twice() -> Result<()> {
    overtaken(Event::AfterCommitAnswer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tails_of_one_topic_load_each_event_once() -> Result<()> {
    let streaming = Streaming::new(STREAM).await?;
    let (first, second) = (streaming.setup.start().await?, streaming.setup.start().await?);
    for start in (0..40).map(|round| round * 50) {
        streaming.produce(events(start..start + 50)).await?;
    }
    streaming.loaded_to(2_000).await?;
    first.stop().await?;
    second.stop().await?;
    assert_exactly_once(&streaming.database, "t", 2_000).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_during_a_tail_is_obeyed_by_the_next_run() -> Result<()> {
    let streaming = Streaming::new(STREAM).await?;
    let app = streaming.setup.start().await?;
    streaming.produce(events(0..5)).await?;
    streaming.loaded_to(5).await?;
    app.stop().await?;
    let group = streaming.topic.name();
    streaming.kafka.commit(group, group, 0, 3, "").await?;
    let app = streaming.setup.start().await?;
    let again = || async { streaming.count().await.is_ok_and(|count| count == 7) };
    wait_until(PATIENCE, again).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_set_back_is_followed_although_the_topic_is_quiet() -> Result<()> {
    let streaming = Streaming::new(STREAM).await?;
    streaming.produce(events(0..3)).await?;
    // given a tail that follows a quiet topic
    let app = streaming.setup.start().await?;
    streaming.loaded_to(3).await?;
    // when the start is set back while the loader runs
    let set = streaming.setup.run(&["set-start", streaming.topic.name(), "1"]).await?;
    assert!(set.is_success, "{}", set.log);
    // then what lies behind it is loaded again, without a new event
    wait_until(PATIENCE, || async { streaming.count().await.is_ok_and(|count| count == 5) })
        .await?;
    app.stop().await
}
