//! Events that the warehouse refuses: they cost themselves only, come back, and end in exactly one
//! place.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};
use testkit::{
    Database, Kafka, Record, Topic,
    proxy::{Event, PostgresProxy, Then},
    wait_until,
};

use crate::app::{App, PATIENCE, Setup, loaded_to};

const FAST: &str = r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167, batchSize: 1000"#;

/// A table that refuses negative amounts, its topic, and a bulkerapp that tries again at once.
struct Shop {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    topic: Topic,
    retry: Topic,
    dead: Topic,
}

impl Shop {
    async fn open(retry_count: u32) -> Result<Shop> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let setup = Setup::new(&kafka, &database)
            .with_options(FAST)
            .with("BULKER_MESSAGES_RETRY_COUNT", &retry_count.to_string())
            .with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "0");
        let topic = kafka.adopt(setup.topic("t"));
        let (retry, dead) =
            (kafka.adopt(setup.retry_topic()), kafka.adopt(setup.dead_letter_topic()));
        kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        database
            .execute(
                "create table t (id bigint, amount bigint constraint positive check (amount >= 0))",
            )
            .await?;
        Ok(Shop { kafka, database, setup, topic, retry, dead })
    }

    /// Events `0..count`; each tenth has a negative amount.
    async fn order(&self, count: u64) -> Result<()> {
        let orders = (0..count).map(|id| {
            let amount = if id % 10 == 3 { "-1" } else { "5" };
            format!(r#"{{"id":{id},"amount":{amount}}}"#)
        });
        self.kafka.produce_all(self.topic.name(), 0, orders).await
    }

    async fn start(&self) -> Result<App> {
        self.setup.start().await
    }

    async fn repair(&self) -> Result<()> {
        self.database.execute("alter table t drop constraint positive").await
    }

    /// `received = loaded + merged + waiting + dead`, as the offsets row counts them.
    async fn tally(&self) -> Result<String> {
        let sql = format!(
            "select received || ' = ' || loaded || ' + ' || merged || ' + ' || waiting || ' + ' || dead \
             from bulker_offsets where topic = '{}'",
            self.topic.name()
        );
        self.database.value(&sql).await
    }

    async fn wait_for_tally(&self, wanted: &str) -> Result<()> {
        let reached =
            wait_until(PATIENCE, || async { self.tally().await.is_ok_and(|t| t == wanted) }).await;
        let found = self.tally().await.unwrap_or_default();
        reached.with_context(|| format!("counters are {found}, not {wanted}"))
    }

    async fn rows(&self) -> Result<String> {
        let sql = "select count(*) || ' rows, ' || count(distinct id) || ' ids' from t";
        self.database.value(sql).await
    }

    async fn dead_letters(&self) -> Result<Vec<Record>> {
        self.kafka.read_all(self.dead.name()).await
    }

    /// The events that `/failed` shows.
    async fn failed(&self, app: &App, status: &str) -> Result<Vec<String>> {
        let answer = app.ask(&format!("/failed/it?status={status}&tableName=t")).await?;
        ensure!(answer.status == 200, "{}", answer.body);
        let mut lines: Vec<_> = answer.unchunked()?.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    }

    async fn dead_origins(&self) -> Result<u64> {
        let sql = "select count(*) from bulker_origins where state = 'dead'";
        Ok(self.database.value(sql).await?.parse()?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_waits_with_its_reason_and_the_others_are_loaded() -> Result<()> {
    // given events of which every tenth breaks a constraint, and a pause before they are tried
    // again
    let mut shop = Shop::open(5).await?;
    shop.setup = shop.setup.with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "5");
    shop.order(100).await?;
    // when they are loaded
    let app = shop.start().await?;
    shop.wait_for_tally("100 = 90 + 0 + 10 + 0").await?;
    assert_eq!(shop.failed(&app, "retry").await?.len(), 10);
    let first = &shop.failed(&app, "retry&details=true").await?[0];
    let first: serde_json::Value = serde_json::from_str(first)?;
    assert!(first["reason"].to_string().contains("positive"), "{first}");
    assert!(first["retryAt"].as_str() > first["failedAt"].as_str(), "{first}");
    assert_eq!(first["event"]["amount"], -1);
    app.stop().await?;
    // then the others are there, and each refused one waits, as it was, with all that is known
    assert_eq!(shop.rows().await?, "90 rows, 90 ids");
    let waiting = shop.kafka.read_all(shop.retry.name()).await?;
    ensure!(waiting.len() == 10, "{} wait", waiting.len());
    let original = shop.kafka.read_all(shop.topic.name()).await?;
    for (record, number) in waiting.iter().zip((3..).step_by(10)) {
        let first: &Record = &original[number];
        assert_eq!(record.value, first.value);
        assert_eq!(record.header("original_topic").as_deref(), Some(shop.topic.name()));
        assert_eq!(record.header("retries").as_deref(), Some("0"));
        let error = record.header("error").context("no reason")?;
        assert!(error.contains("positive"), "{error}");
        let at: jiff::Timestamp = record.header("retry_time").context("no time")?.parse()?;
        let pause = at.as_millisecond() - record.timestamp.context("no timestamp")?;
        assert!((290_000..=300_000).contains(&pause), "{pause} ms");
        let origin: serde_json::Value =
            serde_json::from_str(&record.header("bulker_origin").context("no origin")?)?;
        assert_eq!(origin["offset"], number);
        assert_eq!(origin["topic"], shop.topic.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_before_each_return_may_be_set_in_seconds() -> Result<()> {
    // given a pause of 20 s, beside a base that means none
    let mut shop = Shop::open(5).await?;
    shop.setup = shop.setup.with("BULKER_MESSAGES_RETRY_PAUSE_SEC", "20");
    shop.order(20).await?;
    // when events are refused
    let app = shop.start().await?;
    shop.wait_for_tally("20 = 18 + 0 + 2 + 0").await?;
    app.stop().await?;
    // then they are due after it
    for record in shop.kafka.read_all(shop.retry.name()).await? {
        let at: jiff::Timestamp = record.header("retry_time").context("no time")?.parse()?;
        let pause = at.as_millisecond() - record.timestamp.context("no timestamp")?;
        assert!((10_000..=20_000).contains(&pause), "{pause} ms");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_loaded_once_after_the_table_was_repaired() -> Result<()> {
    let shop = Shop::open(1_000).await?;
    shop.order(100).await?;
    let app = shop.start().await?;
    shop.wait_for_tally("100 = 90 + 0 + 10 + 0").await?;
    shop.repair().await?;
    shop.wait_for_tally("100 = 100 + 0 + 0 + 0").await?;
    app.stop().await?;
    assert_eq!(shop.rows().await?, "100 rows, 100 ids");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_attempt_an_event_is_a_dead_letter_once() -> Result<()> {
    let shop = Shop::open(2).await?;
    shop.order(100).await?;
    let app = shop.start().await?;
    shop.wait_for_tally("100 = 90 + 0 + 0 + 10").await?;
    // each is shown once, although it was in the retry topic for each attempt
    let failed = shop.failed(&app, "dead").await?;
    assert_eq!(failed.len(), 10, "{failed:?}");
    assert_eq!(failed[0], r#"{"id":13,"amount":-1}"#);
    assert!(shop.failed(&app, "retry").await?.is_empty());
    app.stop().await?;
    let dead = shop.dead_letters().await?;
    let origins: std::collections::BTreeSet<_> =
        dead.iter().map(|record| record.header("bulker_origin")).collect();
    assert_eq!((dead.len(), origins.len()), (10, 10));
    for record in &dead {
        assert_eq!(record.header("retries").as_deref(), Some("2"));
        assert_eq!(record.header("original_topic").as_deref(), Some(shop.topic.name()));
    }
    assert_eq!(shop.dead_origins().await?, 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_attempts_the_first_refusal_is_the_last() -> Result<()> {
    let shop = Shop::open(0).await?;
    shop.order(20).await?;
    let app = shop.start().await?;
    shop.wait_for_tally("20 = 18 + 0 + 0 + 2").await?;
    app.stop().await?;
    assert_eq!(shop.dead_letters().await?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_nobody_can_parse_costs_itself() -> Result<()> {
    let shop = Shop::open(1).await?;
    let records = ["not json", "null", "", r#"{"id":1}"#, r#"[{"id":2}]"#, r#"{"id":3}"#];
    shop.kafka.produce_all(shop.topic.name(), 0, records).await?;
    let app = shop.start().await?;
    shop.wait_for_tally("6 = 2 + 0 + 0 + 4").await?;
    app.stop().await?;
    assert_eq!(shop.rows().await?, "2 rows, 2 ids");
    let mut dead: Vec<_> = shop.dead_letters().await?.iter().map(Record::text).collect();
    dead.sort();
    assert_eq!(dead, ["", r#"[{"id":2}]"#, "not json", "null"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_asks_for_a_column_nobody_can_make_costs_itself() -> Result<()> {
    for mode in ["batch", "stream"] {
        let mut shop = Shop::open(0).await?;
        shop.setup = shop.setup.with_options(&FAST.replace("batch\"", &format!("{mode}\"")));
        if mode == "stream" {
            shop.topic = shop.kafka.adopt(shop.setup.stream_topic("t"));
            shop.kafka.create_topic(shop.topic.name(), 1, 1, &[]).await?;
        }
        let spoilt = r#"{"id":57,"amount":1,"x":"y","__sql_type_x":"nosuchtype"}"#;
        let orders = (0..100).map(|id| match id {
            57 => spoilt.to_owned(),
            id => format!(r#"{{"id":{id},"amount":1}}"#),
        });
        shop.kafka.produce_all(shop.topic.name(), 0, orders).await?;
        let app = shop.start().await?;
        shop.wait_for_tally("100 = 99 + 0 + 0 + 1").await.context(mode)?;
        app.stop().await?;
        assert_eq!(shop.rows().await?, "99 rows, 99 ids");
        let dead = shop.dead_letters().await?;
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].text(), spoilt);
        let reason = dead[0].header("error").context("no reason")?;
        assert!(reason.contains("type \"nosuchtype\" does not exist"), "{reason}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_something_impossible_comes_back_and_keeps_no_other_event_waiting()
-> Result<()> {
    let options = r#"{"namespace":"pg_mine"}"#;
    let hinted = r#"{"id":1,"amount":1,"x":"y","__sql_type_x":"nosuchtype"}"#;
    for (event, header) in [(hinted, None), (r#"{"id":1,"amount":1}"#, Some(options))] {
        // given an event that asks for a column, or for a schema, that cannot be made
        let shop = Shop::open(600).await?;
        let headers: Vec<_> =
            header.map(|options| ("stream_options", options)).into_iter().collect();
        shop.kafka.produce(shop.topic.name(), 0, "1", event, &headers).await?;
        let app = shop.start().await?;
        // when it was refused again
        let returns = "select coalesce(max(refusals), 0) from bulker_origins";
        let returned = async || {
            let refusals: Result<String> = shop.database.value(returns).await;
            refusals.is_ok_and(|refusals| refusals.parse().is_ok_and(|count: u32| count >= 2))
        };
        wait_until(PATIENCE, returned).await.context("it does not come back")?;
        // then events behind it are loaded
        let others = [2, 3].map(|id| format!(r#"{{"id":{id},"amount":1}}"#));
        shop.kafka.produce_all(shop.topic.name(), 0, others.into_iter()).await?;
        shop.wait_for_tally("3 = 2 + 0 + 1 + 0").await?;
        assert_eq!(shop.rows().await?, "2 rows, 2 ids");
        app.stop().await?;
    }
    Ok(())
}

/// A loader that is killed at this moment of the load that refuses ten events; the table is
/// repaired before it goes on.
async fn killed_at(event: Event, retry_count: u32) -> Result<Shop> {
    let shop = Shop::open(retry_count).await?;
    shop.order(100).await?;
    let proxy = PostgresProxy::start(shop.database.host(), shop.database.port()).await?;
    let mut first = shop.setup.clone().through(&proxy.host(), proxy.port()).spawn()?;
    let (kill, killed) = (first.service.killer(), Arc::new(AtomicBool::new(false)));
    let seen = killed.clone();
    proxy.on(event, move |moment| {
        if moment.copied_bytes == 0 || seen.swap(true, Ordering::SeqCst) {
            return Then::Forward;
        }
        kill();
        if event == Event::AfterCommitAnswer { Then::Forward } else { Then::Cut }
    });
    first.service.wait(PATIENCE).await?;
    assert!(killed.load(Ordering::SeqCst), "the hook ended it, and not something else");
    shop.repair().await?;
    Ok(shop)
}

/// Refused events are in Kafka, the transaction that refused them is not committed.
async fn killed_before_commit(retry_count: u32) -> Result<Shop> {
    killed_at(Event::BeforeCommitForwarded, retry_count).await
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_and_killed_right_after_commit_an_event_comes_back_once() -> Result<()> {
    // given refusals that are committed, and a loader that never heard so
    let shop = killed_at(Event::AfterCommitAnswer, 5).await?;
    assert_eq!(shop.tally().await?, "100 = 90 + 0 + 10 + 0");
    // when the next one brings them back
    let app = shop.start().await?;
    shop.wait_for_tally("100 = 100 + 0 + 0 + 0").await?;
    // then each is in the table once
    app.stop().await?;
    assert_eq!(shop.rows().await?, "100 rows, 100 ids");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_then_killed_then_accepted_an_event_is_there_once() -> Result<()> {
    let shop = killed_before_commit(5).await?;
    let copies = shop.kafka.read_all(shop.retry.name()).await?.len();
    assert_eq!(copies, 10, "copies whose refusal never committed");
    let app = shop.start().await?;
    // the copies come back, and nothing is made of them
    loaded_to(&shop.database, shop.topic.name(), 110).await?;
    app.stop().await?;
    assert_eq!(shop.tally().await?, "100 = 100 + 0 + 0 + 0");
    assert_eq!(shop.rows().await?, "100 rows, 100 ids");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_on_the_last_attempt_and_accepted_it_is_no_dead_letter() -> Result<()> {
    let shop = killed_before_commit(0).await?;
    assert_eq!(shop.dead_letters().await?.len(), 10, "copies whose refusal never committed");
    let app = shop.start().await?;
    shop.wait_for_tally("100 = 100 + 0 + 0 + 0").await?;
    assert!(shop.failed(&app, "dead").await?.is_empty(), "none of the copies counts");
    app.stop().await?;
    assert_eq!(shop.rows().await?, "100 rows, 100 ids");
    assert_eq!(shop.dead_origins().await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_the_original_left_is_loaded_once_even_if_it_is_moved_twice() -> Result<()> {
    let shop = Shop::open(5).await?;
    shop.kafka.create_topic(shop.retry.name(), 1, 1, &[]).await?;
    let headers = [
        ("metrics_meta", ""),
        ("original_topic", shop.topic.name()),
        ("retries", "1"),
        ("retry_time", "2020-01-01T00:00:00.000000Z"),
        ("error", "gone"),
    ];
    shop.kafka.produce(shop.retry.name(), 0, "k", r#"{"id":7,"amount":1}"#, &headers).await?;
    let app = shop.start().await?;
    shop.wait_for_tally("1 = 1 + 0 + 0 + 0").await?;
    app.stop().await?;
    // given a mover that crashed before it told Kafka
    shop.kafka.commit(shop.retry.name(), shop.retry.name(), 0, 0, "").await?;
    let app = shop.start().await?;
    loaded_to(&shop.database, shop.topic.name(), 2).await?;
    app.stop().await?;
    assert_eq!(shop.rows().await?, "1 rows, 1 ids");
    let moved = shop.kafka.read_all(shop.topic.name()).await?;
    assert_eq!(moved.len(), 2);
    assert_eq!(moved[0].header("retries").as_deref(), Some("2"));
    assert_eq!(moved[0].key_text(), "k");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_origin_cannot_be_read_is_loaded_as_a_new_one() -> Result<()> {
    let shop = Shop::open(5).await?;
    // given events of another writer, with an origin of another form
    for (id, origin) in ["", "x", "{}", r#"{"partition":0}"#].iter().enumerate() {
        let event = format!(r#"{{"id":{id},"amount":1}}"#);
        let headers = [("bulker_origin", *origin)];
        shop.kafka.produce(shop.topic.name(), 0, "k", event, &headers).await?;
    }
    // when they are loaded, then each is there once, and no state tells of them
    let app = shop.start().await?;
    loaded_to(&shop.database, shop.topic.name(), 4).await?;
    app.stop().await?;
    assert_eq!(shop.rows().await?, "4 rows, 4 ids");
    assert_eq!(shop.tally().await?, "4 = 4 + 0 + 0 + 0");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_does_not_wait_behind_what_is_not() -> Result<()> {
    let shop = Shop::open(5).await?;
    shop.kafka.create_topic(shop.retry.name(), 1, 1, &[]).await?;
    for (id, due) in [(1, "2100-01-01T00:00:00Z"), (2, "2020-01-01T00:00:00Z"), (3, "soon")] {
        let headers =
            [("original_topic", shop.topic.name()), ("retries", "0"), ("retry_time", due)];
        let event = format!(r#"{{"id":{id},"amount":1}}"#);
        shop.kafka.produce(shop.retry.name(), 0, "k", event, &headers).await?;
    }
    let app = shop.start().await?;
    shop.wait_for_tally("2 = 2 + 0 + 0 + 0").await?;
    let group = shop.retry.name();
    let still_needed = shop.kafka.committed(group, group, 0).await?.map(|c| c.offset);
    assert!(still_needed.is_none_or(|offset| offset == 0), "{still_needed:?}");
    // a clean stop leaves one offset that says all: the waiting event lies behind it
    app.stop().await?;
    let all = shop.kafka.read_all(group).await?;
    let committed = shop.kafka.committed(group, group, 0).await?.context("nothing committed")?;
    let left: Vec<_> = all.iter().filter(|record| record.offset >= committed.offset).collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].text(), r#"{"id":1,"amount":1}"#);
    assert_eq!(left[0].header("retry_time").as_deref(), Some("2100-01-01T00:00:00Z"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_back_is_a_dead_letter_and_not_lost() -> Result<()> {
    let shop = Shop::open(5).await?;
    shop.kafka.create_topic(shop.retry.name(), 1, 1, &[]).await?;
    let gone = format!("{}in.id.it.m.batch.t.gone", shop.setup.prefix);
    let cases: [&[(&str, &str)]; 3] = [
        &[("retries", "0")],
        &[("original_topic", shop.topic.name()), ("retries", "many")],
        &[("original_topic", &gone), ("retries", "0")],
    ];
    for headers in cases {
        shop.kafka.produce(shop.retry.name(), 0, "k", r#"{"id":1}"#, headers).await?;
    }
    let app = shop.start().await?;
    let all_dead = || async { shop.dead_letters().await.is_ok_and(|dead| dead.len() == 3) };
    wait_until(PATIENCE, all_dead).await?;
    app.stop().await?;
    let group = shop.retry.name();
    let committed = shop.kafka.committed(group, group, 0).await?.context("nothing committed")?;
    assert_eq!(committed.offset, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_topic_that_all_destinations_share_is_served_too() -> Result<()> {
    let shop = Shop::open(5).await?;
    let shared = shop.kafka.adopt(shop.setup.shared_retry_topic());
    shop.kafka.create_topic(shared.name(), 1, 1, &[]).await?;
    let headers = [("original_topic", shop.topic.name()), ("retries", "0")];
    shop.kafka.produce(shared.name(), 0, "k", r#"{"id":1,"amount":1}"#, &headers).await?;
    let setup = shop.setup.clone().with("BULKER_BATCH_RUNNER_DEFAULT_RETRY_PERIOD_SEC", "1");
    let app = setup.start().await?;
    shop.wait_for_tally("1 = 1 + 0 + 0 + 0").await?;
    app.stop().await
}
