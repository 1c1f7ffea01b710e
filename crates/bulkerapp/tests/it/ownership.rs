//! Several instances share the topics, and none is left without an owner.

use anyhow::{Context, Result};
use testkit::{Database, Kafka, Topic, wait_until};

use crate::app::{App, PATIENCE, Setup, events};

const TOPICS: usize = 12;
/// These and the retry topic of all destinations.
const ALL: usize = TOPICS + 1;
const EACH: u64 = 50;

struct Shared {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    topics: Vec<Topic>,
    _shares: Topic,
}

impl Shared {
    async fn new() -> Result<Shared> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let setup = Setup::new(&kafka, &database).sharing_topics();
        let mut topics = Vec::new();
        for number in 0..TOPICS {
            let topic = kafka.adopt(setup.topic(&format!("t{number}")));
            kafka.create_topic(topic.name(), 1, 1, &[]).await?;
            topics.push(topic);
        }
        let shares = kafka.adopt(format!("{}bulker-shares", setup.prefix));
        Ok(Shared { kafka, database, setup, topics, _shares: shares })
    }

    async fn produce(&self, round: u64) -> Result<()> {
        for topic in &self.topics {
            let batch = events(round * EACH..(round + 1) * EACH);
            self.kafka.produce_all(topic.name(), 0, batch).await?;
        }
        Ok(())
    }

    /// Waits until each table has the events of all rounds, each once.
    async fn loaded(&self, rounds: u64) -> Result<()> {
        for number in 0..TOPICS {
            let sql = format!("select count(*) || ' ' || count(distinct id) from t{number}");
            let wanted = format!("{0} {0}", rounds * EACH);
            let is_there = || async { self.database.value(&sql).await.is_ok_and(|v| v == wanted) };
            let found = wait_until(PATIENCE, is_there).await;
            found.with_context(|| format!("table t{number} has not {wanted}"))?;
        }
        Ok(())
    }
}

/// How many topics an instance says it owns.
async fn owned(app: &App) -> Result<usize> {
    let metrics = app.get("/metrics").await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("bulkerapp_owned_topics "));
    Ok(line.context("no gauge")?.parse()?)
}

async fn wait_for_owned(app: &App, wanted: impl Fn(usize) -> bool) -> Result<()> {
    let is_so = || async { owned(app).await.is_ok_and(&wanted) };
    wait_until(PATIENCE, is_so).await.context("the number of owned topics")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_joins_gets_its_part_and_one_that_is_killed_loses_nothing() -> Result<()> {
    let shared = Shared::new().await?;
    // given one instance, which owns all
    let mut first = shared.setup.start().await?;
    wait_for_owned(&first, |owned| owned == ALL).await?;
    shared.produce(0).await?;
    shared.loaded(1).await?;
    // when another joins, both have some, and every topic has one owner
    let second = shared.setup.start().await?;
    wait_for_owned(&second, |owned| 0 < owned && owned < ALL).await?;
    let theirs = owned(&second).await?;
    wait_for_owned(&first, |owned| owned == ALL - theirs).await?;
    shared.produce(1).await?;
    shared.loaded(2).await?;
    // when the first is killed while there is work, the second takes all over
    shared.produce(2).await?;
    first.service.kill9().await?;
    shared.produce(3).await?;
    wait_for_owned(&second, |owned| owned == ALL).await?;
    shared.loaded(4).await?;
    second.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stops_leaves_its_topics_to_the_others_with_kafka_up_to_date() -> Result<()>
{
    let shared = Shared::new().await?;
    let (first, second) = (shared.setup.start().await?, shared.setup.start().await?);
    wait_for_owned(&second, |owned| 0 < owned && owned < ALL).await?;
    shared.produce(0).await?;
    shared.loaded(1).await?;
    first.stop().await?;
    wait_for_owned(&second, |owned| owned == ALL).await?;
    shared.produce(1).await?;
    shared.loaded(2).await?;
    second.stop().await?;
    // the original could go on at once
    for topic in &shared.topics {
        let committed = shared.kafka.committed(topic.name(), topic.name(), 0).await?;
        let end = shared.kafka.end_offset(topic.name(), 0).await?;
        assert_eq!(committed.map(|committed| committed.offset), Some(end), "{}", topic.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_instance_loses_its_topics_and_doubles_nothing_when_it_wakes() -> Result<()> {
    let shared = Shared::new().await?;
    let (first, second) = (shared.setup.start().await?, shared.setup.start().await?);
    wait_for_owned(&second, |owned| 0 < owned && owned < ALL).await?;
    shared.produce(0).await?;
    first.service.stop_process()?;
    wait_for_owned(&second, |owned| owned == ALL).await?;
    shared.loaded(1).await?;
    first.service.continue_process()?;
    wait_for_owned(&first, |owned| 0 < owned && owned < ALL).await?;
    shared.produce(1).await?;
    shared.loaded(2).await?;
    first.stop().await?;
    second.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_topic_of_few_partitions_leaves_no_topic_without_an_owner() -> Result<()> {
    let shared = Shared::new().await?;
    // given the internal topic as a broker makes topics by itself
    let name = format!("{}bulker-shares", shared.setup.prefix);
    shared.kafka.create_topic(&name, 1, 1, &[]).await?;
    shared.produce(0).await?;
    // when an instance starts, then it loads all topics, and another one gets its part
    let first = shared.setup.start().await?;
    shared.loaded(1).await?;
    let second = shared.setup.start().await?;
    wait_for_owned(&second, |owned| 0 < owned && owned < ALL).await?;
    shared.produce(1).await?;
    shared.loaded(2).await?;
    first.stop().await?;
    second.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_topic_that_is_deleted_is_made_anew() -> Result<()> {
    let shared = Shared::new().await?;
    // given two instances at work
    let first = shared.setup.start().await?;
    let second = shared.setup.start().await?;
    wait_for_owned(&second, |owned| 0 < owned && owned < ALL).await?;
    shared.produce(0).await?;
    shared.loaded(1).await?;
    // when somebody deletes the topic by which they share the work, again and again
    let name = format!("{}bulker-shares", shared.setup.prefix);
    for round in 1..4 {
        shared.kafka.delete_topic(&name).await?;
        let is_back = || async { shared.kafka.topics().await.is_ok_and(|all| all.contains(&name)) };
        wait_until(PATIENCE, is_back).await.context("nobody made it anew")?;
        // then each topic has one owner again, and what comes afterwards is loaded
        shared.produce(round).await?;
        shared.loaded(round + 1).await?;
        let is_whole = || async {
            let both = tokio::join!(owned(&first), owned(&second));
            matches!(both, (Ok(a), Ok(b)) if a + b == ALL)
        };
        wait_until(PATIENCE, is_whole).await.context("topics without an owner, or with two")?;
    }
    first.stop().await?;
    second.stop().await
}
