//! `POST /post`: what reaches Kafka, what is refused and how, and what operators see of it.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
};
use testkit::{Kafka, native::OwnKafka, process::http_status, proxy::PostgresProxy, wait_until};
use tokio::task::JoinSet;

use crate::app::{
    Answer, App, DESTINATION, PATIENCE, Setup, TOKEN, assert_exactly_once, events, loaded_to,
};

/// A destination whose topics are not loaded before the test is over.
const NOT_YET: &str = r#"mode: "batch", frequency: 1440"#;

async fn settings_of(kafka: &Kafka, topic: &str) -> Result<HashMap<String, String>> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
    let asked = [ResourceSpecifier::Topic(topic)];
    let mut described = admin.describe_configs(&asked, &AdminOptions::new()).await?;
    let resource = described.pop().context("no answer")?.map_err(|code| anyhow::anyhow!(code))?;
    let settings = resource.entries.into_iter();
    Ok(settings.filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

async fn post_to(app: &App, table: &str, body: &[u8]) -> Result<Answer> {
    let bearer = format!("Bearer {TOKEN}");
    let path = format!("/post/{DESTINATION}?tableName={table}");
    app.request("POST", &path, &[("authorization", &bearer)], body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_reaches_kafka_as_it_was_posted() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with_options(NOT_YET);
    let table = "Account Deactivated User";
    let encoded = "QWNjb3VudCBEZWFjdGl2YXRlZCBVc2Vy";
    let name = format!("{}in.id.{DESTINATION}.m.stream.b64.{encoded}.p.3", setup.prefix);
    let topic = kafka.adopt(name);
    let app = setup.start().await?;

    let bearer = format!("Bearer {TOKEN}");
    let body = r#" {"name": "Zoë",  "n": 1.0, "n": 2} "#;
    let path = format!(
        "/post/{DESTINATION}?tableName={}&modeOverride=stream&partition=3&metricsMeta=query",
        table.replace(' ', "+")
    );
    let headers = [
        ("authorization", bearer.as_str()),
        ("metricsMeta", r#"{"messageId":"m"}"#),
        ("streamOptions", r#"{"primaryKey":"id"}"#),
    ];
    let answer = app.request("POST", &path, &headers, body.as_bytes()).await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"message":"ok"}"#));
    let type_of_body = answer.header("content-type");
    assert_eq!(type_of_body.as_deref(), Some("application/json; charset=utf-8"));

    let records = kafka.read_all(&topic).await?;
    let [record] = records.as_slice() else { panic!("{} records", records.len()) };
    assert_eq!(record.text(), body, "the bytes of the request");
    let key = String::from_utf8(record.key.clone().context("a key")?)?;
    assert_eq!(uuid::Uuid::parse_str(&key)?.get_version_num(), 4);
    assert_eq!(key.len(), 36, "{key}");
    let expected =
        [("metrics_meta", r#"{"messageId":"m"}"#), ("stream_options", r#"{"primaryKey":"id"}"#)];
    let expected = expected.map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())));
    assert_eq!(record.headers, expected);

    let settings = settings_of(&kafka, &topic).await?;
    for (name, value) in
        [("retention.ms", "172800000"), ("segment.ms", "86400000"), ("compression.type", "snappy")]
    {
        assert_eq!(settings.get(name).map(String::as_str), Some(value), "{name}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_meta_data_the_header_is_there_and_empty() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with_options(NOT_YET);
    let topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    assert_eq!(app.post("t", "{}").await?, 200);
    let records = kafka.read_all(&topic).await?;
    assert_eq!(records[0].headers, [("metrics_meta".to_owned(), Some(Vec::new()))]);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_gets_a_reason_and_makes_no_topic() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with_options(NOT_YET);
    let app = setup.start().await?;
    let known = format!("/post/{DESTINATION}?tableName=t");
    let right = format!("Bearer {TOKEN}");
    let wrong = "Bearer not-the-token";
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let deep = [br#"{"a":"#, deep.as_slice(), b"}"].concat();
    let large = [br#"{"a":""#, b"x".repeat(2_000_000).as_slice(), br#""}"#].concat();
    let long_table = format!("/post/{DESTINATION}?tableName={}", "x".repeat(300));
    let cases: &[(&str, &str, &[u8], u16, &str)] = &[
        (&known, "", b"{}", 401, "Authorization header with Bearer token is required"),
        (&known, wrong, b"{}", 401, "Invalid token"),
        ("/post/nobody?tableName=t", &right, b"{}", 404, "destination not found: nobody"),
        (&format!("/post/{DESTINATION}"), &right, b"{}", 400, "tableName query parameter"),
        (&format!("{known}&modeOverride=dead"), &right, b"{}", 400, "invalid bulker mode: dead"),
        (&long_table, &right, b"{}", 400, "exceeds limit (249)"),
        (&known, &right, b"", 400, "invalid event"),
        (&known, &right, b"garbage", 400, "invalid event"),
        (&known, &right, b"{\"a\":1", 400, "invalid event"),
        (&known, &right, b"{\"a\":1}{}", 400, "invalid event"),
        (&known, &right, b"null", 400, "invalid event"),
        (&known, &right, b"[{}]", 400, "invalid event"),
        (&known, &right, b"{\"a\":\"\xff\"}", 400, "invalid event"),
        (&known, &right, &deep, 400, "invalid event"),
        (&known, &right, &large, 413, "larger than"),
    ];
    for (path, token, body, status, reason) in cases {
        let headers = [("authorization", *token)];
        let answer = app.request("POST", path, &headers, body).await?;
        assert_eq!(answer.status, *status, "{path}: {}", answer.body);
        assert!(answer.body.contains(reason), "{path}: {}", answer.body);
        assert!(!answer.body.contains("not-the-token"), "{}", answer.body);
    }
    let ours: Vec<_> =
        kafka.topics().await?.into_iter().filter(|t| setup.is_table_topic(t)).collect();
    assert!(ours.is_empty(), "{ours:?}");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_become_tables_and_columns_and_hold_nothing_up() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let app = setup.start().await?;
    database.execute("create table victim (id int)").await?;
    let long = "x".repeat(300);
    let names =
        [r#"\"; drop table victim; --"#, "'", "a;b", "🙂", r"nul\u0000byte", long.as_str(), ""];
    let body: Vec<_> = names.iter().map(|name| format!(r#""{name}":1"#)).collect();
    let body = format!("{{{},\"id\":1}}", body.join(","));
    let tables = [
        ("%22%3B+drop+table+victim%3B+--", r#"\"; drop table victim; --"#),
        ("%F0%9F%99%82", "🙂"),
        ("a%00b", "a\0b"),
        ("plain", "plain"),
    ];
    let mut topics = Vec::new();
    for (table, _) in tables {
        let answer = post_to(&app, table, body.as_bytes()).await?;
        assert_eq!(answer.status, 200, "{table}: {}", answer.body);
    }
    for topic in kafka.topics().await? {
        if setup.is_table_topic(&topic) {
            topics.push(kafka.adopt(topic));
        }
    }
    for topic in &topics {
        loaded_to(&database, topic, 1).await?;
    }
    app.stop().await?;
    assert_eq!(database.count("victim").await?, 0, "still there");
    // seven names and `id`, each a column of its own
    let columns = "select string_agg(n::text, ' ') from (select count(*) n from pg_attribute a \
        join pg_class c on c.oid = a.attrelid where c.relnamespace = 'public'::regnamespace \
        and c.relkind = 'r' and c.relname not in ('victim', 'bulker_offsets', 'bulker_origins') \
        and attnum > 0 group by c.oid) c";
    assert_eq!(database.value(columns).await?, "8 8 8 8");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_events_of_a_table_share_the_making_of_its_topic() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with_options(NOT_YET);
    let topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    let mut requests = JoinSet::new();
    for event in events(0..50) {
        let port = app.port;
        requests.spawn(async move { crate::app::post(port, "t", &event).await });
    }
    while let Some(status) = requests.join_next().await {
        assert_eq!(status??, 200);
    }
    let metrics = app.get("/metrics").await?;
    let made = format!("bulkerapp_topic_manager_create{{destinationId=\"{DESTINATION}\"");
    let line = metrics.lines().find(|line| line.starts_with(&made)).context("counted")?;
    assert!(line.ends_with(" 1"), "{line}");
    assert_eq!(kafka.read_all(&topic).await?.len(), 50);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_is_a_warning_a_gauge_and_a_detail_of_health() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with_options(NOT_YET);
    let _topic = kafka.adopt(setup.topic("t"));
    let app = setup.start().await?;
    assert_eq!(app.post("t", "{}").await?, 200);
    let in_health = || async {
        app.get("/health").await.is_ok_and(|health| {
            health.contains(r#""topicsWithFewerThanTwoReplicas":1"#)
                && health.contains(r#""topicsWithMinInsyncReplicasBelowTwo":1"#)
        })
    };
    wait_until(PATIENCE, in_health).await?;
    let metrics = app.get("/metrics").await?;
    for reason in ["replication_factor", "min_insync_replicas"] {
        let gauge = format!("bulkerapp_weakly_replicated_topics{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&gauge), "{gauge}");
    }
    app.service.wait_for_line("one lost machine can lose acknowledged events", PATIENCE).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_events_are_refused_and_the_process_is_healthy_but_not_ready() -> Result<()> {
    let own = OwnKafka::start().await?;
    let database = testkit::postgres().await?;
    let setup = Setup::new(&own.kafka(), &database).with_options(NOT_YET);
    let app = setup.start().await?;
    assert_eq!(app.post("t", "{}").await?, 200);
    own.kill9().await?;
    for attempt in 1..=3 {
        let answer = post_to(&app, "t", b"{}").await?;
        assert_eq!(answer.status, 503, "attempt {attempt}: {}", answer.body);
        assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
    }
    // a table whose topic cannot be made now
    assert_eq!(post_to(&app, "other", b"{}").await?.status, 503);
    let is_not_ready =
        || async { http_status(app.port, "/ready").await.is_ok_and(|status| status == 503) };
    wait_until(PATIENCE, is_not_ready).await?;
    assert_eq!(
        http_status(app.port, "/health").await?,
        200,
        "a restart would not bring Kafka back"
    );
    // one that starts meanwhile says the same
    let late = setup.spawn()?;
    let is_healthy =
        || async { http_status(late.port, "/health").await.is_ok_and(|status| status == 200) };
    wait_until(PATIENCE, is_healthy).await?;
    assert_eq!(http_status(late.port, "/ready").await?, 503);
    own.restart().await?;
    for app in [&app, &late] {
        let takes = || async { app.post("t", "{}").await.is_ok_and(|status| status == 200) };
        wait_until(PATIENCE, takes).await?;
    }
    late.stop().await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_keeps_its_deadline_while_the_database_hangs() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let setup = Setup::new(&kafka, &database);
    let through =
        setup.clone().through(&proxy.host(), proxy.port()).with("BULKER_SHUTDOWN_TIMEOUT_SEC", "2");
    let topic = kafka.adopt(setup.topic("t"));
    let app = through.start().await?;
    for event in events(0..10) {
        ensure!(app.post("t", &event).await? == 200);
    }
    loaded_to(&database, &topic, 10).await?;
    proxy.pause();
    for event in events(10..20) {
        ensure!(app.post("t", &event).await? == 200);
    }
    app.stop().await?;
    proxy.resume();
    let second = setup.start().await?;
    loaded_to(&database, &topic, 20).await?;
    second.stop().await?;
    assert_exactly_once(&database, "t", 20).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_body_is_refused_with_words_about_its_encoding() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let app = Setup::new(&kafka, &database).start().await?;
    let bearer = format!("Bearer {TOKEN}");
    for path in [
        format!("/post/{DESTINATION}?tableName=packed"),
        format!("/bulk/{DESTINATION}?tableName=packed"),
        "/test".to_owned(),
    ] {
        let headers = [("authorization", bearer.as_str()), ("content-encoding", "gzip")];
        let answer = app.request("POST", &path, &headers, b"\x1f\x8b\x08\x00").await?;
        let text = r#"{"error":"unsupported content encoding: the body is not unpacked, send it without Content-Encoding"}"#;
        assert_eq!((answer.status, answer.body.as_str()), (415, text), "{path}");
        assert_eq!(answer.header("accept-encoding").as_deref(), Some("identity"), "{path}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_gets_no_more_topics_than_it_may_have() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with_options(NOT_YET)
        .with("BULKER_TOPICS_PER_DESTINATION", "2");
    let _topics = ["a", "b"].map(|table| kafka.adopt(setup.topic(table)));
    let app = setup.start().await?;
    // given as many tables as may be, when there are events for one more, then they are refused and
    // those for the others are not, whatever was seen of the cluster meanwhile
    for table in ["a", "b"] {
        assert_eq!(app.post(table, "{\"id\":1}").await?, 200);
    }
    let is_seen = || async { app.service.lines().iter().any(|l| l.contains("few_replicas=2")) };
    for _ in 0..2 {
        for path in ["tableName=c", "tableName=a&partition=1", "tableName=a&modeOverride=stream"] {
            let answer = post_by(&app, path).await?;
            let text = "too many tables: the destination has 2 topics, and may not have more";
            assert_eq!((answer.status, answer.body), (429, format!(r#"{{"error":"{text}"}}"#)));
        }
        assert_eq!(app.post("a", "{\"id\":2}").await?, 200);
        wait_until(PATIENCE, is_seen).await?;
    }
    let made = kafka.topics().await?.into_iter().filter(|topic| setup.is_table_topic(topic));
    assert_eq!(made.count(), 2);
    // and their names are no labels
    let metrics = app.get("/metrics").await?;
    ensure!(!metrics.contains(r#"tableName="c""#), "{metrics}");

    let answer = post_by(&app, "tableName=a&partition=4294967295").await?;
    let text = "invalid partition: 4294967295 (should be at most 1023)";
    assert_eq!((answer.status, answer.body), (400, format!(r#"{{"error":"{text}"}}"#)));
    app.stop().await
}

async fn post_by(app: &App, query: &str) -> Result<Answer> {
    let bearer = format!("Bearer {TOKEN}");
    let path = format!("/post/{DESTINATION}?{query}");
    app.request("POST", &path, &[("authorization", &bearer)], b"{\"id\":1}").await
}
