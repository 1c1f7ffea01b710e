//! Refused events whose topics do not take them back, for a while or for ever: others go on, and
//! none is forgotten.

use anyhow::{Context, Result, ensure};
use testkit::{Database, Kafka, Topic, wait_until};

use crate::app::{App, PATIENCE, Setup};

const FAST: &str = r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167, batchSize: 1000"#;
/// A topic with it refuses the time of every record.
const TAKES_NOTHING: [(&str, &str); 1] = [("message.timestamp.before.max.ms", "0")];

/// Two tables, their topics and the retry topic of their destination.
struct Two {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    stuck: Topic,
    fine: Topic,
    retry: Topic,
}

impl Two {
    async fn open() -> Result<Two> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let setup = Setup::new(&kafka, &database)
            .with_options(FAST)
            .with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "0");
        let topic = |table| kafka.adopt(setup.topic(table));
        let (stuck, fine) = (topic("stuck"), topic("fine"));
        let retry = kafka.adopt(setup.retry_topic());
        for topic in [&stuck, &fine, &retry] {
            kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        }
        database.execute("create table stuck (id bigint); create table fine (id bigint)").await?;
        Ok(Two { kafka, database, setup, stuck, fine, retry })
    }

    /// An event that waits, as whoever refused it left it.
    async fn waits(&self, id: u32, topic: &Topic, due: &str) -> Result<()> {
        let headers = [("original_topic", topic.name()), ("retries", "0"), ("retry_time", due)];
        let (key, event) = (format!("key-{id}"), format!(r#"{{"id":{id}}}"#));
        self.kafka.produce(self.retry.name(), 0, &key, event, &headers).await?;
        Ok(())
    }

    async fn is_loaded(&self, table: &str, ids: &str) -> Result<()> {
        let sql = format!("select string_agg(id::text, ' ' order by id) from {table}");
        let is_so = || async { self.database.value(&sql).await.is_ok_and(|found| found == ids) };
        let found = wait_until(PATIENCE, is_so).await;
        found.with_context(|| format!("{table} has not {ids}"))
    }

    async fn is_told(&self, app: &App) -> Result<()> {
        let is_so = || async {
            app.health().await.is_ok_and(|h| h["failingTopics"][self.retry.name()].is_string())
        };
        wait_until(PATIENCE, is_so).await.context("/health does not name the retry topic")
    }
}

const LONG_AGO: &str = "2020-01-01T00:00:00Z";
const LATER: &str = "2100-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_topic_takes_nothing_holds_no_other_up_and_returns_once_it_does()
-> Result<()> {
    let two = Two::open().await?;
    // given an event that cannot go back, between others that can
    two.kafka.configure_topic(two.stuck.name(), &TAKES_NOTHING).await?;
    two.waits(1, &two.fine, LONG_AGO).await?;
    two.waits(2, &two.stuck, LONG_AGO).await?;
    two.waits(3, &two.fine, LONG_AGO).await?;
    let app = two.setup.start().await?;
    // then the others are back, each moved once, and /health tells of the one
    two.is_loaded("fine", "1 3").await?;
    two.is_told(&app).await?;
    two.waits(4, &two.fine, LONG_AGO).await?;
    two.is_loaded("fine", "1 3 4").await?;
    assert_eq!(two.kafka.end_offset(two.fine.name(), 0).await?, 3, "records of three events");
    // when its topic takes events again, then it is back
    two.kafka.configure_topic(two.stuck.name(), &[]).await?;
    two.is_loaded("stuck", "2").await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ledger_events_beside_one_that_cannot_return_do_not_multiply() -> Result<()> {
    let two = Two::open().await?;
    // given a user who may keep no ledger, and an event that cannot go back
    let user = two.database.user().to_owned();
    let loader = format!("loader_{}", uuid::Uuid::new_v4().simple());
    two.database
        .execute(&format!(
            "create role {loader} login password 'p'; revoke create on schema public from public; \
             grant usage on schema public to {loader}; grant all on stuck, fine to {loader}"
        ))
        .await?;
    let setup = Setup { user: loader.clone(), password: "p".to_owned(), ..two.setup.clone() };
    two.kafka.configure_topic(two.stuck.name(), &TAKES_NOTHING).await?;
    two.waits(1, &two.stuck, LONG_AGO).await?;
    two.waits(2, &two.fine, LONG_AGO).await?;
    // when the retry topic is tried again and again
    let app = setup.start().await?;
    two.is_loaded("fine", "2").await?;
    two.is_told(&app).await?;
    for id in 3..6 {
        two.waits(id, &two.fine, LONG_AGO).await?;
        let ids: Vec<_> = (2..=id).map(|id| id.to_string()).collect();
        two.is_loaded("fine", &ids.join(" ")).await?;
    }
    // then each of the others was moved once
    assert_eq!(two.kafka.end_offset(two.fine.name(), 0).await?, 4);
    app.stop().await?;
    let clean_up =
        format!("reassign owned by {loader} to {user}; drop owned by {loader}; drop role {loader}");
    two.database.execute(&clean_up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_forgets_no_event_that_could_not_be_moved() -> Result<()> {
    let two = Two::open().await?;
    // given an event that cannot go back, one behind it that is not due, and one that was moved
    two.kafka.configure_topic(two.stuck.name(), &TAKES_NOTHING).await?;
    two.waits(1, &two.stuck, LONG_AGO).await?;
    two.waits(2, &two.fine, LATER).await?;
    two.waits(3, &two.fine, LONG_AGO).await?;
    let app = two.setup.start().await?;
    two.is_loaded("fine", "3").await?;
    two.is_told(&app).await?;
    // when the service is stopped, and started once the topic is well
    app.stop().await?;
    two.kafka.configure_topic(two.stuck.name(), &[]).await?;
    let app = two.setup.start().await?;
    // then it is back
    two.is_loaded("stuck", "1").await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_topic_is_gone_is_shown_as_a_dead_letter_and_counted_as_one() -> Result<()> {
    let two = Two::open().await?;
    // given an event that was refused and waits
    two.database.execute("alter table stuck add constraint positive check (id > 0)").await?;
    two.kafka.produce(two.stuck.name(), 0, "k", r#"{"id":-1}"#, &[]).await?;
    let setup = two.setup.clone().with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "1000");
    let app = setup.start().await?;
    let state = "select state from bulker_origins";
    let is_refused = || async { two.database.value(state).await.is_ok_and(|s| s == "refused") };
    wait_until(PATIENCE, is_refused).await?;
    app.stop().await?;
    // when its topic is deleted before it comes back
    two.kafka.delete_topic(two.stuck.name()).await?;
    let copy = two.kafka.read_all(two.retry.name()).await?.remove(0);
    let origin = copy.header("bulker_origin").context("no origin")?;
    let headers =
        [("original_topic", two.stuck.name()), ("retries", "0"), ("bulker_origin", &origin)];
    two.kafka.produce(two.retry.name(), 0, "again", copy.text(), &headers).await?;
    let app = two.setup.start().await?;
    // then it is a dead letter wherever one looks
    let is_dead = || async { two.database.value(state).await.is_ok_and(|s| s == "dead") };
    wait_until(PATIENCE, is_dead).await?;
    let count = "select waiting || ' waiting, ' || dead || ' dead' from bulker_offsets where topic like '%stuck'";
    assert_eq!(two.database.value(count).await?, "0 waiting, 1 dead");
    for (status, lines) in [("dead", 1), ("retry", 0)] {
        let answer = app.ask(&format!("/failed/it?status={status}&tableName=stuck")).await?;
        ensure!(answer.status == 200, "{}", answer.body);
        assert_eq!(answer.unchunked()?.lines().count(), lines, "{status}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_due_further_ahead_than_any_pause_returns_after_the_longest_one()
-> Result<()> {
    let mut two = Two::open().await?;
    // given an event that was refused before the clock was set back
    two.setup = two.setup.with("BULKER_MESSAGES_RETRY_PAUSE_SEC", "1");
    two.waits(1, &two.fine, LATER).await?;
    // when the retry topic is looked at for the second time, then it is back
    let app = two.setup.start().await?;
    two.is_loaded("fine", "1").await?;
    app.stop().await
}
