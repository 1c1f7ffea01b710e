//! Destinations come from anywhere and change while the service runs; a source that is away, or broken in places,
//! takes nothing down.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use redis::AsyncCommands;
use serde_json::{Value, json};
use sqlx::Executor;
use testkit::{Database, Kafka, native::OwnRedis, wait_until};

use crate::{
    app::{App, PATIENCE, Setup, TOKEN, assert_exactly_once, events, loaded_to},
    console::{CONSOLE_TOKEN, Console},
};

/// Shorter than the slow looks at a source that tells of its changes.
const TOLD_SOON: Duration = Duration::from_secs(30);

/// A destination that loads into this database about once a second.
fn destination(id: &str, database: &Database) -> Value {
    json!({
        "id": id, "type": "postgres", "usesBulker": true, "credentials": database.credentials(),
        "options": {"mode": "batch", "frequency": 0.0167, "batchSize": 1000},
    })
}

/// The same with other options and another version.
fn with_options(destination: &Value, options: &Value) -> Value {
    let mut changed = destination.clone();
    for (key, value) in options.as_object().into_iter().flatten() {
        changed["options"][key] = value.clone();
    }
    changed
}

fn topic(setup: &Setup, id: &str, mode: &str, table: &str) -> String {
    format!("{}in.id.{id}.m.{mode}.t.{table}", setup.prefix)
}

async fn post(app: &App, id: &str, table: &str, event: &str) -> Result<u16> {
    let path = format!("/post/{id}?tableName={table}");
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str())];
    Ok(app.request("POST", &path, &headers, event.as_bytes()).await?.status)
}

async fn health(app: &App) -> Result<Value> {
    let answer = app.request("GET", "/health", &[], b"").await?;
    ensure!(answer.status == 200, "{}", answer.status);
    let health: Value = serde_json::from_str(&answer.body)?;
    Ok(health["details"].clone())
}

/// Waits until a detail of `/health` is as wanted.
async fn wait_for_health(app: &App, limit: Duration, holds: impl Fn(&Value) -> bool) -> Result<()> {
    let reached =
        wait_until(limit, || async { health(app).await.is_ok_and(|details| holds(&details)) });
    let reached = reached.await;
    reached.with_context(|| format!("the last lines: {:#?}", app.service.lines()))
}

async fn wait_for_status(app: &App, id: &str, status: u16, limit: Duration) -> Result<()> {
    let reached = wait_until(limit, || async {
        post(app, id, "probe", "{\"probe\":1}").await.is_ok_and(|found| found == status)
    });
    let reached = reached.await;
    reached.with_context(|| format!("{id} never answered {status}"))
}

/// Whether a sample with all these texts in its labels is above 0.
async fn is_counted(app: &App, metric: &str, labels: &[&str]) -> Result<bool> {
    let metrics = app.get("/metrics").await?;
    let mut samples = metrics.lines().filter(|line| line.starts_with(metric));
    Ok(samples.any(|line| labels.iter().all(|label| line.contains(label)) && !line.ends_with(" 0")))
}

fn assert_problem(details: &Value, start: &str, part: &str) {
    let problems = details["destinationProblems"].as_array();
    let found = problems.into_iter().flatten().filter_map(Value::as_str);
    let found: Vec<_> = found.collect();
    assert!(
        found.iter().any(|problem| problem.starts_with(start) && problem.contains(part)),
        "no {start:?} with {part:?} in {found:?}"
    );
}

async fn over_http(kafka: &Kafka, database: &Database, console: &Console) -> Setup {
    Setup::new(kafka, database)
        .with("BULKER_CONFIG_SOURCE", &console.url())
        .with("BULKER_CONFIG_SOURCE_HTTP_AUTH_TOKEN", CONSOLE_TOKEN)
        .with("BULKER_CONFIG_REFRESH_PERIOD_SEC", "1")
}

