//! Each source of destinations, as it is followed, goes away and comes back.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use redis::AsyncCommands;
use serde_json::{Value, json};
use testkit::{Database, Kafka, native::OwnRedis, wait_until};

use crate::{
    app::{PATIENCE, Setup, loaded_to},
    configuration::{
        assert_problem, destination, health, is_counted, over_http, post, topic, wait_for_health,
        wait_for_status, with_options,
    },
    console::Console,
};

/// Shorter than the slow looks at a source that tells of its changes.
const TOLD_SOON: Duration = Duration::from_secs(30);

/// Starts while the console is away, with a copy that was confirmed an hour ago.
async fn serves_the_copy(
    kafka: &Kafka,
    database: &Database,
    setup: Setup,
    console: Console,
    place: &str,
    make_old: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let name = kafka.adopt(topic(&setup, "one", "batch", "t"));
    let first = setup.start().await?;
    assert_eq!(post(&first, "one", "t", "{\"id\":0}").await?, 200);
    first.stop().await?;
    let port = console.port();
    drop(console);
    make_old().await?;

    let app = setup.start().await?;
    let details = health(&app).await?;
    assert_eq!(details["configurationSource"], "http");
    assert_eq!(details["configurationCopy"], place);
    let age = details["configurationAgeSeconds"].as_u64().context("an age")?;
    assert!((3600..7200).contains(&age), "{age}");
    assert!(details["configurationError"].is_string());
    let line = app.service.wait_for_line("the last known copy", PATIENCE).await?;
    assert!(line.contains("age_seconds=36"), "{line}");
    wait_until(PATIENCE, || async {
        app.get("/metrics").await.is_ok_and(|metrics| {
            metrics.lines().any(|line| line.starts_with("bulkerapp_configuration_age_seconds 3"))
        })
    })
    .await?;
    assert_eq!(post(&app, "one", "t", "{\"id\":1}").await?, 200);
    loaded_to(database, &name, 2).await?;

    // the console comes back, with a change
    let _console = Console::start_on(port, &json!([destination("other", database)])).await?;
    wait_for_health(&app, PATIENCE, |details| {
        details["configurationCopy"].is_null()
            && details["configurationError"].is_null()
            && details["configurationAgeSeconds"].as_u64().is_some_and(|age| age < 60)
    })
    .await?;
    wait_for_status(&app, "one", 404, PATIENCE).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_source_serves_the_copy_on_disk_and_says_how_old_it_is() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let console = Console::start(&json!([destination("one", &database)])).await?;
    let folder = tempfile::tempdir()?;
    let setup = over_http(&kafka, &database, &console)
        .await
        .with("BULKER_CACHE_DIR", &folder.path().display().to_string());
    let file = folder.path().join("bulker-connections");
    serves_the_copy(&kafka, &database, setup, console, "CACHE_DIR", async || {
        let copy: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        assert_eq!(copy[0]["id"], "one");
        set_hour_old(&file)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_source_serves_the_copy_in_redis_and_says_how_old_it_is() -> Result<()>
{
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let console = Console::start(&json!([destination("one", &database)])).await?;
    let redis = Redis::database(11).await?;
    let setup =
        over_http(&kafka, &database, &console).await.with("BULKER_REDIS_URL", redis.url.as_str());
    serves_the_copy(&kafka, &database, setup, console, "REDIS_URL", async || {
        let mut connection = redis.connect().await?;
        let keys: Vec<String> = connection.keys("bulker:configuration:http:*").await?;
        let [key] = keys.as_slice() else { anyhow::bail!("one key instead of {keys:?}") };
        let expires_in: i64 = connection.ttl(key).await?;
        ensure!(expires_in > 0, "a copy that nobody confirms goes");
        let hour_ago = jiff::Timestamp::try_from(SystemTime::now() - Duration::from_secs(3600))?;
        Ok(connection.hset(key, "confirmed_at", hour_ago.to_string()).await?)
    })
    .await
}

fn set_hour_old(path: &Path) -> Result<()> {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    Ok(std::fs::File::options().append(true).open(path)?.set_modified(hour_ago)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_source_and_copy_ends_and_names_what_to_repair() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let broken = folder.path().join("broken.yaml");
    std::fs::write(&broken, "destinations:\n  one: {credentials: {password: s3cret\n")?;
    let nobody = testkit::free_port()?;
    let wrong = database.url().replacen(&format!(":{}@", database.password()), ":wr0ng@", 1);
    for (source, expected) in [
        (format!("http://u:s3cret@127.0.0.1:{nobody}/x"), "http source"),
        (format!("redis://:s3cret@127.0.0.1:{nobody}/1"), "Connection refused"),
        (wrong, "28P01"),
        (broken.display().to_string(), "broken.yaml: not a YAML object (line "),
        ("/nowhere/destinations.yaml".to_owned(), "/nowhere/destinations.yaml: No such file"),
        ("ftp://s3cret".to_owned(), "no such source"),
    ] {
        let setup = Setup::new(&kafka, &database).with("BULKER_CONFIG_SOURCE", &source);
        let mut app = setup.spawn()?;
        let status = app.service.wait(PATIENCE).await?;
        assert_eq!(status.code(), Some(1), "{source}");
        let line = app.service.wait_for_line("BULKER_CONFIG_SOURCE", PATIENCE).await?;
        assert!(line.contains(expected), "{source}: {line}");
        for secret in ["s3cret", "wr0ng"] {
            assert!(!app.service.lines().iter().any(|line| line.contains(secret)), "{source}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_followed_and_one_that_breaks_changes_nothing() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("destinations.yaml");
    // JSON is YAML
    let write = |by_id: &Value| std::fs::write(&path, json!({ "destinations": by_id }).to_string());
    write(&json!({ "one": destination("one", &database) }))?;
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_CONFIG_SOURCE", &format!("file://{}", path.display()))
        .with("BULKER_CONFIG_REFRESH_PERIOD_SEC", "1");
    let name = kafka.adopt(topic(&setup, "two", "batch", "t"));
    let _probes = ["one", "two"].map(|id| kafka.adopt(topic(&setup, id, "batch", "probe")));
    let app = setup.start().await?;
    assert_eq!(post(&app, "two", "t", "{\"id\":0}").await?, 404);
    write(&json!({ "two": destination("two", &database) }))?;
    wait_for_status(&app, "two", 200, PATIENCE).await?;
    assert_eq!(post(&app, "one", "t", "{\"id\":0}").await?, 404);
    assert_eq!(post(&app, "two", "t", "{\"id\":0}").await?, 200);
    loaded_to(&database, &name, 1).await?;

    std::fs::write(&path, "destinations:\n  two: {credentials: {password: s3cret\n")?;
    wait_for_health(&app, PATIENCE, |details| {
        let error = details["configurationError"].as_str().unwrap_or_default();
        error.contains("destinations.yaml: not a YAML object (line ") && !error.contains("s3cret")
    })
    .await?;
    assert!(is_counted(&app, "bulkerapp_configuration_error{", &["\"parse_error\""]).await?);
    app.service.wait_for_line("configuration cannot be read", PATIENCE).await?;
    assert_eq!(post(&app, "two", "t", "{\"id\":1}").await?, 200);
    write(&json!({ "two": destination("two", &database) }))?;
    wait_for_health(&app, PATIENCE, |details| details["configurationError"].is_null()).await?;
    app.stop().await
}

/// A database of a Redis, emptied. Of the shared one each test has its own number.
struct Redis {
    url: String,
    client: redis::Client,
}

impl Redis {
    async fn database(number: u8) -> Result<Redis> {
        Redis::at(&format!("{}/{number}", testkit::redis_url().await?)).await
    }

    async fn at(url: &str) -> Result<Redis> {
        let redis = Redis { client: redis::Client::open(url)?, url: url.to_owned() };
        let _: () = redis::cmd("FLUSHDB").query_async(&mut redis.connect().await?).await?;
        Ok(redis)
    }

    async fn connect(&self) -> Result<redis::aio::MultiplexedConnection> {
        Ok(self.client.get_multiplexed_async_connection().await?)
    }

    async fn set(&self, id: &str, text: &str) -> Result<()> {
        Ok(self.connect().await?.hset("enrichedConnections", id, text).await?)
    }

    async fn remove(&self, id: &str) -> Result<()> {
        Ok(self.connect().await?.hdel("enrichedConnections", id).await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_tells_of_changes_and_keeps_its_word_when_it_loses_its_data() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let redis = Redis::database(12).await?;
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_CONFIG_SOURCE", "redis")
        .with("BULKER_REDIS_URL", &redis.url);
    let name = kafka.adopt(topic(&setup, "one", "batch", "t"));
    let stream = kafka.adopt(topic(&setup, "one", "stream", "t"));
    let _probes = ["one", "two"].map(|id| kafka.adopt(topic(&setup, id, "batch", "probe")));

    // given: nothing yet, which is fine for a new installation
    let app = setup.start().await?;
    wait_for_health(&app, PATIENCE, |details| {
        details["configurationError"] == "there is no hash enrichedConnections"
    })
    .await?;

    // added, as JSON and as YAML
    redis.set("one", &destination("one", &database).to_string()).await?;
    wait_for_status(&app, "one", 200, TOLD_SOON).await?;
    assert_eq!(post(&app, "one", "t", "{\"id\":0}").await?, 200);
    loaded_to(&database, &name, 1).await?;
    redis.set("two", "type: postgres\nusesBulker: true\ncredentials: {}\n").await?;
    wait_for_status(&app, "two", 200, TOLD_SOON).await?;

    // changed, and another one that breaks keeps what it was
    let changed = with_options(&destination("one", &database), &json!({"mode": "stream"}));
    redis.set("two", "type: [s3cret").await?;
    redis.set("one", &changed.to_string()).await?;
    wait_until(TOLD_SOON, || async {
        let posted = post(&app, "one", "t", "{\"id\":1}").await;
        let arrived = kafka.read_all(&stream).await;
        posted.is_ok() && arrived.is_ok_and(|arrived| !arrived.is_empty())
    })
    .await?;
    assert_problem(&health(&app).await?, "two: not a YAML object", "last readable");

    // removed
    redis.remove("two").await?;
    wait_for_status(&app, "two", 404, TOLD_SOON).await?;

    // gone without a word: the connection breaks, and nothing is there after it
    let mut connection = redis.connect().await?;
    let _: () = redis::cmd("FLUSHDB").query_async(&mut connection).await?;
    let mut kill = redis::cmd("CLIENT");
    let _: i64 = kill.arg("KILL").arg("TYPE").arg("pubsub").query_async(&mut connection).await?;
    wait_for_health(&app, TOLD_SOON, |details| details["configurationError"].is_string()).await?;
    assert_eq!(post(&app, "one", "probe", "{\"id\":0}").await?, 200);

    // and the last one removed on purpose is removed
    redis.set("one", &changed.to_string()).await?;
    wait_for_health(&app, TOLD_SOON, |details| details["configurationError"].is_null()).await?;
    redis.remove("one").await?;
    wait_for_status(&app, "one", 404, TOLD_SOON).await?;

    // for good: a look without an event does not find fault with it
    let errors = async || -> Result<Vec<String>> {
        let metrics = app.get("/metrics").await?;
        let lines =
            metrics.lines().filter(|line| line.starts_with("bulkerapp_configuration_error"));
        Ok(lines.map(str::to_owned).collect())
    };
    let before = errors().await?;
    let _: i64 = kill.query_async(&mut connection).await?;
    wait_until(TOLD_SOON, || async {
        let channel = "__keyspace@12__:enrichedConnections";
        let mut ask = redis::cmd("PUBSUB");
        let asked = ask.arg("NUMSUB").arg(channel).query_async(&mut connection.clone()).await;
        asked.is_ok_and(|(_, count): (String, i64)| count == 1)
    })
    .await?;
    redis.set("two", &changed.to_string()).await?;
    wait_for_status(&app, "two", 200, TOLD_SOON).await?;
    assert_eq!(errors().await?, before);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_dies_is_stood_in_for_and_listened_to_again() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let own = OwnRedis::start().await?;
    let redis = Redis::at(own.url()).await?;
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_CONFIG_SOURCE", &redis.url)
        .with("BULKER_CONFIG_REFRESH_PERIOD_SEC", "1")
        .with("BULKER_CACHE_DIR", &folder.path().display().to_string());
    let name = kafka.adopt(topic(&setup, "one", "batch", "t"));
    let _probes = ["one", "two"].map(|id| kafka.adopt(topic(&setup, id, "batch", "probe")));
    redis.set("one", &destination("one", &database).to_string()).await?;
    let app = setup.start().await?;
    assert_eq!(post(&app, "one", "t", "{\"id\":0}").await?, 200);

    // it dies: what it said last counts, now and after a restart of ours
    own.kill9().await?;
    wait_for_health(&app, PATIENCE, |details| details["configurationError"].is_string()).await?;
    assert!(is_counted(&app, "bulkerapp_configuration_error{", &["redis error: "]).await?);
    assert_eq!(post(&app, "one", "t", "{\"id\":1}").await?, 200);
    app.stop().await?;
    let app = setup.start().await?;
    assert_eq!(health(&app).await?["configurationCopy"], "CACHE_DIR");
    assert_eq!(post(&app, "one", "t", "{\"id\":2}").await?, 200);
    loaded_to(&database, &name, 3).await?;

    // it comes back empty, and without its settings
    own.restart().await?;
    wait_for_health(&app, PATIENCE, |details| {
        details["configurationError"] == "there is no hash enrichedConnections"
    })
    .await?;
    assert_eq!(post(&app, "one", "probe", "{\"id\":0}").await?, 200);
    redis.set("one", &destination("one", &database).to_string()).await?;
    wait_for_health(&app, TOLD_SOON, |details| details["configurationError"].is_null()).await?;
    redis.set("two", &destination("two", &database).to_string()).await?;
    wait_for_status(&app, "two", 200, TOLD_SOON).await?;
    app.stop().await
}

/// What the PostgreSQL source reads: rows, a time, and a switch that breaks the connection between
/// two rows.
async fn as_source(database: &Database) -> Result<()> {
    database
        .execute(
            "create schema conf;
             create table conf.connections (id text primary key, kind text, config json);
             create table conf.last_updated (at timestamptz);
             insert into conf.last_updated values (now());
             create table conf.switch (is_on boolean);
             insert into conf.switch values (false);
             create function conf.broken() returns text language plpgsql as $$
             begin
               if (select is_on from conf.switch) then
                 perform pg_terminate_backend(pg_backend_pid());
               end if;
               return null;
             end $$;
             create view conf.enriched_connections as
               select id, kind, config::text from conf.connections
               union all select 'end', conf.broken(), '{}'",
        )
        .await
}

async fn put(database: &Database, destination: &Value) -> Result<()> {
    // longer than what the server holds back before it sends
    let mut destination = destination.clone();
    destination["padding"] = json!("x".repeat(100_000));
    let id = destination["id"].as_str().context("an id")?;
    database
        .execute(&format!(
            "insert into conf.connections values ('{id}', 'destination', '{destination}')
             on conflict (id) do update set config = excluded.config;
             update conf.last_updated set at = clock_timestamp()"
        ))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_followed_and_half_an_answer_of_it_is_none() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    as_source(&database).await?;
    put(&database, &destination("one", &database)).await?;
    let folder = tempfile::tempdir()?;
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_CONFIG_SOURCE", &format!("{}?search_path=conf", database.url()))
        .with("BULKER_CONFIG_REFRESH_PERIOD_SEC", "1")
        .with("BULKER_CACHE_DIR", &folder.path().display().to_string());
    let name = kafka.adopt(topic(&setup, "two", "batch", "t"));
    let _probes = ["one", "two"].map(|id| kafka.adopt(topic(&setup, id, "batch", "probe")));
    let app = setup.start().await?;
    put(&database, &destination("two", &database)).await?;
    wait_for_status(&app, "two", 200, PATIENCE).await?;
    assert_eq!(post(&app, "two", "t", "{\"id\":0}").await?, 200);
    loaded_to(&database, &name, 1).await?;

    // given: a connection that breaks after the rows, of which one was removed
    database
        .execute(
            "update conf.switch set is_on = true; delete from conf.connections where id = 'one';
             update conf.last_updated set at = clock_timestamp()",
        )
        .await?;
    wait_for_health(&app, PATIENCE, |details| details["configurationError"].is_string()).await?;
    for id in ["one", "two"] {
        assert_eq!(post(&app, id, "probe", "{\"id\":0}").await?, 200, "{id}");
    }
    assert!(is_counted(&app, "bulkerapp_configuration_error{", &["\"error\""]).await?);

    // a restart serves the copy, the whole answer removes
    app.stop().await?;
    let app = setup.start().await?;
    assert_eq!(health(&app).await?["configurationCopy"], "CACHE_DIR");
    assert_eq!(post(&app, "one", "probe", "{\"id\":0}").await?, 200);
    let copy: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("repository.json"))?)?;
    assert_eq!(copy["destinations"]["one"]["id"], "one");
    database.execute("update conf.switch set is_on = false").await?;
    wait_for_status(&app, "one", 404, PATIENCE).await?;
    assert_eq!(post(&app, "two", "probe", "{\"id\":0}").await?, 200);
    app.stop().await
}
