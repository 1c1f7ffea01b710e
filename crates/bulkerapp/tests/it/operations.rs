//! What operators do: counting, pausing, setting a start, and looking before a switch.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::{Database, Kafka, Topic, wait_until};

use crate::app::{App, DESTINATION, PATIENCE, Setup, assert_exactly_once, events, loaded_to};

/// A table's topic that loads at once.
struct Shop {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    topic: Topic,
    retry: Topic,
    pauses: Topic,
}

impl Shop {
    async fn open() -> Result<Shop> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let options =
            r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167, batchSize: 1000"#;
        let setup = Setup::new(&kafka, &database).with_options(options);
        let topic = kafka.adopt(setup.topic("t"));
        let retry = kafka.adopt(setup.retry_topic());
        let pauses = kafka.adopt(format!("{}bulker-pauses", setup.prefix));
        kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        Ok(Shop { kafka, database, setup, topic, retry, pauses })
    }

    async fn produce(&self, numbers: std::ops::Range<u64>) -> Result<()> {
        self.kafka.produce_all(self.topic.name(), 0, events(numbers)).await
    }

    async fn loaded_to(&self, offset: i64) -> Result<()> {
        loaded_to(&self.database, self.topic.name(), offset).await
    }

    /// The state of the group, as Kafka's own tools would set it.
    async fn commit(&self, offset: i64) -> Result<()> {
        self.kafka.commit(self.topic.name(), self.topic.name(), 0, offset, "").await
    }

    async fn next_offset(&self) -> Result<String> {
        let topic = self.topic.name();
        let sql = format!("select next_offset from bulker_offsets where topic = '{topic}'");
        self.database.value(&sql).await
    }
}

/// What `/stats` says of the one table.
async fn stats(app: &App) -> Result<Value> {
    let answer = app.ask(&format!("/stats/{DESTINATION}")).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(serde_json::from_str::<Value>(&answer.body)?["destinations"][0].take())
}