#[tokio::test(flavor = "multi_thread")]
async fn others_are_added_changed_and_removed_while_a_load_goes_on_undisturbed() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let (steady, changing) = (destination("steady", &database), destination("changing", &database));
    let left = testkit::postgres().await?;
    let leaving = destination("leaving", &left);
    let console = Console::start(&json!([steady, changing, leaving])).await?;
    let setup = over_http(&kafka, &database, &console).await;
    let mut topics = Vec::new();
    let mut name = |id: &str, mode: &str, table: &str| {
        topics.push(kafka.adopt(topic(&setup, id, mode, table)));
        topic(&setup, id, mode, table)
    };
    let steady_topic = name("steady", "batch", "kept");
    let added_topic = name("added", "batch", "new");
    let stream_topic = name("changing", "stream", "moved");
    let leaving_topic = name("leaving", "batch", "gone");
    name("leaving", "batch", "probe");
    let app = setup.start().await?;
    assert_eq!(post(&app, "leaving", "gone", "{\"id\":0}").await?, 200);
    loaded_to(&left, &leaving_topic, 1).await?;
    for event in events(0..10) {
        assert_eq!(post(&app, "steady", "kept", &event).await?, 200);
    }
    loaded_to(&database, &steady_topic, 10).await?;

    // given: a load that waits for the table
    let mut lock = database.connect().await?;
    lock.execute("begin; lock table kept in access exclusive mode").await?;
    for event in events(10..20) {
        assert_eq!(post(&app, "steady", "kept", &event).await?, 200);
    }
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                   and wait_event_type = 'Lock'";
    let is_waiting = || async { database.value(waiting).await.is_ok_and(|count| count != "0") };
    wait_until(PATIENCE, is_waiting).await?;

    // when
    console.set(&json!([
        steady,
        with_options(&changing, &json!({"mode": "stream"})),
        destination("added", &database),
    ]));

    // then: the others follow, although that load still waits
    wait_for_status(&app, "leaving", 404, PATIENCE).await?;
    assert_eq!(post(&app, "changing", "moved", "{\"id\":1}").await?, 200);
    assert_eq!(kafka.read_all(&stream_topic).await?.len(), 1);
    assert_eq!(post(&app, "added", "new", "{\"id\":1}").await?, 200);
    loaded_to(&database, &added_topic, 1).await?;
    let connections =
        format!("select count(*) from pg_stat_activity where datname = '{}'", left.name());
    let are_closed =
        || async { database.value(&connections).await.is_ok_and(|count| count == "0") };
    wait_until(PATIENCE, are_closed).await.context("connections of what is removed")?;
    assert!(is_waiting().await, "the steady load is the one that waited all along");
    lock.execute("commit").await?;
    loaded_to(&database, &steady_topic, 20).await?;
    assert_exactly_once(&database, "kept", 20).await?;
    assert!(!is_counted(&app, "bulkerapp_consumer_run{", &["\"steady\"", "\"fail\""]).await?);
    for (status, count) in [("added", 4), ("changed", 1), ("removed", 1)] {
        let sample = format!("bulkerapp_repository_destinations{{status=\"{status}\"}} {count}");
        assert!(app.get("/metrics").await?.contains(&sample), "{sample}");
    }

    // and: what does not change is not sent again
    let unchanged = console.unchanged();
    wait_until(PATIENCE, || async { console.unchanged() > unchanged + 1 }).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_period_of_a_destination_counts_without_a_restart() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let daily = with_options(&destination("one", &database), &json!({"frequency": 1440}));
    let console = Console::start(&json!([daily])).await?;
    let setup = over_http(&kafka, &database, &console).await;
    let name = kafka.adopt(topic(&setup, "one", "batch", "t"));
    let app = setup.start().await?;
    assert_eq!(post(&app, "one", "t", "{\"id\":0}").await?, 200);
    loaded_to(&database, &name, 1).await?; // a topic that is new here does not wait
    assert_eq!(post(&app, "one", "t", "{\"id\":1}").await?, 200);
    console.set(&json!([destination("one", &database)]));
    loaded_to(&database, &name, 2).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_repaired_repairs_its_destination_without_a_restart() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let right = destination("one", &database);
    let mut wrong = right.clone();
    wrong["credentials"]["password"] = json!("not-this-one");
    let console = Console::start(&json!([wrong])).await?;
    let setup = over_http(&kafka, &database, &console).await;
    let name = kafka.adopt(topic(&setup, "one", "batch", "t"));
    let app = setup.start().await?;
    assert_eq!(post(&app, "one", "t", "{\"id\":0}").await?, 200);
    wait_for_health(&app, PATIENCE, |details| {
        let error = details["failingTopics"][name.name()].as_str().unwrap_or_default();
        error.contains("password authentication failed") && !error.contains("not-this-one")
    })
    .await?;
    assert!(is_counted(&app, "bulkerapp_consumer_error{", &["destinationId=\"one\""]).await?);
    app.service.wait_for_line("password authentication failed", PATIENCE).await?;
    console.set(&json!([right]));
    loaded_to(&database, &name, 1).await?;
    wait_for_health(&app, PATIENCE, |details| details["failingTopics"].is_null()).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_is_named_and_takes_nothing_else_down() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let mut no_schema = destination("no_schema", &database);
    no_schema["credentials"]["defaultSchema"] = json!("");
    let document = json!([
        destination("good", &database),
        {"id": "unreadable", "type": "postgres", "options": "s3cret"},
        {"id": "lake", "type": "iceberg", "credentials": {"key": "s3cret"}},
        no_schema,
        with_options(&destination("odd", &database), &json!({"frequenzy": 1})),
        7,
    ]);
    let console = Console::start(&document).await?;
    let setup = over_http(&kafka, &database, &console).await;
    let good_topic = kafka.adopt(topic(&setup, "good", "batch", "t"));
    let lake_topic = kafka.adopt(topic(&setup, "lake", "batch", "t"));
    let unreadable_topic = kafka.adopt(topic(&setup, "unreadable", "batch", "t"));
    let app = setup.start().await?;

    let details = health(&app).await?;
    assert_problem(&details, "unreadable: ", "`options` is not an object");
    assert_problem(&details, "lake: ", "iceberg");
    assert_problem(&details, "no_schema: ", "defaultSchema is required");
    assert_problem(&details, "odd: ", "frequenzy");
    assert_problem(&details, "element 5: ", "not an object");
    for id in ["unreadable", "lake", "no_schema", "odd"] {
        let metric = "bulkerapp_repository_destination_init_error{";
        assert!(is_counted(&app, metric, &[&format!("\"{id}\"")]).await?, "{id}");
        assert!(app.service.lines().iter().any(|line| line.contains(id)), "{id} is in the log");
    }
    let errors = "bulkerapp_configuration_error{";
    assert!(is_counted(&app, errors, &["\"parse_error\""]).await?);

    // all of them take events, and the good one loads them
    for id in ["good", "lake", "unreadable"] {
        assert_eq!(post(&app, id, "t", "{\"id\":0}").await?, 200, "{id}");
    }
    loaded_to(&database, &good_topic, 1).await?;
    assert_eq!(kafka.read_all(&lake_topic).await?.len(), 1);

    // and what is repaired works without a restart
    let repaired = destination("unreadable", &database);
    console.set(&json!([destination("good", &database), repaired]));
    loaded_to(&database, &unreadable_topic, 1).await?;
    wait_for_health(&app, PATIENCE, |details| details["destinationProblems"].is_null()).await?;

    // and a document that is none changes nothing
    console.set_text(r#"[{"id": "s3cret""#);
    wait_for_health(&app, PATIENCE, |details| {
        let error = details["configurationError"].as_str().unwrap_or_default();
        error.contains("not a JSON array") && !error.contains("s3cret")
    })
    .await?;
    assert_eq!(post(&app, "good", "t", "{\"id\":1}").await?, 200);
    assert!(!app.service.lines().iter().any(|line| line.contains("s3cret")));
    app.stop().await
}

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

