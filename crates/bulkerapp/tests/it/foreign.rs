//! Records that other programs write to our topics: whatever their headers, keys, times and sizes
//! are, no topic stops for them, and each event is in its table, waits, or is a dead letter.

use anyhow::{Context, Result, ensure};
use testkit::{Database, ForeignRecord, Kafka, Topic, wait_until};

use crate::app::{App, PATIENCE, Setup, loaded_to};

const FAST: &str = r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167, batchSize: 1000"#;

/// A table that refuses negative amounts, and its topic.
struct Shop {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    topic: Topic,
    retry: Topic,
}

impl Shop {
    async fn open(topic_settings: &[(&str, &str)], backoff: &str) -> Result<Shop> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let setup = Setup::new(&kafka, &database)
            .with_options(FAST)
            .with("BULKER_MESSAGES_RETRY_COUNT", "2")
            .with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", backoff);
        let topic = kafka.adopt(setup.topic("t"));
        let retry = kafka.adopt(setup.retry_topic());
        kafka.create_topic(topic.name(), 1, 1, topic_settings).await?;
        database.execute("create table t (id bigint, amount bigint check (amount >= 0))").await?;
        Ok(Shop { kafka, database, setup, topic, retry })
    }

    async fn write(&self, record: ForeignRecord<'_>) -> Result<i64> {
        self.kafka.produce_foreign(self.topic.name(), 0, record).await
    }

    async fn rows(&self) -> Result<String> {
        let sql = "select coalesce(string_agg(id::text, ' ' order by id), '') from t";
        self.database.value(sql).await
    }
}