async fn wait_for_stats(app: &App, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let is_so = || async { stats(app).await.is_ok_and(|found| wanted(&found)) };
    let reached = wait_until(PATIENCE, is_so).await;
    let found = stats(app).await?;
    reached.with_context(|| format!("stats are {found}"))?;
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_survive_a_kill_and_fit_when_all_is_quiet() -> Result<()> {
    // given events of which every tenth is refused for good after one more try, and equal keys in a
    // batch
    let mut shop = Shop::open().await?;
    shop.setup = shop
        .setup
        .with("BULKER_MESSAGES_RETRY_COUNT", "1")
        .with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "0");
    let dead = shop.kafka.adopt(shop.setup.dead_letter_topic());
    let table = "create table t (id bigint, amount bigint check (amount >= 0))";
    shop.database.execute(table).await?;
    let order =
        |id: u64| format!(r#"{{"id":{id},"amount":{}}}"#, if id % 10 == 3 { -1 } else { 5 });
    shop.kafka.produce_all(shop.topic.name(), 0, (0..50).map(order)).await?;
    // when they are loaded by an instance that is killed, and by the next one
    let mut app = shop.setup.start().await?;
    shop.loaded_to(50).await?;
    app.service.kill9().await?;
    shop.kafka.produce_all(shop.topic.name(), 0, (50..100).map(order)).await?;
    let app = shop.setup.start().await?;
    let found = wait_for_stats(&app, |found| {
        let table = &found["tables"][0];
        table["dead"] == 10 && table["waitingForRetry"] == 0 && table["backlog"] == 0
    })
    .await?;
    // then each is counted once, and the metrics say the same
    let table = &found["tables"][0];
    assert_eq!((&table["tableName"], &table["received"]), (&"t".into(), &100.into()), "{found}");
    assert_eq!((&table["loaded"], &table["merged"]), (&90.into(), &0.into()), "{found}");
    assert_eq!(shop.database.count("t").await?, 90);
    assert!(table["lastEventAt"].is_string() && table["updatedAt"].is_string(), "{found}");
    let metrics = app.get("/metrics").await?;
    for (outcome, count) in [("received", 100), ("loaded", 90), ("dead", 10), ("waiting", 0)] {
        let line = format!(
            r#"bulkerapp_table_events{{destinationId="it",outcome="{outcome}",tableName="t"}} {count}"#
        );
        assert!(metrics.contains(&line), "{line}");
    }
    assert!(metrics.contains(r#"bulkerapp_destination_answers{destinationId="it"} 1"#));
    app.stop().await?;
    drop(dead);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_name_what_waits_and_a_destination_that_does_not_answer() -> Result<()> {
    let shop = Shop::open().await?;
    shop.produce(0..7).await?;
    shop.commit(2).await?; // the original loaded two
    let mut setup = shop.setup.clone();
    setup.password = "wrong".to_owned();
    let app = setup.start().await?;
    let silent = wait_for_stats(&app, |found| found["problem"].is_string()).await?;
    let problem = silent["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("password"), "{problem}");
    assert_eq!(app.ask("/stats/other").await?.status, 404);
    assert_eq!(app.request("GET", "/stats", &[], b"").await?.status, 401);
    assert_eq!(app.ask("/stats?limit=0").await?.status, 400);
    app.stop().await?;
    // what was never loaded here waits behind what the original loaded
    let app = shop.setup.clone().with("BULKER_ENABLE_CONSUMERS", "false").start().await?;
    let waiting = wait_for_stats(&app, |found| found["tables"][0]["backlog"] == 5).await?;
    assert_eq!(waiting["hasOffsets"], false);
    assert_eq!(waiting["tables"][0]["received"], 0);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_destination_takes_events_and_loads_none_also_after_a_restart() -> Result<()> {
    // given a destination that loads, and another instance
    let shop = Shop::open().await?;
    let (app, other) = (shop.setup.start().await?, shop.setup.start().await?);
    shop.produce(0..5).await?;
    shop.loaded_to(5).await?;
    // when it is paused at one of them
    let paused = app.order("/destinations/it/pause").await?;
    assert_eq!(paused.status, 200, "{}", paused.body);
    assert!(paused.body.contains(r#""paused":true"#), "{}", paused.body);
    // then both say so, events are taken, and none is loaded
    for app in [&app, &other] {
        let is_held = || async {
            app.health().await.is_ok_and(|details| {
                details["pausedDestinations"]["it"].is_string()
                    && details["heldTopics"][shop.topic.name()] == "paused"
            })
        };
        wait_until(PATIENCE, is_held).await.context("held")?;
    }
    assert_eq!(app.post("t", r#"{"id":5,"name":"event 5"}"#).await?, 200);
    let metrics = app.get("/metrics").await?;
    assert!(metrics.contains(r#"bulkerapp_paused_destinations{destinationId="it"} 1"#));
    let bulk = app.order("/bulk/it?tableName=t&mode=batch").await?;
    assert_eq!((bulk.status, bulk.body.contains("paused")), (503, true), "{}", bulk.body);
    // also not by an instance that starts, however due the topic is
    other.stop().await?;
    app.stop().await?;
    // reading all pauses takes its time, and loading waits for it
    let padding = std::iter::repeat_n("no pause", 100_000);
    shop.kafka.produce_all(shop.pauses.name(), 0, padding).await?;
    let app = shop.setup.start().await?;
    let is_held = || async {
        app.health().await.is_ok_and(|details| details["heldTopics"][shop.topic.name()] == "paused")
    };
    wait_until(PATIENCE, is_held).await.context("held after a restart")?;
    assert_eq!(shop.next_offset().await?, "5");
    assert!(stats(&app).await?["pausedSince"].is_string());
    // when it is resumed, all is loaded
    let resumed = app.order("/destinations/it/resume").await?;
    assert_eq!(resumed.status, 200, "{}", resumed.body);
    shop.loaded_to(6).await?;
    app.stop().await?;
    assert_exactly_once(&shop.database, "t", 6).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_paused_in_the_middle_and_loses_and_doubles_nothing() -> Result<()> {
    let shop = Shop::open().await?;
    let setup = shop.setup.clone().with_options(r#"mode: "stream""#);
    let topic = shop.kafka.adopt(setup.stream_topic("s"));
    shop.kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    let app = setup.start().await?;
    shop.kafka.produce_all(topic.name(), 0, events(0..5)).await?;
    loaded_to(&shop.database, topic.name(), 5).await?;
    assert_eq!(app.order("/destinations/it/pause").await?.status, 200);
    let is_held = || async {
        app.health().await.is_ok_and(|details| details["heldTopics"][topic.name()] == "paused")
    };
    wait_until(PATIENCE, is_held).await.context("held")?;
    shop.kafka.produce_all(topic.name(), 0, events(5..9)).await?;
    assert_eq!(shop.database.count("s").await?, 5);
    assert_eq!(app.order("/destinations/it/resume").await?.status, 200);
    loaded_to(&shop.database, topic.name(), 9).await?;
    assert_eq!(app.order("/destinations/nobody/pause").await?.status, 404);
    assert_eq!(app.order("/destinations/it/resume").await?.status, 200, "it need not be paused");
    app.stop().await?;
    assert_exactly_once(&shop.database, "s", 9).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_pause() -> Result<()> {
    let shop = Shop::open().await?;
    let app = shop.setup.clone().with("BULKER_RAW_ADMIN_AUTH_TOKENS", "boss").start().await?;
    assert_eq!(app.order("/destinations/it/pause").await?.status, 403);
    assert_eq!(app.request("POST", "/destinations/it/pause", &[], b"").await?.status, 401);
    let boss = [("authorization", "Bearer boss")];
    assert_eq!(app.request("POST", "/destinations/it/resume", &boss, b"").await?.status, 200);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_set_while_the_topic_is_loaded() -> Result<()> {
    // given a loader at work
    let shop = Shop::open().await?;
    let app = shop.setup.start().await?;
    shop.produce(0..5).await?;
    shop.loaded_to(5).await?;
    // when the start is set back, then what lies behind it is loaded again, once
    let set = shop.setup.run(&["set-start", shop.topic.name(), "3"]).await?;
    assert!(set.is_success, "{} {}", set.output, set.log);
    assert_eq!(set.output, format!("{}: 5 -> 3\n", shop.topic.name()));
    let rows = || async { shop.database.count("t").await.is_ok_and(|count| count == 7) };
    wait_until(PATIENCE, rows).await.context("two rows again")?;
    shop.loaded_to(5).await?;
    app.stop().await?;
    // and forward, with nobody loading: what lies before it is skipped
    shop.produce(5..9).await?;
    let set = shop.setup.run(&["set-start", shop.topic.name(), "latest"]).await?;
    assert_eq!(set.output, format!("{}: 5 -> 9\n", shop.topic.name()), "{}", set.log);
    shop.produce(9..10).await?;
    let app = shop.setup.start().await?;
    shop.loaded_to(10).await?;
    app.stop().await?;
    let ids = "select string_agg(id::text, ' ' order by id) from t";
    assert_eq!(shop.database.value(ids).await?, "0 1 2 3 3 4 4 9");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_wins_over_a_decision_that_waits_in_the_group() -> Result<()> {
    // given a topic that the original left at 4, and that we never loaded
    let shop = Shop::open().await?;
    shop.produce(0..8).await?;
    shop.commit(4).await?;
    let set = shop.setup.run(&["set-start", shop.topic.name(), "6"]).await?;
    assert!(set.is_success, "{} {}", set.output, set.log);
    assert!(set.output.contains("had set the consumer group to 4"), "{}", set.output);
    let app = shop.setup.start().await?;
    shop.loaded_to(8).await?;
    app.stop().await?;
    let ids = "select string_agg(id::text, ' ' order by id) from t";
    assert_eq!(shop.database.value(ids).await?, "6 7");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_be_is_refused() -> Result<()> {
    let shop = Shop::open().await?;
    shop.produce(0..3).await?;
    let topic = shop.topic.name();
    let gone = format!("{topic}x");
    let cases = [
        (vec!["set-start", topic, "4"], "it has 0 to 3"),
        (vec!["set-start", &gone, "1"], "has no topic"),
        (vec!["set-start", "elsewhere", "1"], "no topic of a table"),
        (vec!["set-start", topic], "usage:"),
    ];
    for (words, expected) in cases {
        let set = shop.setup.run(&words).await?;
        assert!(!set.is_success && set.log.contains(expected), "{words:?}: {}", set.log);
    }
    let member = shop.kafka.join(topic, topic).await?;
    let set = shop.setup.run(&["set-start", topic, "1"]).await?;
    assert!(!set.is_success && set.log.contains("1 live members"), "{}", set.log);
    drop(member);
    Ok(())
}

/// The block of the operations guide that makes our two tables.
fn sql_of_the_guide() -> Result<&'static str> {
    let guide = include_str!("../../../../docs/operations.md");
    let mut blocks = guide.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.find(|sql| sql.contains("bulker_offsets")).context("no such block")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_the_operations_guide_are_enough_for_exactly_once() -> Result<()> {
    let shop = Shop::open().await?;
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    let sql = format!(
        "create role {role} login password 'x'; revoke create on schema public from public; \
         create table t (id bigint, name text); grant select, insert on t to {role}; {}",
        sql_of_the_guide()?.replace("to loader", &format!("to {role}"))
    );
    shop.database.execute(&sql).await?;
    let setup = Setup { user: role.clone(), password: "x".to_owned(), ..shop.setup.clone() };
    let fine = setup.run(&["preflight"]).await?;
    shop.produce(0..5).await?;
    let app = setup.start().await?;
    shop.loaded_to(5).await?;
    let metrics = app.get("/metrics").await?;
    app.stop().await?;
    shop.database.execute(&format!("drop owned by {role}; drop role {role}")).await?;
    assert!(fine.is_success, "{}{}", fine.output, fine.log);
    assert!(metrics.contains(r#"bulkerapp_exactly_once{destinationId="it"} 1"#), "{metrics}");
    assert_exactly_once(&shop.database, "t", 5).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pre_flight_check_tells_whether_we_may_take_over() -> Result<()> {
    let shop = Shop::open().await?;
    shop.produce(0..3).await?;
    shop.commit(2).await?;
    let fine = shop.setup.run(&["preflight"]).await?;
    assert!(fine.is_success, "{}{}", fine.output, fine.log);
    assert!(fine.output.ends_with("ready to switch\n"), "{}", fine.output);
    assert!(!fine.output.contains("FAIL"), "{}", fine.output);
    // the original still runs
    let member = shop.kafka.join(shop.topic.name(), shop.topic.name()).await?;
    let busy = shop.setup.run(&["preflight"]).await?;
    assert!(!busy.is_success);
    let line = format!("{} (1 members)", shop.topic.name());
    assert!(busy.output.contains("FAIL  no live group members"), "{}", busy.output);
    assert!(busy.output.contains(&line), "{}", busy.output);
    drop(member);
    // a database that lets nobody in, and one where nothing can be made
    let mut setup = shop.setup.clone();
    setup.password = "wrong".to_owned();
    let locked = setup.run(&["preflight"]).await?;
    assert!(!locked.is_success && locked.output.contains("FAIL  destination it: "));
    assert!(locked.output.contains("password"), "{}", locked.output);
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    let grants = format!(
        "create role {role} login password 'x'; revoke create on schema public from public"
    );
    shop.database.execute(&grants).await?;
    let setup = Setup { user: role.clone(), password: "x".to_owned(), ..shop.setup.clone() };
    let poor = setup.run(&["preflight"]).await?;
    shop.database.execute(&format!("drop owned by {role}; drop role {role}")).await?;
    assert!(!poor.is_success);
    assert!(poor.output.contains("grant usage, create on schema public"), "{}", poor.output);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pre_flight_check_tells_whether_the_original_may_take_over() -> Result<()> {
    // given a topic that an instance loads, which is killed
    let mut shop = Shop::open().await?;
    let back = ["preflight", "--back"];
    shop.produce(0..3).await?;
    let mut app = shop.setup.start().await?;
    shop.loaded_to(3).await?;
    app.service.kill9().await?;
    shop.commit(1).await?; // as far as Kafka was told
    let behind = shop.setup.run(&back).await?;
    assert!(!behind.is_success);
    assert!(behind.output.contains("(row 3, group 1)"), "{}", behind.output);
    // when one is started and stopped cleanly, all is handed over
    let set = shop.setup.run(&["set-start", shop.topic.name(), "3"]).await?;
    assert!(set.is_success, "{}", set.log);
    let app = shop.setup.start().await?;
    app.stop().await?;
    let fine = shop.setup.run(&back).await?;
    assert!(fine.is_success, "{}{}", fine.output, fine.log);
    // a retry topic with an event that waits, and one that was moved behind it
    shop.kafka.create_topic(shop.retry.name(), 1, 1, &[]).await?;
    for (id, due) in [(8, "2100-01-01T00:00:00Z"), (9, "2020-01-01T00:00:00Z")] {
        let headers =
            [("original_topic", shop.topic.name()), ("retries", "0"), ("retry_time", due)];
        let event = format!(r#"{{"id":{id},"name":"x"}}"#);
        shop.kafka.produce(shop.retry.name(), 0, "k", event, &headers).await?;
    }
    shop.setup = shop.setup.with("BULKER_BATCH_RUNNER_DEFAULT_RETRY_PERIOD_SEC", "1");
    let mut app = shop.setup.start().await?;
    shop.loaded_to(4).await?;
    let moved = || async {
        let group = shop.retry.name();
        let committed = shop.kafka.committed(group, group, 0).await;
        committed.is_ok_and(|c| c.is_some_and(|c| c.metadata.contains("out-of-order")))
    };
    wait_until(PATIENCE, moved).await.context("the mark")?;
    app.service.kill9().await?;
    let gaps = shop.setup.run(&back).await?;
    assert!(!gaps.is_success);
    assert!(gaps.output.contains("FAIL  retries in order"), "{}", gaps.output);
    let app = shop.setup.start().await?;
    let known = || async {
        let metrics = app.get("/metrics").await.unwrap_or_default();
        metrics.lines().any(|line| {
            line.starts_with("bulkerapp_consumer_run")
                && line.contains(shop.retry.name())
                && line.contains("success")
        })
    };
    wait_until(PATIENCE, known).await.context("a look at the retry topic")?;
    app.stop().await?;
    let fine = shop.setup.run(&back).await?;
    assert!(fine.is_success, "{}{}", fine.output, fine.log);
    // a pause, which the original does not know
    let app = shop.setup.start().await?;
    assert_eq!(app.order("/destinations/it/pause").await?.status, 200);
    app.stop().await?;
    let paused = shop.setup.run(&back).await?;
    assert!(!paused.is_success);
    assert!(paused.output.contains("FAIL  pauses: destinations it"), "{}", paused.output);
    Ok(())
}
