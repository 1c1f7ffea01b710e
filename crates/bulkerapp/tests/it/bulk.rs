//! `POST /bulk`: what reaches the table, what is refused and how, and what a body costs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::{Database, native::OwnRedis, proxy::PostgresProxy, wait_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::app::{Answer, App, DESTINATION, PATIENCE, Setup, TOKEN, events};

/// `/bulk` needs nothing of the loader.
async fn app() -> Result<(App, Database)> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database).with("BULKER_ENABLE_CONSUMERS", "false");
    Ok((setup.start().await?, database))
}

async fn load(app: &App, query: &str, body: &[u8]) -> Result<Answer> {
    load_with(app, query, "", body).await
}

async fn load_with(app: &App, query: &str, schema: &str, body: &[u8]) -> Result<Answer> {
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("X-Jitsu-Schema", schema)];
    app.request("POST", &format!("/bulk/{DESTINATION}?{query}"), &headers, body).await
}

/// The text with the one thing that changes from run to run taken out.
fn without_times(text: &str) -> String {
    let mut parts = text.split("\"timeProcessedMs\":");
    let mut without = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        without.push_str("\"timeProcessedMs\":*");
        without.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    without
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_stored_and_its_state_answered() -> Result<()> {
    let (app, database) = app().await?;
    let body =
        b"{\"id\":1,\"name\":\"a\"}\r\n{\"id\":2,\"name\":\"<b>\"}\n{\"id\":1,\"name\":\"c\"}";
    let answer = load(&app, "tableName=t&mode=batch&pk=id", body).await?;
    assert_eq!(answer.header("content-type").as_deref(), Some("application/json; charset=utf-8"));
    let phase = |name: &str, bytes: &str| {
        format!(r#""{name}":{{"name":"{name}",{bytes}"timeProcessedMs":*,"estimatedCost":0}}"#)
    };
    let phases = [
        phase("consume", r#""bytesProcessed":59,"#),
        phase("batch_size", r#""bytesProcessed":59,"#),
        phase("postgres_prepare_data", ""),
        phase("postgres_load_data", ""),
        phase("merge", ""),
    ];
    let expected = format!(
        concat!(
            r#"{{"message":"ok","state":{{"representation":{{"name":"t","targetName":"t","#,
            r#""schema":{{"id":"bigint","name":"text"}},"primaryKeyFields":["id"],"primaryKeyName":"{key}"}},"#,
            r#""status":"COMPLETED","mode":"batch","processedRows":3,"processedBytes":0,"successfulRows":3,"#,
            r#""processingTimeSec":0,"statistics":{{"name":"total","bytesProcessed":118,"timeProcessedMs":*,"#,
            r#""estimatedCost":0,"states":{{{phases}}}}},"queueSize":0}}}}"#
        ),
        key = database
            .value("select conname from pg_constraint where conrelid = 't'::regclass")
            .await?,
        phases = phases.join(","),
    );
    assert_eq!((answer.status, without_times(&answer.body)), (200, expected));
    let rows = "select string_agg(id || name, ' ' order by id) from t";
    assert_eq!(database.value(rows).await?, "1c 2<b>");

    // what is there stays, equal keys are updated
    load(&app, "tableName=t&mode=batch&pk=id", b"{\"id\":2,\"name\":\"d\"}\n").await?;
    assert_eq!(database.value(rows).await?, "1c 2d");

    let metrics = app.get("/metrics").await?;
    let labels = format!(
        r#"{{destinationId="{DESTINATION}",errorType="",mode="batch",status="success",tableName="t"}}"#
    );
    for line in
        [format!("bulkerapp_handler_bulk{labels} 2"), format!("bulkerapp_handler_bytes{labels} 78")]
    {
        assert!(metrics.contains(&line), "{line}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mode_the_rows_replace_the_table() -> Result<()> {
    let (app, database) = app().await?;
    database.execute("create table t (id bigint); insert into t values (7), (8)").await?;
    let answer = load(&app, "tableName=t", b"{\"id\":1}\n{\"id\":2}\n").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(
        answer.body.contains(r#""status":"COMPLETED","mode":"replace_table","processedRows":2"#)
    );
    let rows = "select string_agg(id::text, ' ' order by id) from t";
    assert_eq!(database.value(rows).await?, "1 2");

    // nothing instead of something is more often a mistake than a wish
    for body in [&b""[..], b"ABORT\n", b"{\"id\":3}\n\n"] {
        load(&app, "tableName=t", body).await?;
        assert_eq!(database.value(rows).await?, "1 2");
    }
    let empty = load(&app, "tableName=t", b"").await?;
    assert_eq!((empty.status, empty.body.as_str()), (200, r#"{"message":"ok"}"#));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_replaced_and_has_to_be_named() -> Result<()> {
    let (app, database) = app().await?;
    let partition = |id: &str| format!("tableName=t&mode=replace_partition&partitionId={id}");
    for (id, body) in [("a", "{\"id\":1}\n{\"id\":2}"), ("b", "{\"id\":3}"), ("a", "{\"id\":4}")] {
        let answer = load(&app, &partition(id), body.as_bytes()).await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let rows = "select string_agg(id || __partition_id, ' ' order by id) from t";
    assert_eq!(database.value(rows).await?, "3b 4a");

    for query in [partition(""), "tableName=t&mode=sideways".to_owned()] {
        let answer = load(&app, &query, b"{\"id\":5}").await?;
        assert_eq!(answer.status, 500);
        let id = answer.body.strip_prefix("{\"error\":\"error# ").context("masked")?;
        let id = id.strip_suffix(": create stream error\"}").context("masked")?;
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        app.service.wait_for_line(id, PATIENCE).await?;
    }
    assert_eq!(database.value(rows).await?, "3b 4a");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn single_events_stay_although_a_later_line_fails() -> Result<()> {
    let (app, database) = app().await?;
    let answer =
        load(&app, "tableName=t&mode=stream", b"{\"id\":1}\n{\"id\":2}\n[]\n{\"id\":3}").await?;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(database.count("t").await?, 2);
    let answer = load(&app, "tableName=t&mode=stream", b"{\"id\":4}").await?;
    let expected = concat!(
        r#"{"message":"ok","state":{"representation":{"name":"t","targetName":"t","schema":{"id":"bigint"}},"#,
        r#""status":"COMPLETED","mode":"stream","processedRows":1,"processedBytes":0,"successfulRows":1,"#,
        r#""processingTimeSec":0,"statistics":{"name":"","timeProcessedMs":0,"estimatedCost":0},"queueSize":0}}"#
    );
    assert_eq!((answer.status, answer.body.as_str()), (200, expected));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_columns_are_made_as_declared() -> Result<()> {
    let (app, database) = app().await?;
    let schema = r#"{"name":"t","fields":[{"name":"id","type":4},{"name":"at","type":5}]}"#;
    let answer = load_with(&app, "tableName=t&mode=batch", schema, b"{\"id\":1}").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let types = "select string_agg(attname || ' ' || format_type(atttypid, null), ', ' order by attnum) \
        from pg_attribute where attrelid = 't'::regclass and attnum > 0";
    assert_eq!(database.value(types).await?, "id text, at timestamp with time zone");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_gets_the_texts_that_clients_know_and_stores_nothing() -> Result<()> {
    let (app, database) = app().await?;
    database.execute("create table small (id bigint check (id < 5))").await?;
    let t = "tableName=t&mode=batch";
    let too_long = [b"{\"a\":\"", "x".repeat(1 << 20).as_bytes(), b"\"}\n"].concat();
    let cases: &[(&str, &str, &[u8], &str)] = &[
        (
            "mode=batch",
            "",
            b"{}",
            "missing required parameter: tableName query parameter is required",
        ),
        (t, "{", b"{}", "schema unmarshal error: not the text of a JSON object"),
        (t, "", b"{\"id\":1}\nABORT <all>\n{\"id\":2}\n", r"aborted: ABORT \u003call\u003e"),
        (t, "", b"{\"id\":1}\nABORTED\r\n", "aborted: ABORTED"),
        (t, "", b"{\"id\":1}\n\n{\"id\":2}\n", "unmarhsal error: Error parsing JSON: "),
        (t, "", b"{\"id\":1}\nnull\n", "unmarhsal error: Error parsing JSON: "),
        (t, "", b"{\"id\":1}\n[1]\n", "unmarhsal error: Error parsing JSON: "),
        (t, "", b"{\"id\":1}{\"id\":2}\n", "unmarhsal error: Error parsing JSON: "),
        (
            t,
            "",
            b"{\"id\":1}\n{\"id\":2,\"__sql_type_id\":5}\n",
            "stream consume error: incorrect type of value for '__sql_type_' hint: ",
        ),
        (t, "", &too_long, "scanner error: bufio.Scanner: token too long"),
        (
            "tableName=small&mode=batch",
            "",
            b"{\"id\":1}\n{\"id\":7}\n",
            "stream complete error: table small refused the batch: SQLSTATE 23514, table small, \
             constraint small_id_check (new row for relation ",
        ),
    ];
    for (query, schema, body, expected) in cases {
        let answer = load_with(&app, query, schema, body).await?;
        let start = format!("{{\"error\":\"{expected}");
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.starts_with(&start), "{} instead of {start}", answer.body);
        assert_eq!(
            answer.header("content-type").as_deref(),
            Some("application/json; charset=utf-8")
        );
    }
    assert_eq!(database.count("t").await? + database.count("small").await?, 0);

    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    let unknown = app.request("POST", "/bulk/nobody?tableName=t", &headers, b"{}").await?;
    assert_eq!(
        (unknown.status, unknown.body.as_str()),
        (404, r#"{"error":"destination not found: destination not found: nobody"}"#)
    );
    let metrics = app.get("/metrics").await?;
    for (id, mode, kind, count) in [
        ("", "", "destination not found", 1),
        (DESTINATION, "batch", "aborted", 2),
        (DESTINATION, "batch", "unmarhsal error", 4),
    ] {
        let line = format!(
            r#"bulkerapp_handler_bulk{{destinationId="{id}",errorType="{kind}",mode="{mode}",status="error",tableName=""}} {count}"#
        );
        assert!(metrics.contains(&line), "{line}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_told_to_the_events_log() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let redis = OwnRedis::start().await?;
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_REDIS_URL", redis.url());
    let app = setup.start().await?;
    load(&app, "tableName=t&mode=batch", b"{\"id\":1}\n{\"id\":2}\n").await?;
    load(&app, "tableName=t&mode=batch", b"{\"id\":3}\nABORT\n").await?;
    load(&app, "mode=batch", b"{\"id\":4}\n").await?;
    let records = async |level: &str| -> Result<Vec<serde_json::Value>> {
        let log = app.ask(&format!("/log/bulker_batch.{level}/{DESTINATION}")).await?;
        let mut records: Vec<serde_json::Value> = serde_json::from_str(&log.body)?;
        Ok(records.iter_mut().map(|record| record["content"].take()).collect())
    };
    let are_written = || async { records("all").await.is_ok_and(|records| records.len() == 3) };
    wait_until(PATIENCE, are_written).await?;
    let [no_table, aborted, stored] = records("all").await?.try_into().expect("three of them");
    assert_eq!(stored["status"], "COMPLETED");
    assert_eq!(stored["representation"]["schema"], serde_json::json!({"id": "bigint"}));
    assert_eq!((&stored["processedRows"], &stored["processedBytes"]), (&2.into(), &16.into()));
    assert!(stored["processingTimeSec"].as_f64().is_some_and(|seconds| seconds > 0.0), "{stored}");
    assert!(stored["error"].is_null() && stored["lastMappedRow"].is_null());
    assert_eq!(
        (&aborted["status"], &aborted["error"]),
        (&"ABORTED".into(), &"aborted: ABORT".into())
    );
    assert_eq!(no_table["status"], "");
    assert_eq!(records("error").await?, [no_table, aborted]);
    app.stop().await
}

/// A request whose body comes in chunks, as long as its sender likes.
struct Upload(TcpStream);

impl Upload {
    async fn begin(app: &App, query: &str) -> Result<Upload> {
        let mut stream = TcpStream::connect(("127.0.0.1", app.port)).await?;
        let head = format!(
            "POST /bulk/{DESTINATION}?{query} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n\
             connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        Ok(Upload(stream))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
        self.0.write_all(bytes).await?;
        Ok(self.0.write_all(b"\r\n").await?)
    }

    async fn finish(mut self) -> Result<String> {
        self.0.write_all(b"0\r\n\r\n").await?;
        let mut answer = String::new();
        timeout(PATIENCE, self.0.read_to_string(&mut answer)).await??;
        Ok(answer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_goes_away_leaves_nothing_behind_but_a_count() -> Result<()> {
    let (app, database) = app().await?;
    let mut upload = Upload::begin(&app, "tableName=t&mode=batch").await?;
    upload.send(b"{\"id\":1}\n{\"id\":2}\n{\"id\":3").await?;
    drop(upload);
    let counted = || async {
        app.get("/metrics").await.is_ok_and(|metrics| {
            metrics.contains(&format!(
                r#"bulkerapp_handler_bulk{{destinationId="{DESTINATION}",errorType="scanner error""#
            ))
        })
    };
    wait_until(PATIENCE, counted).await?;
    assert_eq!(database.count("t").await?, 0);
    app.stop().await
}

/// The most memory that the process ever had, in KiB.
fn peak_memory(app: &App) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", app.service.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_takes_no_more_memory_than_the_limit() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_BULK_MAX_REQUESTS", "1")
        .with("BULKER_BULK_MEMORY_LIMIT_MB", "8");
    let app = setup.start().await?;
    let before = peak_memory(&app)?;
    let mut upload = Upload::begin(&app, "tableName=t&mode=replace_table").await?;
    // 128 MiB of rows
    let row = format!("{{\"id\":1,\"text\":\"{}\"}}\n", "x".repeat(4_000));
    let piece = row.repeat(64);
    let count = (128 << 20) / piece.len();
    for _ in 0..count {
        upload.send(piece.as_bytes()).await?;
    }
    let answer = upload.finish().await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(database.count("t").await?, 64 * count as u64);
    let grown = peak_memory(&app)? - before;
    assert!(grown < 64 << 10, "{grown} KiB more than before");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_no_rows_ends_the_load_before_memory_does() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_BULK_MAX_REQUESTS", "1")
        .with("BULKER_BULK_MEMORY_LIMIT_MB", "1")
        .with("TMPDIR", "/nonexistent");
    let app = setup.start().await?;
    let row = format!("{{\"text\":\"{}\"}}\n", "x".repeat(10_000));
    let few = load(&app, "tableName=t&mode=batch", row.repeat(300).as_bytes()).await?;
    assert_eq!(few.status, 200, "{}", few.body);
    let many = load(&app, "tableName=t&mode=batch", row.repeat(3_000).as_bytes()).await?;
    let expected = "no room for rows: rows beyond the memory limit cannot be kept on disk: \
                    the temporary folder says entity not found";
    assert_eq!((many.status, many.body), (507, format!("{{\"error\":\"{expected}\"}}")));
    assert_eq!(database.count("t").await?, 300);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_call_fill_the_disk_up_to_a_limit_and_leave_it_with_the_call() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_BULK_MEMORY_LIMIT_MB", "1")
        .with("BULKER_BULK_DISK_LIMIT_MB", "16");
    let app = setup.start().await?;
    let row = format!("{{\"text\":\"{}\"}}\n", "x".repeat(10_000));
    for _ in 0..2 {
        let fits =
            load(&app, "tableName=t&mode=replace_table", row.repeat(1_500).as_bytes()).await?;
        assert_eq!(fits.status, 200, "{}", fits.body);
        // given 40 MB of rows, when they are more than memory and disk may have, then nothing is stored
        let large =
            load(&app, "tableName=t&mode=replace_table", row.repeat(4_000).as_bytes()).await?;
        let expected =
            "no room for rows: rows beyond the memory limit are at the limit of the disk, too";
        assert_eq!((large.status, large.body), (507, format!("{{\"error\":\"{expected}\"}}")));
        assert_eq!(database.count("t").await?, 1_500);
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_has_an_end_and_no_place_for_clients_that_are_gone() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_BULK_MAX_REQUESTS", "1")
        .with("BULKER_BULK_MAX_WAITING", "1");
    let app = setup.start().await?;
    // given a call in the middle of its body, and one that waits for its turn
    let mut first = Upload::begin(&app, "tableName=t&mode=stream").await?;
    first.send(b"{\"id\":1}\n").await?;
    wait_until(PATIENCE, || async { database.count("t").await.is_ok_and(|count| count == 1) })
        .await?;
    let mut second = Upload::begin(&app, "tableName=u&mode=batch").await?;
    second.send(b"{\"id\":1}\n").await?;
    // when there is one more, then it is refused
    let is_full = || async {
        let third = load(&app, "tableName=u&mode=batch", b"{\"id\":2}").await;
        third.is_ok_and(|answer| {
            answer.status == 503
                && answer.header("retry-after").is_some()
                && answer.body.contains("1 calls wait for their turn already")
        })
    };
    wait_until(PATIENCE, is_full).await?;
    // when the one that waits goes away, then its place is free, and a body that is here as a whole
    // does not wait for the one that is not
    drop(second);
    let has_room = || async {
        let fourth = load(&app, "tableName=u&mode=batch", b"{\"id\":4}").await;
        fourth.is_ok_and(|answer| answer.status == 200)
    };
    wait_until(PATIENCE, has_room).await?;
    let stored = "select string_agg(id::text, ' ') from u where id in (1, 4)";
    assert_eq!(database.value(stored).await?, "4");
    assert!(first.finish().await?.starts_with("HTTP/1.1 200 "));
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_clients_invent_leave_nothing_in_the_events_log() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let redis = OwnRedis::start().await?;
    let setup = Setup::new(&kafka, &database)
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_REDIS_URL", redis.url());
    let app = setup.start().await?;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    let invented = app.request("POST", "/bulk/invented?tableName=t", &headers, b"{}").await?;
    assert_eq!(invented.status, 404);
    load(&app, "tableName=t&mode=batch", b"{\"id\":1}").await?;
    let log = async |actor: &str| app.ask(&format!("/log/bulker_batch.all/{actor}")).await;
    let is_written = || async { log(DESTINATION).await.is_ok_and(|log| log.body != "[]") };
    wait_until(PATIENCE, is_written).await?;
    assert_eq!(log("invented").await?.body, "[]");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_the_database_and_for_its_turn() -> Result<()> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let proxy = PostgresProxy::start(database.host(), database.port()).await?;
    let setup = Setup::new(&kafka, &database)
        .through(&proxy.host(), proxy.port())
        .with("BULKER_ENABLE_CONSUMERS", "false")
        .with("BULKER_BULK_MAX_REQUESTS", "1");
    let app = setup.start().await?;
    let mut first = Upload::begin(&app, "tableName=t&mode=stream").await?;
    first.send(b"{\"text\":\"x\"}\n").await?;
    wait_until(PATIENCE, || async { database.count("t").await.is_ok_and(|count| count == 1) })
        .await?;
    proxy.pause();
    let piece = format!("{{\"text\":\"{}\"}}\n", "x".repeat(1_000_000));
    // the connection's own buffers take some
    let mut sent = 0;
    while let Ok(done) = timeout(Duration::from_secs(1), first.send(piece.as_bytes())).await {
        done?;
        sent += 1;
        ensure!(sent < 100, "100 MB were taken while no row can be stored");
    }
    // a second one is not begun
    let small = events(0..3).join("\n");
    let mut second = Upload::begin(&app, "tableName=u&mode=batch").await?;
    second.send(small.as_bytes()).await?;
    let mut second = tokio::spawn(second.finish());
    assert!(
        timeout(Duration::from_millis(200), &mut second).await.is_err(),
        "answered before its turn"
    );

    drop(first); // its last line is cut
    proxy.resume();
    assert!(second.await??.starts_with("HTTP/1.1 200 "));
    assert_eq!(database.count("u").await?, 3);
    app.stop().await
}
