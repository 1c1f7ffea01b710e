//! Rights to the ledger that go and come: what was promised is held, and not weakened.

use anyhow::{Context, Result};
use testkit::{Database, Kafka, Topic, wait_until};

use crate::app::{App, PATIENCE, Setup, loaded_to};

const FAST: &str = r#"mode: "batch", frequency: 0.0167, retryFrequency: 0.0167, batchSize: 1000"#;

/// A user of its own, with the right to use a table and to make the ledger.
struct Limited {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    topic: Topic,
    role: String,
}

impl Limited {
    async fn open() -> Result<Limited> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let role = format!("loader_{}", uuid::Uuid::new_v4().simple());
        database
            .execute(&format!(
                "create role {role} login password 'p'; grant usage, create on schema public to {role}; \
                 create table t (id bigint, n bigint constraint positive check (n > 0)); \
                 grant all on t to {role}"
            ))
            .await?;
        let mut setup = Setup::new(&kafka, &database)
            .with_options(FAST)
            .with("BULKER_MESSAGES_RETRY_BACKOFF_BASE", "0");
        (setup.user, setup.password) = (role.clone(), "p".to_owned());
        let topic = kafka.adopt(setup.topic("t"));
        kafka.create_topic(topic.name(), 1, 1, &[]).await?;
        Ok(Limited { kafka, database, setup, topic, role })
    }

    async fn produce(&self, id: u32, n: i32) -> Result<()> {
        let event = format!(r#"{{"id":{id},"n":{n}}}"#);
        self.kafka.produce(self.topic.name(), 0, &id.to_string(), event, &[]).await?;
        Ok(())
    }

    async fn take_the_ledger_away(&self) -> Result<()> {
        let (role, owner) = (&self.role, self.database.user());
        for table in ["bulker_offsets", "bulker_origins"] {
            let sql =
                format!("alter table {table} owner to {owner}; revoke all on {table} from {role}");
            self.database.execute(&sql).await?;
        }
        Ok(())
    }

    async fn give_the_ledger_back(&self) -> Result<()> {
        let role = &self.role;
        self.database
            .execute(&format!(
                "grant select, insert, update, delete on bulker_offsets, bulker_origins to {role}"
            ))
            .await
    }

    async fn is_held(&self, app: &App) -> Result<()> {
        let names_it = || async {
            let health = app.health().await.unwrap_or_default().to_string();
            health.contains(self.topic.name()) && health.contains("bulker_offsets")
        };
        wait_until(PATIENCE, names_it).await.context("/health does not say what is missing")
    }

    async fn ids(&self) -> Result<String> {
        let sql = "select coalesce(string_agg(id::text, ' ' order by id), '') from t";
        self.database.value(sql).await
    }

    async fn has_ids(&self, wanted: &str) -> Result<()> {
        let has = || async { self.ids().await.is_ok_and(|ids| ids == wanted) };
        let found = wait_until(PATIENCE, has).await;
        let ids = self.ids().await?;
        found.with_context(|| format!("the table has {ids}, not {wanted}"))
    }

    async fn close(self) -> Result<()> {
        let (role, owner) = (&self.role, self.database.user());
        let sql =
            format!("reassign owned by {role} to {owner}; drop owned by {role}; drop role {role}");
        self.database.execute(&sql).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_lost_holds_the_topic_and_no_event_is_lost_or_doubled() -> Result<()> {
    let limited = Limited::open().await?;
    limited.produce(0, 1).await?;
    let app = limited.setup.start().await?;
    loaded_to(&limited.database, limited.topic.name(), 1).await?;
    // given the ledger out of reach, and events, one of which will be refused
    limited.take_the_ledger_away().await?;
    for (id, n) in [(1, 1), (2, -1), (3, 1)] {
        limited.produce(id, n).await?;
    }
    // then nothing is loaded, and /health says why
    limited.is_held(&app).await?;
    assert_eq!(limited.ids().await?, "0");
    // also not by one that is started now
    app.stop().await?;
    let app = limited.setup.start().await?;
    limited.is_held(&app).await?;
    assert_eq!(limited.ids().await?, "0");
    // when the right is back, then each event is in one place
    limited.give_the_ledger_back().await?;
    limited.has_ids("0 1 3").await?;
    limited.database.execute("alter table t drop constraint positive").await?;
    limited.has_ids("0 1 2 3").await?;
    app.stop().await?;
    limited.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_gone_with_the_right_to_make_one_holds_the_topic() -> Result<()> {
    let limited = Limited::open().await?;
    limited.produce(0, 1).await?;
    let app = limited.setup.start().await?;
    loaded_to(&limited.database, limited.topic.name(), 1).await?;
    app.stop().await?;
    // given that somebody dropped it, and took the right away
    limited
        .database
        .execute(&format!(
            "drop table bulker_offsets, bulker_origins; revoke create on schema public from {}, public",
            limited.role
        ))
        .await?;
    limited.produce(1, 1).await?;
    // when a loader starts, then the group says that there was a ledger, and the topic is held
    let app = limited.setup.start().await?;
    let is_held = || async {
        app.health().await.is_ok_and(|h| h["heldTopics"][limited.topic.name()] == "ledger_lost")
    };
    wait_until(PATIENCE, is_held).await?;
    assert_eq!(limited.ids().await?, "0");
    // and with the right it goes on where it stood
    let sql = format!("grant create on schema public to {}", limited.role);
    limited.database.execute(&sql).await?;
    limited.has_ids("0 1").await?;
    app.stop().await?;
    limited.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_never_was_a_right_refused_events_return_without_an_origin() -> Result<()> {
    let limited = Limited::open().await?;
    let sql = format!("revoke create on schema public from {}, public", limited.role);
    limited.database.execute(&sql).await?;
    let retry = limited.kafka.adopt(limited.setup.retry_topic());
    // given an event that is refused by a user who may keep no ledger
    limited.produce(1, -1).await?;
    let app = limited.setup.start().await?;
    let is_refused = || async {
        limited.kafka.read_all(retry.name()).await.is_ok_and(|copies| !copies.is_empty())
    };
    wait_until(PATIENCE, is_refused).await?;
    // then nobody will judge its copy by where it was read
    let copies = limited.kafka.read_all(retry.name()).await?;
    assert_eq!(copies[0].header("bulker_origin"), None);
    // and it is loaded once it can be, also by one who keeps a ledger by then
    let sql = format!("grant create on schema public to {}", limited.role);
    limited.database.execute(&sql).await?;
    limited.database.execute("alter table t drop constraint positive").await?;
    limited.has_ids("1").await?;
    app.stop().await?;
    limited.close().await
}
