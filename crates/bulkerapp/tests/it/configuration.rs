//! Destinations change while the service runs, without harm to the others; what is broken is named
//! and takes nothing else down.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sqlx::Executor;
use testkit::{Database, Kafka, wait_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    app::{App, PATIENCE, Setup, TOKEN, assert_exactly_once, events, loaded_to},
    console::{CONSOLE_TOKEN, Console},
};

/// A destination that loads into this database about once a second.
pub(crate) fn destination(id: &str, database: &Database) -> Value {
    json!({
        "id": id, "type": "postgres", "usesBulker": true, "credentials": database.credentials(),
        "options": {"mode": "batch", "frequency": 0.0167, "batchSize": 1000},
    })
}

/// The same with other options.
pub(crate) fn with_options(destination: &Value, options: &Value) -> Value {
    let mut changed = destination.clone();
    for (key, value) in options.as_object().into_iter().flatten() {
        changed["options"][key] = value.clone();
    }
    changed
}

pub(crate) fn topic(setup: &Setup, id: &str, mode: &str, table: &str) -> String {
    format!("{}in.id.{id}.m.{mode}.t.{table}", setup.prefix)
}

pub(crate) async fn post(app: &App, id: &str, table: &str, event: &str) -> Result<u16> {
    let path = format!("/post/{id}?tableName={table}");
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str())];
    Ok(app.request("POST", &path, &headers, event.as_bytes()).await?.status)
}

pub(crate) async fn health(app: &App) -> Result<Value> {
    app.health().await
}

/// Waits until a detail of `/health` is as wanted.
pub(crate) async fn wait_for_health(
    app: &App,
    limit: Duration,
    holds: impl Fn(&Value) -> bool,
) -> Result<()> {
    let reached =
        wait_until(limit, || async { health(app).await.is_ok_and(|details| holds(&details)) });
    let reached = reached.await;
    reached.with_context(|| format!("the last lines: {:#?}", app.service.lines()))
}

pub(crate) async fn wait_for_status(
    app: &App,
    id: &str,
    status: u16,
    limit: Duration,
) -> Result<()> {
    let reached = wait_until(limit, || async {
        post(app, id, "probe", "{\"probe\":1}").await.is_ok_and(|found| found == status)
    });
    let reached = reached.await;
    reached.with_context(|| format!("{id} never answered {status}"))
}

/// Whether a sample with all these texts in its labels is above 0.
pub(crate) async fn is_counted(app: &App, metric: &str, labels: &[&str]) -> Result<bool> {
    let metrics = app.get("/metrics").await?;
    let mut samples = metrics.lines().filter(|line| line.starts_with(metric));
    Ok(samples.any(|line| labels.iter().all(|label| line.contains(label)) && !line.ends_with(" 0")))
}

pub(crate) fn assert_problem(details: &Value, start: &str, part: &str) {
    let problems = details["destinationProblems"].as_array();
    let found = problems.into_iter().flatten().filter_map(Value::as_str);
    let found: Vec<_> = found.collect();
    assert!(
        found.iter().any(|problem| problem.starts_with(start) && problem.contains(part)),
        "no {start:?} with {part:?} in {found:?}"
    );
}

pub(crate) async fn over_http(kafka: &Kafka, database: &Database, console: &Console) -> Setup {
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
async fn an_upload_ends_as_it_began_although_its_destination_is_removed() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let console = Console::start(&json!([destination("one", &database)])).await?;
    let setup = over_http(&kafka, &database, &console).await;
    let _probe = kafka.adopt(topic(&setup, "one", "batch", "probe"));
    let app = setup.start().await?;
    // more than sockets hold: once it is sent, the load is under way
    let text = "x".repeat(100_000);
    let first: String =
        (0..160).map(|id| format!("{{\"id\":{id},\"text\":\"{text}\"}}\n")).collect();
    let last = "{\"id\":160}\n";
    let head = format!(
        "POST /bulk/one?tableName=t&mode=batch HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer {TOKEN}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{first}",
        first.len() + last.len()
    );
    let mut upload = TcpStream::connect(("127.0.0.1", app.port)).await?;
    upload.write_all(head.as_bytes()).await?;
    console.set(&json!([]));
    wait_for_status(&app, "one", 404, PATIENCE).await?;
    upload.write_all(last.as_bytes()).await?;
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(database.count("t").await?, 161);
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
