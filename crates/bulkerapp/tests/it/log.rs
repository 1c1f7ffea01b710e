//! `GET /log/:eventType/:actorId`, byte for byte.

use anyhow::{Context, Result};
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use testkit::{
    native::OwnRedis,
    process::{Service, http_status},
    wait_until,
};

use crate::app::{App, PATIENCE, Setup, TOKEN};

/// A Redis of the test's own, and an app that keeps its log there. Destinations are named in
/// `more`.
pub(crate) struct Logged {
    pub(crate) own: OwnRedis,
    pub(crate) redis: MultiplexedConnection,
    pub(crate) app: App,
}

impl Logged {
    pub(crate) async fn start(destinations: &[&str]) -> Result<Logged> {
        let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
        let own = OwnRedis::start().await?;
        let mut setup = Setup::new(&kafka, &database).with("BULKER_REDIS_URL", own.url());
        for id in destinations {
            let value = format!(r#"{{id: "{id}", type: "none"}}"#);
            setup = setup.with(&format!("BULKER_DESTINATION_{id}"), &value);
        }
        let app = setup.start().await?;
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let client = redis::Client::open(own.url())?;
        let redis = client.get_multiplexed_async_connection_with_config(&patient).await?;
        Ok(Logged { own, redis, app })
    }

    /// Puts an event into a stream.
    pub(crate) async fn add(&mut self, stream: &str, id: &str, event: &str) -> Result<()> {
        let key = format!("events_log:{stream}");
        let mut command = redis::cmd("XADD");
        command.arg(key).arg(id).arg("event").arg(event);
        command.query_async::<String>(&mut self.redis).await.context("XADD")?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_answered_newest_first() -> Result<()> {
    let mut logged = Logged::start(&[]).await?;
    let first = r#"{"status":"COMPLETED","n":12345678901234567890123,"a":"<é>"}"#;
    let events = [
        ("1700000000000-0", first),
        ("1700000000120-0", r#"{"n": 2}"#),
        ("1700000000120-1", r#"{"n":3}"#),
        ("1700092800000-0", r#"{"n":4}"#), // 2023-11-16
    ];
    for (id, event) in events {
        logged.add("bulker_batch.all#d 1", id, event).await?;
    }
    logged.add("bulker_batch.error#d 1", "1700000000120-1", r#"{"n":3}"#).await?;

    let four = r#"{"id":"1700092800000-0","date":"2023-11-16T00:00:00Z","content":{"n":4}}"#;
    let three = r#"{"id":"1700000000120-1","date":"2023-11-14T22:13:20.12Z","content":{"n":3}}"#;
    let two = r#"{"id":"1700000000120-0","date":"2023-11-14T22:13:20.12Z","content":{"n": 2}}"#;
    let one =
        &format!(r#"{{"id":"1700000000000-0","date":"2023-11-14T22:13:20Z","content":{first}}}"#);
    let json = |records: &[&str]| ("application/json", format!("[{}]", records.join(",")));
    let lines = |records: &[&str]| {
        let lines = records.iter().map(|record| format!("{record}\n"));
        ("application/x-ndjson", lines.collect::<String>())
    };
    let fits = four.len() + 1 + three.len();
    let cases = [
        ("all", String::new(), json(&[four, three, two, one])),
        ("info", String::new(), json(&[four, three, two, one])),
        ("error", String::new(), json(&[three])),
        ("all", "?ndjson=true".to_owned(), lines(&[four, three, two, one])),
        ("all", "?ndjson=yes&limit=1".to_owned(), json(&[four])),
        ("all", "?limit=2&ndjson=1".to_owned(), lines(&[four, three])),
        ("all", "?limit=0".to_owned(), json(&[four, three, two, one])),
        ("all", format!("?maxBytes={fits}"), json(&[four, three])),
        ("all", format!("?maxBytes={}", fits - 1), json(&[four])),
        ("all", "?maxBytes=5".to_owned(), json(&[])),
        ("all", "?start=1700000000120".to_owned(), json(&[four, three, two])),
        ("all", "?start=2023-11-15".to_owned(), json(&[four])),
        ("all", "?end=2023-11-16".to_owned(), json(&[four, three, two, one])),
        ("all", "?end=1700000000119".to_owned(), json(&[one])),
        ("all", "?beforeId=1700000000120-1".to_owned(), json(&[two, one])),
        ("all", "?beforeId=1700092800000-0&end=1700000000000".to_owned(), json(&[one])),
        (
            "all",
            "?start=&end=&limit=&maxBytes=&beforeId=&ndjson=".to_owned(),
            json(&[four, three, two, one]),
        ),
    ];
    for (level, query, (content_type, body)) in cases {
        let answer = logged.app.ask(&format!("/log/bulker_batch.{level}/d%201{query}")).await?;
        assert_eq!((answer.status, answer.body.as_str()), (200, body.as_str()), "{level}{query}");
        assert_eq!(answer.header("content-type").as_deref(), Some(content_type), "{query}");
    }
    assert_eq!(logged.app.ask("/log/bulker_batch.all/nobody").await?.body, "[]");
    assert_eq!(logged.app.ask("/log/bulker_batch.all/nobody?ndjson=t").await?.body, "");
    logged.app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_of_large_records_ends_early_and_is_gone_on_behind() -> Result<()> {
    // given 15 MB in a stream, and one record that is more than a reply has
    let mut logged = Logged::start(&["d"]).await?;
    let event = format!(r#"{{"a":"{}"}}"#, "x".repeat(3_000_000));
    let huge = event.replace('x', "xxx");
    logged.add("bulker_batch.all#d", "1700000000000-0", &huge).await?;
    for id in 1..=5 {
        logged.add("bulker_batch.all#d", &format!("170000000000{id}-0"), &event).await?;
    }
    // when all of them are wanted, then a reply has what fits, and one in any case
    let ids = |body: &str, at: &str| -> Result<Vec<String>> {
        let reply: serde_json::Value = serde_json::from_str(body)?;
        let records = if at.is_empty() { &reply } else { &reply[at] };
        let records = records.as_array().context("an array")?;
        let last = |id: &str| id.split('-').next().unwrap_or_default()[12..].to_owned();
        Ok(records.iter().map(|record| last(record["id"].as_str().unwrap_or_default())).collect())
    };
    for (query, expected) in [
        ("limit=0", &["5", "4"][..]),
        ("limit=999&beforeId=1700000000004-0", &["3", "2"]),
        ("limit=999&beforeId=1700000000002-0", &["1"]),
        ("limit=999&beforeId=1700000000001-0", &["0"]),
    ] {
        let answer = logged.app.ask(&format!("/log/bulker_batch.all/d?{query}")).await?;
        assert_eq!(ids(&answer.body, "")?, expected, "{query}");
    }
    // and those over all destinations end with the record that passes the limit
    let (mut found, mut cursor) = (Vec::new(), Some(String::new()));
    while let Some(at) = cursor {
        let answer = logged.app.ask(&format!("/events?limit=1000{at}")).await?;
        found.push(ids(&answer.body, "events")?.concat());
        let reply: serde_json::Value = serde_json::from_str(&answer.body)?;
        cursor = reply["cursor"].as_str().map(|cursor| format!("&cursor={cursor}"));
    }
    assert_eq!(found[..2], ["543", "210"], "{found:?}");
    assert_eq!(found.concat(), "543210");
    logged.app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn write_keys_are_not_shown_to_readers() -> Result<()> {
    let mut logged = Logged::start(&[]).await?;
    let event = r#"{"body":"{\"writeKey\": \"site:hunter2\",\"n\":1}","status":"SUCCESS"}"#;
    for kind in ["incoming", "function"] {
        logged.add(&format!("{kind}.all#s"), "1700000000000-0", event).await?;
    }
    let body = |content: &str| {
        format!(r#"[{{"id":"1700000000000-0","date":"2023-11-14T22:13:20Z","content":{content}}}]"#)
    };
    let masked = r#"{"body":"{\"writeKey\": \"site:***\",\"n\":1}","status":"SUCCESS"}"#;
    assert_eq!(logged.app.ask("/log/incoming.all/s").await?.body, body(masked));
    // a type that anybody else may write is handed on as it is
    assert_eq!(logged.app.ask("/log/function.all/s").await?.body, body(event));
    logged.app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_makes_no_sense_gets_a_reason() -> Result<()> {
    let logged = Logged::start(&[]).await?;
    let integer = |name: &str| format!("'{name}' parameter must be an integer number");
    let time = |name: &str| {
        format!("'{name}' parameter must be either unix timestamp or date in '2006-01-02' format")
    };
    let cases = [
        ("/log/incoming/s", "'eventType' must be \\u003ctype\\u003e.\\u003clevel\\u003e, for example bulker_batch.error".to_owned()),
        ("/log/incoming.all/s?maxBytes=x", integer("maxBytes")),
        ("/log/incoming.all/s?limit=1.5", integer("limit")),
        ("/log/incoming.all/s?start=yesterday", time("start")),
        ("/log/incoming.all/s?end=17000000000000", time("end")),
        ("/log/incoming.all/s?beforeId=5-0", "'beforeId' parameter must be the id of a record".to_owned()),
        ("/events?type=incoming", "'type' parameter must be bulker_batch or bulker_stream".to_owned()),
        ("/events?status=fine", "'status' parameter must be success or error".to_owned()),
        ("/events?limit=0", "'limit' parameter must be between 1 and 1000".to_owned()),
        ("/events?limit=many", integer("limit")),
        ("/events?cursor=x", "'cursor' parameter must be the cursor of a reply".to_owned()),
        ("/events?start=x", time("start")),
    ];
    for (path, reason) in cases {
        let answer = logged.app.ask(path).await?;
        let expected = format!(r#"{{"error":"{reason}"}}"#);
        assert_eq!((answer.status, answer.body), (400, expected), "{path}");
    }
    for path in ["/log/incoming.all/s", "/events"] {
        assert_eq!(http_status(logged.app.port, path).await?, 401, "{path}");
        let bearer = format!("Bearer {TOKEN}");
        let posted = logged.app.request("POST", path, &[("authorization", &bearer)], b"{}").await?;
        assert_eq!(posted.status, 404, "{path}");
        let slash = logged.app.ask(&format!("{path}/")).await?;
        assert_eq!(slash.header("location").as_deref(), Some(path));
    }
    logged.app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_there_is_nothing_to_read() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let app = Setup::new(&kafka, &database).start().await?;
    assert_eq!(app.ask("/log/incoming.all/s").await?.body, "[]");
    assert_eq!(app.ask("/events").await?.body, r#"{"events":[],"cursor":null}"#);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_away_is_an_error_of_its_readers_alone() -> Result<()> {
    let mut logged = Logged::start(&["d"]).await?;
    logged.add("incoming.all#s", "1700000000000-0", "{}").await?;
    logged.own.kill9().await?;
    for path in ["/log/incoming.all/s", "/events"] {
        let answer = logged.app.ask(path).await?;
        assert_eq!(answer.status, 500, "{path}");
        let start = r#"{"error":"Failed to get events log: redis: "#;
        assert!(answer.body.starts_with(start), "{path}: {}", answer.body);
    }
    assert_eq!(http_status(logged.app.port, "/ready").await?, 200);
    let metrics = logged.app.get("/metrics").await?;
    let count = r#"bulkerapp_event_log_error{errorType="redis error: UNKNOWN"} 2"#;
    assert!(metrics.contains(count), "{metrics}");
    logged.own.restart().await?;
    let app = &logged.app;
    let answers = || async { app.ask("/log/incoming.all/s").await.is_ok_and(|a| a.status == 200) };
    wait_until(PATIENCE, answers).await?;
    logged.app.stop().await
}

#[tokio::test]
async fn an_address_that_is_none_ends_the_start_and_is_not_shown() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with("BULKER_REDIS_URL", "hunter2");
    let mut app = setup.spawn()?;
    let service: &mut Service = &mut app.service;
    let status = service.wait(PATIENCE).await?;
    assert_eq!(status.code(), Some(1));
    let reason = "EVENTS_LOG_REDIS_URL (or REDIS_URL) is not redis://";
    service.wait_for_line(reason, PATIENCE).await?; // its last lines may come after its end
    let lines = service.lines().join("\n");
    assert!(!lines.contains("hunter2"), "{lines}");
    Ok(())
}
