//! `GET /failed`: which failed events are shown, and that it ends.

use anyhow::{Context, Result, ensure};
use testkit::{Kafka, Topic, native::OwnKafka};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::timeout,
};

use crate::app::{Answer, App, DESTINATION, PATIENCE, Setup, TOKEN};

/// A bulkerapp with a dead letter topic of its own. Nothing is loaded, so that nobody else reads.
async fn setup(kafka: &Kafka) -> Result<(Setup, Topic)> {
    let database = testkit::postgres().await?;
    let setup = Setup::new(kafka, &database);
    let dead = kafka.adopt(format!("{}dead-letter", setup.prefix));
    let setup = setup
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_KAFKA_DESTINATIONS_DEAD_LETTER_TOPIC_NAME", dead.name());
    Ok((setup, dead))
}

async fn failed(app: &App, query: &str) -> Result<Answer> {
    let bearer = format!("Bearer {TOKEN}");
    let path = format!("/failed/{DESTINATION}?{query}");
    app.request("GET", &path, &[("authorization", &bearer)], b"").await
}

async fn lines(app: &App, query: &str) -> Result<Vec<String>> {
    let answer = failed(app, query).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
    assert_eq!(answer.header("content-type").as_deref(), Some("application/x-ndjson"));
    let body = answer.unchunked()?;
    ensure!(body.is_empty() || body.ends_with('\n'), "{body}");
    Ok(body.lines().map(ToOwned::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_shown_by_table_mode_reason_and_time() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let (setup, dead) = setup(&kafka).await?;
    kafka.create_topic(&dead, 1, 1, &[]).await?;
    let of = |rest: &str| format!("{}in.id.{rest}", setup.prefix);
    let failures = [
        ("{ \"n\": 1,\n \"big\": 12345678901234567890 }", of("it.m.batch.t.t"), "no such column"),
        ("[not an object", of("it.m.batch.t.t"), "not JSON"),
        ("{\"n\":2}", of("it.m.batch.t.u"), "no such type"),
        ("{\"n\":3}", of("it.m.stream.t.t"), "no such column"),
        ("{\"n\":4}", of("it.m.batch.t.t.p.1"), "no such column"),
        ("{\"n\":5}", of("other.m.batch.t.t"), "no such column"),
        ("{\"n\":6}", "in.id.it.m.batch.t.t".to_owned(), "of another installation"),
    ];
    for (value, topic, error) in &failures {
        let headers = [("error", *error), ("original_topic", topic.as_str()), ("retries", "5")];
        kafka.produce(&dead, 0, "key", value, &headers).await?;
    }
    kafka.produce(&dead, 0, "key", "{\"n\":7}", &[]).await?;
    // the end of the topic is a marker that nobody is ever given
    kafka.produce_transaction(&dead, 0, &["{\"n\":8}"], false).await?;
    let at = |index: usize, records: &[testkit::Record]| records[index].timestamp.context("a time");
    let records = kafka.read_all(&dead).await?;
    let (from_second, to_second) = (at(1, &records)?, at(1, &records)?);

    let app = setup.start().await?;
    let first = r#"{"n":1,"big":12345678901234567890}"#;
    let second = r#"{"UNPARSABLE_MESSAGE":"[not an object"}"#;
    let cases: &[(&str, &[&str])] = &[
        ("tableName=t", &[first, second]),
        ("status=dead&mode=batch&tableName=t", &[first, second]),
        ("mode=stream&tableName=t", &[r#"{"n":3}"#]),
        ("tableName=u", &[r#"{"n":2}"#]),
        ("tableName=nothing", &[]),
        ("", &[first, second, r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":4}"#]),
        ("mode=batch", &[first, second, r#"{"n":2}"#, r#"{"n":4}"#]),
        ("reason=such+column", &[first, r#"{"n":3}"#, r#"{"n":4}"#]),
        ("reason=column&tableName=t", &[first]),
        (&format!("tableName=t&start={from_second}"), &[second]),
        (&format!("tableName=t&end={to_second}"), &[first, second]),
        ("start=2100-01-01", &[]),
        ("end=2020-01-01", &[]),
    ];
    for (query, expected) in cases {
        assert_eq!(lines(&app, query).await?, *expected, "{query}");
    }
    // with what is known of the failure
    let detailed = lines(&app, "tableName=u&details=true").await?;
    let failed_at = jiff::Timestamp::from_millisecond(at(2, &records)?)?;
    assert_eq!(
        detailed,
        [format!(
            r#"{{"tableName":"u","mode":"batch","reason":"no such type","retries":5,"failedAt":"{failed_at}","retryAt":null,"event":{{"n":2}}}}"#
        )]
    );
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_wait_for_a_retry_are_shown() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let (setup, _dead) = setup(&kafka).await?;
    let retry = kafka.adopt(format!("{}in.id.{DESTINATION}.m.retry.t._all_", setup.prefix));
    let app = setup.start().await?;
    assert!(lines(&app, "status=retry").await?.is_empty(), "there is no such topic yet");
    assert!(lines(&app, "").await?.is_empty(), "nor a dead letter topic");

    kafka.create_topic(&retry, 1, 1, &[]).await?;
    assert!(lines(&app, "status=retry").await?.is_empty(), "it is empty");
    let topic = setup.topic("t");
    // more than fits into one piece of the answer
    for number in 0..6 {
        let event = format!("{{\"n\":{number},\"text\":\"{}\"}}", "x".repeat(40_000));
        kafka.produce(&retry, 0, "key", event, &[("original_topic", &topic)]).await?;
    }
    let due = lines(&app, "status=retry&tableName=t&details=true").await?;
    assert!(due[0].contains(r#""retryAt":null,"event":{"n":0,"#), "{}", &due[0][..200]);
    let waiting = lines(&app, "status=retry&tableName=t").await?;
    assert_eq!(waiting.len(), 6);
    assert!(waiting[5].starts_with("{\"n\":5,"), "{}", &waiting[5][..20]);

    // what retention took is not waited for
    kafka.delete_records_before(&retry, 0, 4).await?;
    assert_eq!(lines(&app, "status=retry&tableName=t").await?.len(), 2);
    let group = kafka.committed("bulkerapp-fetcher", &retry, 0).await?;
    assert_eq!(group, None, "nobody's progress");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_kafka_cuts_short_is_not_taken_for_all_of_it() -> Result<()> {
    let own = OwnKafka::start().await?;
    let kafka = own.kafka();
    let (setup, dead) = setup(&kafka).await?;
    kafka.create_topic(&dead, 1, 1, &[]).await?;
    let topic = setup.topic("t");
    // more than is fetched ahead and fits into the buffers of a connection
    let event = format!("{{\"text\":\"{}\"}}", "x".repeat(900_000));
    for _ in 0..20 {
        kafka.produce(&dead, 0, "key", &event, &[("original_topic", &topic)]).await?;
    }
    let app = setup
        .with("BULKER_LOADER_STALL_TIMEOUT_SEC", "1")
        .with("BULKER_SHUTDOWN_TIMEOUT_SEC", "2")
        .start()
        .await?;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(64 << 10)?;
    let mut stream = socket.connect(([127, 0, 0, 1], app.port).into()).await?;
    let request = format!(
        "GET /failed/{DESTINATION} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n\
         connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.readable().await?;
    own.kill9().await?;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await?;
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    assert!(read.is_err() || !answer.ends_with(b"\r\n0\r\n\r\n"), "{} bytes", answer.len());
    app.service.wait_for_line("failed events not read to the end", PATIENCE).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_questions_get_a_reason_and_users_none_of_it() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let (setup, _dead) = setup(&kafka).await?;
    let app = setup.start().await?;
    for (query, expected) in [
        ("status=lost", "unknown status: lost (should be 'retry' or 'dead')"),
        ("mode=lost", "unknown mode: lost (should be 'batch' or 'stream')"),
        (
            "start=yesterday",
            "'start' parameter must be either unix timestamp or date in '2006-01-02' format",
        ),
    ] {
        let answer = failed(&app, query).await?;
        assert_eq!((answer.status, answer.body), (400, format!(r#"{{"error":"{expected}"}}"#)));
    }
    app.stop().await?;

    let app = setup.with("BULKER_RAW_ADMIN_AUTH_TOKENS", "of-an-administrator").start().await?;
    let answer = failed(&app, "").await?;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (403, r#"{"error":"Administrator token is required"}"#)
    );
    let headers = [("authorization", "Bearer of-an-administrator")];
    assert_eq!(app.request("GET", "/failed/it", &headers, b"").await?.status, 200);
    app.stop().await
}
