//! Killed at the moments that decide: every event is in the table exactly once all the same.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Result;
use testkit::{
    process::Service,
    proxy::{Event, PostgresProxy, Then},
    wait_until,
};

use crate::app::{App, PATIENCE, Setup, assert_exactly_once, events, loaded_to};

const COUNT: u64 = 2_500;

/// Loads through a proxy that kills the loader at `event` of its first load, then lets a second one
/// finish.
async fn killed_at(event: Event) -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let setup = Setup::new(&kafka, &database).through(&proxy.host(), proxy.port());
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    kafka.produce_all(topic.name(), 0, events(0..COUNT)).await?;

    let mut first: App = setup.spawn()?;
    let killed = kill_once_at(&proxy, event, &first.service);
    first.service.wait(PATIENCE).await?;
    assert!(killed.load(Ordering::SeqCst), "the hook ended it, and not something else");

    let second = setup.start().await?;
    loaded_to(&database, topic.name(), i64::try_from(COUNT)?).await?;
    second.stop().await?;
    assert_exactly_once(&database, "t", COUNT).await
}

/// Kills the process at the first such moment of a transaction that carried rows.
fn kill_once_at(proxy: &PostgresProxy, event: Event, service: &Service) -> Arc<AtomicBool> {
    let (kill, killed) = (service.killer(), Arc::new(AtomicBool::new(false)));
    let seen = killed.clone();
    proxy.on(event, move |moment| {
        if moment.copied_bytes == 0 || seen.swap(true, Ordering::SeqCst) {
            return Then::Forward;
        }
        kill();
        if event == Event::AfterCommitAnswer { Then::Forward } else { Then::Cut }
    });
    killed
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_commit_reaches_the_database_nothing_is_doubled_or_lost() -> Result<()> {
    killed_at(Event::BeforeCommitForwarded).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_answer_to_commit_nothing_is_doubled_or_lost() -> Result<()> {
    killed_at(Event::BeforeCommitAnswer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_kafka_is_told_nothing_is_doubled_or_lost() -> Result<()> {
    killed_at(Event::AfterCommitAnswer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_loader_did_not_tell_kafka_the_next_clean_stop_tells() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let setup = Setup::new(&kafka, &database)
        .with_options(r#"mode: "batch", frequency: 0.0167, batchSize: 100000"#)
        .through(&proxy.host(), proxy.port());
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    kafka.produce_all(topic.name(), 0, events(0..COUNT)).await?;
    // given everything loaded, and a loader that was killed before it told Kafka
    let mut first = setup.spawn()?;
    let killed = kill_once_at(&proxy, Event::AfterCommitAnswer, &first.service);
    first.service.wait(PATIENCE).await?;
    assert!(killed.load(Ordering::SeqCst));
    proxy.clear();
    let told = kafka.committed(topic.name(), topic.name(), 0).await?;
    assert_eq!(told.map(|told| told.offset), Some(0), "the claim is all that Kafka knows");
    // when another one, which has nothing to load, is stopped cleanly
    let second = setup.start().await?;
    let is_at_work = || async {
        second.get("/metrics").await.is_ok_and(|text| !text.contains("bulkerapp_owned_topics 0"))
    };
    wait_until(PATIENCE, is_at_work).await?;
    second.stop().await?;
    // then the original could go on where the table stands
    let told = kafka.committed(topic.name(), topic.name(), 0).await?;
    assert_eq!(told.map(|told| told.offset), Some(i64::try_from(COUNT)?));
    assert_exactly_once(&database, "t", COUNT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_commit_is_settled_by_the_row_without_a_restart() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let setup = Setup::new(&kafka, &database).through(&proxy.host(), proxy.port());
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    kafka.produce_all(topic.name(), 0, events(0..COUNT)).await?;
    // given a connection that breaks once on each side of the moment of truth
    for event in [Event::BeforeCommitForwarded, Event::BeforeCommitAnswer] {
        let cut = AtomicBool::new(false);
        proxy.on(event, move |moment| {
            let first = moment.copied_bytes > 0 && !cut.swap(true, Ordering::SeqCst);
            if first { Then::Cut } else { Then::Forward }
        });
    }
    // when it loads
    let app = setup.start().await?;
    loaded_to(&database, topic.name(), i64::try_from(COUNT)?).await?;
    app.stop().await?;
    // then
    assert_exactly_once(&database, "t", COUNT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_loaders_on_one_new_topic_load_each_event_once() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    let (first, second) = (setup.start().await?, setup.start().await?);
    for start in (0..20).map(|round| round * 500) {
        kafka.produce_all(topic.name(), 0, events(start..start + 500)).await?;
    }
    loaded_to(&database, topic.name(), 10_000).await?;
    first.stop().await?;
    second.stop().await?;
    assert_exactly_once(&database, "t", 10_000).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_loader_that_wakes_after_another_took_over_loads_nothing_twice() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let direct = Setup::new(&kafka, &database);
    let topic = kafka.adopt(direct.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    kafka.produce_all(topic.name(), 0, events(0..COUNT)).await?;

    // given a loader that is frozen between its first batch and the next
    let first = direct.clone().through(&proxy.host(), proxy.port()).spawn()?;
    let (freeze, frozen) = (first.service.freezer(), Arc::new(AtomicBool::new(false)));
    let seen = frozen.clone();
    proxy.on(Event::AfterCommitAnswer, move |moment| {
        if moment.copied_bytes > 0 && !seen.swap(true, Ordering::SeqCst) {
            freeze();
        }
        Then::Forward
    });
    wait_until(PATIENCE, || async { frozen.load(Ordering::SeqCst) }).await?;

    // when another one loads the rest, and the first wakes
    let second = direct.start().await?;
    loaded_to(&database, topic.name(), i64::try_from(COUNT)?).await?;
    first.service.continue_process()?;
    kafka.produce_all(topic.name(), 0, events(COUNT..COUNT + 500)).await?;
    loaded_to(&database, topic.name(), i64::try_from(COUNT)? + 500).await?;
    first.stop().await?;
    second.stop().await?;
    assert_exactly_once(&database, "t", COUNT + 500).await
}