/// The ids of the events that `/failed` shows.
async fn failed(app: &App, status: &str) -> Result<Vec<u64>> {
    let answer = app.ask(&format!("/failed/it?status={status}&tableName=t&details=true")).await?;
    ensure!(answer.status == 200, "{}", answer.body);
    let mut ids = Vec::new();
    for line in answer.unchunked()?.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        ids.push(line["event"]["id"].as_u64().context("an event without id")?);
    }
    ids.sort_unstable();
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_says_it_was_retried_ever_so_often_is_a_dead_letter_and_no_stop() -> Result<()>
{
    let shop = Shop::open(&[], "0").await?;
    // given refused events whose numbers of attempts cannot be counted on, and a good one
    let numbers: [&[u8]; 4] =
        [b"2147483647", b"4294967295", b"99999999999999999999", b"3000000000"];
    for (id, retries) in (1..).zip(numbers) {
        let event = format!(r#"{{"id":{id},"amount":-1}}"#);
        let (value, headers) = (Some(event.as_bytes()), [("retries", retries)]);
        shop.write(ForeignRecord { value, headers: &headers, ..ForeignRecord::default() }).await?;
    }
    let value = Some(br#"{"id":9,"amount":1}"#.as_slice());
    shop.write(ForeignRecord { value, ..ForeignRecord::default() }).await?;
    // when they are loaded
    let app = shop.setup.start().await?;
    loaded_to(&shop.database, shop.topic.name(), 5).await?;
    // then the good one is there, and the others have no attempt left
    assert_eq!(shop.rows().await?, "9");
    let is_shown = || async { failed(&app, "dead").await.is_ok_and(|dead| dead == [1, 2, 3, 4]) };
    wait_until(PATIENCE, is_shown).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_with_two_numbers_of_attempts_has_no_more_of_them_than_others() -> Result<()> {
    let shop = Shop::open(&[], "0").await?;
    // given an event whose header stands twice
    let headers: [(&str, &[u8]); 2] = [("retries", b"0"), ("retries", b"0")];
    let value = Some(br#"{"id":1,"amount":-1}"#.as_slice());
    shop.write(ForeignRecord { value, headers: &headers, ..ForeignRecord::default() }).await?;
    // when it is refused each time, then it is a dead letter after the attempts that it may have
    let app = shop.setup.start().await?;
    let is_dead = || async { failed(&app, "dead").await.is_ok_and(|dead| dead == [1]) };
    wait_until(PATIENCE, is_dead).await?;
    app.stop().await?;
    assert_eq!(shop.kafka.end_offset(shop.topic.name(), 0).await?, 3, "it returned twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_no_calendar_has_does_not_stop_a_topic() -> Result<()> {
    // given a topic that takes any time, and events with times in nanoseconds and before all times
    let any = [("message.timestamp.after.max.ms", "9223372036854775807")];
    let shop = Shop::open(&any, "0").await?;
    for (id, time) in [(1, 1_764_200_000_000_000_000), (2, i64::MAX), (3, 0)] {
        let event = format!(r#"{{"id":{id},"amount":1}}"#);
        let (value, timestamp_ms) = (Some(event.as_bytes()), Some(time));
        shop.write(ForeignRecord { value, timestamp_ms, ..ForeignRecord::default() }).await?;
    }
    // when they are loaded, then each is there
    let app = shop.setup.start().await?;
    loaded_to(&shop.database, shop.topic.name(), 3).await?;
    assert_eq!(shop.rows().await?, "1 2 3");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_can_be_none_is_no_reason_to_drop_an_event_or_to_stop() -> Result<()> {
    let shop = Shop::open(&[], "5").await?;
    let origin = |topic: &str, cluster: &str, offset: i64| {
        format!(r#"{{"cluster":"{cluster}","topic":"{topic}","partition":0,"offset":{offset}}}"#)
    };
    let topic = shop.topic.name();
    // given events, good and bad, with origins that nobody of us wrote
    for (amount, first_id, offset) in [(1, 0, 7), (-1, 10, 8)] {
        let origins = [
            origin(topic, "c", i64::MIN),
            origin(&"t".repeat(2800), "c", 1),
            origin(topic, "c", offset),
            origin("other", "c", offset),
            r#"{"cluster":"c","topic":"t","partition":0,"offset":99999999999999999999}"#.to_owned(),
            "\u{ff}".to_owned(),
        ];
        for (id, origin) in (first_id..).zip(&origins) {
            let event = format!(r#"{{"id":{id},"amount":{amount}}}"#);
            let headers = [("bulker_origin", origin.as_bytes())];
            let (value, headers) = (Some(event.as_bytes()), &headers);
            shop.write(ForeignRecord { value, headers, ..ForeignRecord::default() }).await?;
        }
    }
    // when they are loaded, then each is in its table, or waits
    let app = shop.setup.start().await?;
    loaded_to(&shop.database, topic, 12).await?;
    assert_eq!(shop.rows().await?, "0 1 2 3 4 5");
    assert_eq!(failed(&app, "retry").await?, [10, 11, 12, 13, 14, 15]);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_ahead_in_the_topic_of_its_own_event_is_none() -> Result<()> {
    let shop = Shop::open(&[], "5").await?;
    let app = shop.setup.start().await?;
    // given a topic that is loaded, and events whose origins are places of it, without its id, that
    // were not read before them
    shop.write(ForeignRecord { value: Some(br#"{"id":0}"#), ..ForeignRecord::default() }).await?;
    loaded_to(&shop.database, shop.topic.name(), 1).await?;
    let cluster = shop.database.value("select max(cluster_id) from bulker_offsets").await?;
    for (id, offset) in [(1, 1), (2, 3), (3, i64::MAX)] {
        let topic = shop.topic.name();
        let origin = format!(
            r#"{{"cluster":"{cluster}","topic":"{topic}","partition":0,"offset":{offset}}}"#
        );
        let event = format!(r#"{{"id":{id}}}"#);
        let headers = [("bulker_origin", origin.as_bytes())];
        let (value, headers) = (Some(event.as_bytes()), &headers);
        shop.write(ForeignRecord { value, headers, ..ForeignRecord::default() }).await?;
    }
    // when they are loaded, then each is there
    loaded_to(&shop.database, shop.topic.name(), 4).await?;
    assert_eq!(shop.rows().await?, "0 1 2 3");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_events_that_share_a_key_do_not_share_theirs() -> Result<()> {
    let shop = Shop::open(&[], "5").await?;
    // given refused events that are keyed by the id of their user
    let key = Some(b"5b1f7a3e-6f0a-4c57-9d5e-2f6c7b0f4a11".as_slice());
    for id in [1, 2] {
        let event = format!(r#"{{"id":{id},"amount":-1}}"#);
        let value = Some(event.as_bytes());
        shop.write(ForeignRecord { key, value, ..ForeignRecord::default() }).await?;
    }
    // when they wait in a topic that keeps one record of a key
    let app = shop.setup.start().await?;
    loaded_to(&shop.database, shop.topic.name(), 2).await?;
    app.stop().await?;
    // then it keeps both
    let copies = shop.kafka.read_all(shop.retry.name()).await?;
    assert_eq!(copies.len(), 2);
    assert_ne!(copies[0].key_text(), copies[1].key_text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_that_is_too_large_to_wait_is_a_dead_letter_and_no_stop() -> Result<()> {
    // given a topic that takes larger events than the retry topic does
    let shop = Shop::open(&[("max.message.bytes", "4000000")], "0").await?;
    let text = "x".repeat(1_500_000);
    let event = format!(r#"{{"id":1,"amount":-1,"text":"{text}"}}"#);
    let value = Some(event.as_bytes());
    shop.write(ForeignRecord { value, ..ForeignRecord::default() }).await?;
    // and one that is so for the headers that somebody added
    let header = vec![b'y'; 1_500_000];
    let headers = [("somebody", header.as_slice())];
    let value = Some(br#"{"id":2,"amount":-1}"#.as_slice());
    shop.write(ForeignRecord { value, headers: &headers, ..ForeignRecord::default() }).await?;
    let value = Some(br#"{"id":3,"amount":1}"#.as_slice());
    shop.write(ForeignRecord { value, ..ForeignRecord::default() }).await?;
    // when they are loaded, then what follows them is there
    let app = shop.setup.start().await?;
    loaded_to(&shop.database, shop.topic.name(), 3).await?;
    app.stop().await?;
    assert_eq!(shop.rows().await?, "3");
    // and the letters say where the one lies, and have the other
    let letters = shop.kafka.read_all(&shop.setup.dead_letter_topic()).await?;
    let values: Vec<serde_json::Value> = letters
        .iter()
        .map(|letter| serde_json::from_str(&letter.text()))
        .collect::<Result<_, _>>()?;
    assert_eq!(values[0]["bulker_too_large"], true, "{}", values[0]);
    assert_eq!(values[0]["origin"]["offset"], 0, "{}", values[0]);
    assert_eq!(values[1]["id"], 2);
    let dead = "select dead || ' ' || waiting from bulker_offsets where topic like '%.t.t'";
    assert_eq!(shop.database.value(dead).await?, "2 0");
    Ok(())
}
