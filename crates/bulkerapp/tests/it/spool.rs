//! Answers without Kafka: what was answered with 200 is in Kafka once it is back, once, in order,
//! whatever happens between.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};
use testkit::{Kafka, native::OwnKafka, process::http_status, wait_until};

use crate::app::{App, DESTINATION, PATIENCE, Setup, TOKEN, events, post};

/// A destination whose topics are not loaded before the test is over.
const NOT_YET: &str = r#"mode: "batch", frequency: 1440"#;

impl Setup {
    fn with_spool(self, folder: &Path) -> Setup {
        self.with_options(NOT_YET)
            .with("BULKER_SPOOL_DIR", &folder.join("spool").display().to_string())
            .with("BULKER_SPOOL_LOOKUP_WAIT_MS", "1000")
            .with("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", "300")
    }
}

impl App {
    async fn post_all(&self, table: &str, numbers: std::ops::Range<u64>) -> Result<()> {
        for event in events(numbers) {
            let status = self.post(table, &event).await?;
            ensure!(status == 200, "{event}: {status}");
        }
        Ok(())
    }

    /// The value of a gauge or counter without labels, or with these.
    async fn metric(&self, name: &str) -> Result<u64> {
        let metrics = self.get("/metrics").await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.unwrap_or("0").parse()?)
    }

    async fn until_replayed(&self) -> Result<()> {
        let is_empty = || async {
            self.get("/health").await.is_ok_and(|health| health.contains(r#""waitingEvents":0"#))
        };
        wait_until(PATIENCE, is_empty).await
    }

    async fn is_ready(&self) -> bool {
        http_status(self.port, "/ready").await.is_ok_and(|status| status == 200)
    }
}

async fn values(kafka: &Kafka, topic: &str) -> Result<Vec<String>> {
    Ok(kafka.read_all(topic).await?.iter().map(testkit::Record::text).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_while_kafka_was_away_and_killed_every_event_is_in_kafka_once_in_order()
-> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    let mut app = setup.start().await?;
    app.post_all("t", 0..5).await?;
    app.until_replayed().await?;

    // given a Kafka that is frozen with events in its sockets, then dies
    own.stop_process()?;
    app.post_all("t", 5..10).await?;
    own.kill9().await?;
    app.post_all("t", 10..50).await?;
    app.post_all("new", 0..10).await?;
    ensure!(app.is_ready().await);

    // when the process is killed as well, and a new one starts without Kafka
    app.service.kill9().await?;
    let app = setup.spawn()?;
    wait_until(PATIENCE, || app.is_ready()).await?;
    app.post_all("t", 50..60).await?;
    app.post_all("new", 10..20).await?;
    app.post_all("newer", 0..10).await?;
    let health = app.get("/health").await?;
    ensure!(health.contains(r#""kafka":"does not answer""#), "{health}");

    // then all of it arrives once Kafka is back
    own.restart().await?;
    app.until_replayed().await?;
    app.post_all("t", 60..61).await?;
    app.until_replayed().await?;
    assert_eq!(values(&kafka, &setup.topic("t")).await?, events(0..61));
    assert_eq!(values(&kafka, &setup.topic("new")).await?, events(0..20));
    assert_eq!(values(&kafka, &setup.topic("newer")).await?, events(0..10));
    app.stop().await?;
    let left: HashSet<_> = std::fs::read_dir(folder.path().join("spool"))?
        .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
        .collect::<Result<_>>()?;
    assert_eq!(left, HashSet::from(["lock".to_owned(), "reserve".to_owned()]), "no event is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_is_a_503_and_one_topic_fills_its_share_only() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database)
        .with_spool(folder.path())
        .with("BULKER_SPOOL_MAX_MB", "1")
        .with("BULKER_SPOOL_TOPIC_SHARE", "0.4");
    let app = setup.start().await?;
    for table in ["a", "b", "c"] {
        app.post_all(table, 0..1).await?;
    }
    app.until_replayed().await?;
    own.kill9().await?;

    let mut answered = vec![events(0..1); 3];
    let mut statuses = Vec::new();
    for (number, table) in ["a", "b", "c"].into_iter().enumerate() {
        for id in 1.. {
            let event = format!(r#"{{"id":{id},"text":"{}"}}"#, "x".repeat(20_000));
            let status = app.post(table, &event).await?;
            if status != 200 {
                statuses.push(status);
                break;
            }
            answered[number].push(event);
        }
    }
    assert_eq!(statuses, [503; 3]);
    let counts: Vec<usize> = answered.iter().map(|events| events.len() - 1).collect();
    // 400 KiB for one topic; the third gets what is left
    assert!((15..=21).contains(&counts[0]) && counts[0] == counts[1], "{counts:?}");
    assert!((5..15).contains(&counts[2]), "{counts:?}");
    let bearer = format!("Bearer {TOKEN}");
    let path = format!("/post/{DESTINATION}?tableName=a");
    let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(20_000));
    let refused =
        app.request("POST", &path, &[("authorization", &bearer)], body.as_bytes()).await?;
    assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
    assert!(refused.body.contains("spool is full"), "{}", refused.body);
    for reason in ["full", "topic_full"] {
        let name = format!("bulkerapp_spool_refused_total{{reason=\"{reason}\"}}");
        assert!(app.metric(&name).await? > 0, "{reason}");
    }

    own.restart().await?;
    app.until_replayed().await?;
    for (number, table) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(values(&kafka, &setup.topic(table)).await?, answered[number], "{table}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_no_more_is_a_503_and_neither_a_lie_nor_a_death() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    // given a limit to the size of files, which comes with a signal that kills
    let setup = Setup::new(&kafka, &database).with_spool(folder.path()).with_limit("-f 100");
    let app = setup.start().await?;
    app.post_all("t", 0..1).await?;
    app.until_replayed().await?;
    own.kill9().await?;
    let (mut answered, mut refused) = (events(0..1), 0);
    for id in 1..60 {
        let event = format!(r#"{{"id":{id},"text":"{}"}}"#, "x".repeat(20_000));
        match app.post("t", &event).await? {
            200 => answered.push(event),
            503 => refused += 1,
            other => anyhow::bail!("{other}"),
        }
    }
    ensure!(refused > 0 && answered.len() > 10, "{refused} refused, {} not", answered.len());
    ensure!(app.metric("bulkerapp_spool_refused_total{reason=\"disk\"}").await? > 0);
    own.restart().await?;
    app.until_replayed().await?;
    let found = values(&kafka, &setup.topic("t")).await?;
    let distinct: HashSet<&String> = found.iter().collect();
    assert_eq!(distinct.len(), found.len(), "nothing is doubled");
    assert_eq!(found, answered);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphaned_folder_is_replayed_by_a_command_and_belongs_to_one_process() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    let mut app = setup.start().await?;
    app.post_all("t", 0..5).await?;
    own.kill9().await?;
    app.post_all("t", 5..20).await?;
    app.post_all("new", 0..5).await?;

    let mut second = setup.spawn()?;
    ensure!(!second.service.wait(PATIENCE).await?.success());
    second.service.wait_for_line("another process uses the spool folder", PATIENCE).await?;

    app.service.kill9().await?;
    own.restart().await?;
    let orphan = folder.path().join("spool").display().to_string();
    let mut command = setup.begin(&["spool", "replay", &orphan])?;
    let status = command.service.wait(PATIENCE).await?;
    ensure!(status.success(), "{:#?}", command.service.lines());
    assert_eq!(values(&kafka, &setup.topic("t")).await?, events(0..20));
    assert_eq!(values(&kafka, &setup.topic("new")).await?, events(0..5));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_refuses_for_good_is_put_away_and_sent_again_by_a_command() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    let narrow = setup.topic("narrow");
    kafka.create_topic(&narrow, 1, 1, &[("max.message.bytes", "2000")]).await?;
    let app = setup.start().await?;
    app.post_all("narrow", 0..1).await?;
    app.post_all("wide", 0..1).await?;
    app.until_replayed().await?;

    // given events of which some are too large for their topic, each alone; the others are so only
    // together
    own.stop_process()?;
    let (mut small, mut large) = (events(0..1), Vec::new());
    for id in 1..60 {
        let length = if id % 10 == 5 { 3_000 } else { 100 };
        let padding: String =
            (0..length / 32).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
        let event = format!(r#"{{"id":{id},"text":"{padding}"}}"#);
        ensure!(app.post("narrow", &event).await? == 200);
        if length > 2_000 { large.push(event) } else { small.push(event) }
    }
    app.post_all("wide", 1..20).await?;
    own.continue_process()?;
    app.until_replayed().await?;

    // then those are put away, and everything else is where it belongs
    assert_eq!(values(&kafka, &setup.topic("wide")).await?, events(0..20));
    assert_eq!(values(&kafka, &narrow).await?, small);
    let health = app.get("/health").await?;
    ensure!(health.contains(r#""quarantinedEvents":6"#), "{health}");
    ensure!(health.contains("event is larger than kafka takes"), "{health}");

    // and a command sends them again, also while the service runs
    set_max_message_bytes(&kafka, &narrow, "100000").await?;
    let used = folder.path().join("spool").display().to_string();
    let mut command = setup.begin(&["spool", "quarantine", &used, &narrow])?;
    ensure!(command.service.wait(PATIENCE).await?.success(), "{:#?}", command.service.lines());
    let is_released = || async {
        app.get("/health").await.is_ok_and(|health| !health.contains("quarantinedEvents"))
    };
    wait_until(PATIENCE, is_released).await?;
    app.until_replayed().await?;
    assert_eq!(values(&kafka, &narrow).await?, [small, large].concat());
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_refused_for_good_is_forgotten_on_an_operators_word_only() -> Result<()> {
    // given an event in quarantine, whose topic will never take it
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    let narrow = setup.topic("narrow");
    kafka.create_topic(&narrow, 1, 1, &[("max.message.bytes", "2000")]).await?;
    let app = setup.start().await?;
    app.post_all("narrow", 0..1).await?;
    own.stop_process()?;
    let secret: String = (0..100).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    ensure!(app.post("narrow", &format!(r#"{{"id":1,"text":"{secret}"}}"#)).await? == 200);
    own.continue_process()?;
    let has_quarantine = || async {
        app.health().await.is_ok_and(|health| health["spool"]["quarantinedEvents"] == 1)
    };
    wait_until(PATIENCE, has_quarantine).await?;

    // when an operator gives a reason, then it is gone, counted, and told without its values
    let used = folder.path().join("spool").display().to_string();
    let words = ["spool", "quarantine", "discard", used.as_str()];
    ensure!(!setup.run(&words).await?.is_success, "a reason is missing");
    ensure!(setup.run(&[&words[..], &["test data"]].concat()).await?.is_success);
    let is_gone = || async {
        app.health().await.is_ok_and(|health| health["spool"]["quarantinedEvents"].is_null())
    };
    wait_until(PATIENCE, is_gone).await?;
    let metrics = app.get("/metrics").await?;
    ensure!(metrics.contains(r#"bulkerapp_spool_events_total{status="discarded"} 1"#), "{metrics}");
    let lines = app.service.lines();
    let told = lines.iter().find(|line| line.contains("were discarded")).context("not told")?;
    ensure!(told.contains("test data") && told.contains(narrow.as_str()), "{told}");
    ensure!(!lines.iter().any(|line| line.contains(&secret[..32])));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_topic_kafka_takes_for_anothers_is_refused_with_its_name() -> Result<()> {
    // given a table that has a topic
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    let mut app = setup.start().await?;
    app.post_all("page_view", 0..1).await?;
    let refused = async |app: &App, table: &str, other: &str| {
        let bearer = format!("Bearer {TOKEN}");
        let path = format!("/post/{DESTINATION}?tableName={table}");
        let headers = [("authorization", bearer.as_str())];
        let answer = app.request("POST", &path, &headers, br#"{"id":0}"#).await?;
        ensure!(answer.status == 400, "{table}: {} {}", answer.status, answer.body);
        ensure!(answer.body.contains(other), "{table}: {}", answer.body);
        anyhow::Ok(())
    };
    refused(&app, "page.view", "page_view").await?;
    // when Kafka is away, then the same holds, also for a table whose events are spooled only
    own.kill9().await?;
    app.post_all("page_view", 1..5).await?;
    refused(&app, "page.view", "page_view").await?;
    app.post_all("new.table", 0..5).await?;
    refused(&app, "new_table", "new.table").await?;
    // and after a crash
    app.service.kill9().await?;
    app = setup.spawn()?;
    app.service.wait_for_ok(app.port, "/ready", PATIENCE).await?;
    refused(&app, "new_table", "new.table").await?;
    app.post_all("new.table", 5..10).await?;
    // and all that was taken arrives
    own.restart().await?;
    app.until_replayed().await?;
    assert_eq!(values(&kafka, &setup.topic("page_view")).await?, events(0..5));
    assert_eq!(values(&kafka, &setup.topic("new.table")).await?, events(0..10));
    ensure!(app.health().await?["spool"]["quarantinedEvents"].is_null());
    refused(&app, "new_table", "new.table").await?;
    app.stop().await
}

async fn set_max_message_bytes(kafka: &Kafka, topic: &str, bytes: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
    let altered = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", bytes);
    for result in admin.alter_configs([&altered], &AdminOptions::new()).await? {
        result.map_err(|(_, code)| anyhow::anyhow!(code))?;
    }
    Ok(())
}

/// A client that posts one event after the other, each attempt with a new number, and remembers the
/// answered ones.
async fn post_one_by_one(port: u16, client: u64, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut answered = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let event = format!(r#"{{"client":{client},"number":{number}}}"#);
        match post(port, "t", &event).await {
            Ok(200) => answered.push(number),
            _ => tokio::time::sleep(Duration::from_millis(20)).await, // its pause before it goes on
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_and_the_process_fail_in_turns_and_together_and_every_answer_holds() -> Result<()> {
    const CLIENTS: u64 = 6;
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    let port = testkit::free_port()?;
    let mut app = setup.spawn_on(port)?;
    app.service.wait_for_ok(port, "/ready", PATIENCE).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (0..CLIENTS).map(|id| tokio::spawn(post_one_by_one(port, id, stop.clone()))).collect();

    let moment = || {
        // random, within the time that the wait, a replay and a look take together
        tokio::time::sleep(Duration::from_millis(u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 8))
    };
    for round in 0..12 {
        moment().await;
        let (is_kafka_dead, is_frozen) = (round % 3 == 0, round % 3 == 1);
        if is_kafka_dead {
            own.kill9().await?;
            moment().await;
        } else if is_frozen {
            own.stop_process()?;
            moment().await;
        }
        if round % 2 == 0 {
            app.service.kill9().await?;
            app = setup.spawn_on(port)?;
            moment().await;
        }
        if is_kafka_dead {
            own.restart().await?;
        } else if is_frozen {
            own.continue_process()?;
        }
    }
    app.service.wait_for_ok(port, "/ready", PATIENCE).await?;
    stop.store(true, Ordering::Relaxed);
    let mut answered = Vec::new();
    for client in clients {
        answered.push(client.await?);
    }
    app.until_replayed().await?;
    ensure!(app.metric("bulkerapp_spool_events_total{status=\"spooled\"}").await? > 0);
    app.stop().await?;

    let mut found: Vec<Vec<u64>> = vec![Vec::new(); answered.len()];
    for value in values(&kafka, &setup.topic("t")).await? {
        let event: serde_json::Value = serde_json::from_str(&value)?;
        let field = |name: &str| event[name].as_u64().context("a number");
        found[usize::try_from(field("client")?)?].push(field("number")?);
    }
    for (answered, found) in answered.iter().zip(&mut found) {
        let distinct: HashSet<u64> = found.iter().copied().collect();
        assert_eq!(distinct.len(), found.len(), "events are doubled");
        let wanted: HashSet<u64> = answered.iter().copied().collect();
        found.retain(|number| wanted.contains(number));
        ensure!(answered.len() > 100, "only {} were answered", answered.len());
        assert_eq!(found, answered, "answered events are lost, or out of order");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_destination_that_is_gone_wait_in_quarantine_for_its_return() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    let mut app = setup.start().await?;
    app.post_all("old", 0..1).await?;
    app.until_replayed().await?;
    // given events of a table whose topic was never made, and of one whose topic is there
    own.kill9().await?;
    app.post_all("old", 1..10).await?;
    app.post_all("new", 0..10).await?;
    app.service.kill9().await?;

    // when their destination is not configured any more
    own.restart().await?;
    let gone = setup.clone().with("BULKER_DESTINATION_IT", r#"{id: "other", type: "postgres"}"#);
    let app = gone.start().await?;
    app.until_replayed().await?;
    let health = app.get("/health").await?;
    ensure!(health.contains(r#""quarantinedEvents":10"#), "{health}");
    ensure!(health.contains("its destination is not configured"), "{health}");
    assert_eq!(values(&kafka, &setup.topic("old")).await?, events(0..10));
    app.stop().await?;

    // then they follow once it is, by the command
    let orphan = folder.path().join("spool").display().to_string();
    let mut command = setup.begin(&["spool", "quarantine", &orphan])?;
    ensure!(command.service.wait(PATIENCE).await?.success(), "{:#?}", command.service.lines());
    assert_eq!(values(&kafka, &setup.topic("new")).await?, events(0..10));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_too_few_brokers_can_replicate_is_spooled_until_there_are_enough() -> Result<()>
{
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database).with_spool(folder.path());
    // given one broker where topics want three, as when a cluster comes back
    let app = setup.clone().with("BULKER_KAFKA_TOPIC_REPLICATION_FACTOR", "3").start().await?;
    app.post_all("t", 0..10).await?;
    ensure!(app.get("/health").await?.contains(r#""waitingEvents":10"#));
    app.stop().await?;
    assert!(!kafka.topics().await?.contains(&setup.topic("t")));
    // when there are enough for what is asked
    let app = setup.start().await?;
    app.until_replayed().await?;
    assert_eq!(values(&kafka, &setup.topic("t")).await?, events(0..10));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_invented_while_kafka_is_away_are_few_and_no_labels() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database)
        .with_spool(folder.path())
        .with("BULKER_TOPICS_PER_DESTINATION", "3");
    let app = setup.start().await?;
    own.kill9().await?;
    // given no Kafka, when tables are invented, then as many are taken as may be
    let mut statuses = Vec::new();
    for table in ["a", "b", "c", "d", "e", "a"] {
        statuses.push(app.post(table, "{\"id\":1}").await?);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429, 200]);
    // and none of them is a series of the metrics before it is a topic
    let labels = |name| format!(r#"status="success",tableName="{name}"}}"#);
    let metrics = app.get("/metrics").await?;
    ensure!(metrics.contains(&format!("{} 4", labels("other"))), "{metrics}");
    for table in ["a", "b", "c", "d", "e"] {
        ensure!(!metrics.contains(&format!(r#"tableName="{table}""#)), "{table}: {metrics}");
    }
    // when Kafka is back, then those that were taken are topics
    own.restart().await?;
    app.until_replayed().await?;
    app.post_all("a", 2..3).await?;
    ensure!(app.get("/metrics").await?.contains(&format!("{} 1", labels("a"))));
    for (table, count) in [("a", 3), ("b", 1), ("c", 1)] {
        assert_eq!(values(&kafka, &setup.topic(table)).await?.len(), count, "{table}");
    }
    app.stop().await
}
