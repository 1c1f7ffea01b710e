//! Nothing stands still in silence, and nobody suffers for a neighbour.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use testkit::{
    native::OwnKafka,
    proxy::{Event, PostgresProxy, Then},
    wait_until,
};
use tokio::net::TcpListener;

use crate::app::{App, PATIENCE, Setup, assert_exactly_once, events, loaded_to};

const COUNT: u64 = 2_500;

/// Whether the text of `/metrics` has this sample of a family, for any labels.
async fn has_sample(app: &App, family: &str, value: &str) -> bool {
    let Ok(metrics) = app.get("/metrics").await else {
        return false;
    };
    metrics.lines().any(|line| {
        line.strip_prefix(family).is_some_and(|rest| {
            rest.starts_with(['{', ' ']) && rest.ends_with(&format!(" {value}"))
        })
    })
}

async fn ready_names_stalled_topics(app: &App) -> bool {
    app.get("/ready").await.is_ok_and(|answer| answer.contains("\"stalledTopics\":{\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_connection_that_hangs_is_an_alarm_and_is_healed() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let setup = Setup::new(&kafka, &database)
        .through(&proxy.host(), proxy.port())
        .with("BULKER_LOADER_ALARM_AFTER_SEC", "2")
        .with("BULKER_LOADER_HEAL_AFTER_SEC", "6");
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    kafka.produce_all(topic.name(), 0, events(0..COUNT)).await?;
    // given a connection on which the second COMMIT gets no answer, and says nothing either
    let (seen, held) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let holds = held.clone();
    proxy.on(Event::BeforeCommitForwarded, move |moment| {
        let is_first = moment.copied_bytes > 0 && !seen.swap(true, Ordering::SeqCst);
        if moment.copied_bytes == 0 || is_first || holds.swap(true, Ordering::SeqCst) {
            return Then::Forward;
        }
        Then::Hold
    });
    let app = setup.start().await?;
    // then it is said
    wait_until(PATIENCE, || async { has_sample(&app, "bulkerapp_stalled_topics", "1").await })
        .await
        .context("no alarm")?;
    assert!(ready_names_stalled_topics(&app).await);
    assert!(held.load(Ordering::SeqCst));
    // and healed, without a loss or a double
    loaded_to(&database, topic.name(), i64::try_from(COUNT)?).await?;
    assert!(has_sample(&app, "bulkerapp_healed_topics_total", "1").await);
    wait_until(PATIENCE, || async { has_sample(&app, "bulkerapp_stalled_topics", "0").await })
        .await
        .context("the alarm stays")?;
    app.stop().await?;
    assert_exactly_once(&database, "t", COUNT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_hangs_is_an_alarm_until_the_topic_moves_again() -> Result<()> {
    let own = OwnKafka::start().await?;
    let (kafka, database) = (own.kafka(), testkit::postgres().await?);
    // small batches, so that there is something left when Kafka hangs
    let setup = Setup::new(&kafka, &database)
        .with_options(r#"mode: "batch", frequency: 0.0167, batchSize: 100"#)
        .with("BULKER_LOADER_ALARM_AFTER_SEC", "3");
    let topic = setup.topic("t");
    kafka.create_topic(&topic, 1, 1, &[]).await?;
    // before the start: a run that saw only the first of them would end, and nothing would be known
    // to wait
    kafka.produce_all(&topic, 0, events(0..50_000)).await?;
    let app = setup.start().await?;
    wait_until(PATIENCE, || async { database.count("t").await.is_ok_and(|rows| rows > 0) }).await?;
    own.stop_process()?;
    let alarm = || async { has_sample(&app, "bulkerapp_stalled_topics", "1").await };
    let alarmed = wait_until(PATIENCE, alarm).await;
    own.continue_process()?;
    alarmed.context("no alarm")?;
    loaded_to(&database, &topic, 50_000).await?;
    app.stop().await?;
    assert_exactly_once(&database, "t", 50_000).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_whose_database_hangs_leaves_the_others_alone() -> Result<()> {
    const HANGING_TOPICS: usize = 200;
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    // given a server that takes connections and never says a word
    let mute = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = mute.local_addr()?.port();
    let hangs = format!(
        r#"{{id: "hangs", type: "postgres", credentials: {{host: "127.0.0.1", port: {port}, database: "d", username: "u", password: "p", defaultSchema: "s"}}, options: {{mode: "batch", frequency: 0.0167}}}}"#
    );
    let setup = Setup::new(&kafka, &database).with("BULKER_DESTINATION_HANGS", &hangs);
    let hanging: Vec<_> = (0..HANGING_TOPICS)
        .map(|number| kafka.adopt(format!("{}in.id.hangs.m.batch.t.t{number}", setup.prefix)))
        .collect();
    for topic in &hanging {
        kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        kafka.produce(topic.name(), 0, "k", r#"{"id":1}"#, &[]).await?;
    }
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    let app = setup.start().await?;
    // when events for another destination come, again and again
    for round in 1..=5 {
        kafka.produce_all(topic.name(), 0, events((round - 1) * 10..round * 10)).await?;
        // then each is loaded soon, although many topics of the mute server wait before it
        loaded_to(&database, topic.name(), i64::try_from(round * 10)?)
            .await
            .with_context(|| format!("round {round}"))?;
    }
    drop(mute);
    app.stop().await?;
    assert_exactly_once(&database, "t", 50).await
}