/// What the PostgreSQL source reads: rows, a time, and a switch that breaks the connection between two rows.
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

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_others_send_to_are_there_before_their_first_event() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let mut metrics = destination("stats", &database);
    metrics["special"] = json!("metrics");
    let console = Console::start(&json!([])).await?;
    let setup = over_http(&kafka, &database, &console).await;
    let shared = ["all", "again", "dead"].map(|name| format!("{}{name}", setup.prefix));
    let setup = setup
        .with("BULKER_KAFKA_DESTINATIONS_TOPIC_NAME", &shared[0])
        .with("BULKER_KAFKA_DESTINATIONS_TOPIC_PARTITIONS", "3")
        .with("BULKER_KAFKA_DESTINATIONS_RETRY_TOPIC_NAME", &shared[1])
        .with("BULKER_KAFKA_DESTINATIONS_DEAD_LETTER_TOPIC_NAME", &shared[2])
        .with("BULKER_ENABLE_CONSUMERS", "false");
    let special =
        ["metrics", "active_incoming"].map(|table| topic(&setup, "stats", "batch", table));
    let _adopted: Vec<_> = shared.iter().chain(&special).map(|name| kafka.adopt(name)).collect();
    kafka.create_topic(&shared[0], 1, 1, &[]).await?;
    let app = setup.start().await?;
    let has = async |name: &String, partitions: usize| {
        kafka.leaders(name).await.is_ok_and(|leaders| leaders.len() == partitions)
    };
    for (name, partitions) in shared.iter().zip([3, 1, 1]) {
        wait_until(PATIENCE, || has(name, partitions)).await.with_context(|| name.clone())?;
    }
    console.set(&json!([metrics]));
    for name in &special {
        wait_until(PATIENCE, || has(name, 1)).await.with_context(|| name.clone())?;
    }
    app.stop().await
}
