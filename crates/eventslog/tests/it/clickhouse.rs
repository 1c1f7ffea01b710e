//! What ClickHouse is told. There is no ClickHouse server in the packages that tests can use, so a
//! listener on loopback stands in for it: it records requests and answers as ClickHouse does. The
//! statements and rows pinned here were run by hand on the engine of ClickHouse 26.9 (as chDB).

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};
use eventslog::{EventType, EventsLogConfig, Level, Query};
use serde_json::json;
use testkit::wait_until;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::running::{NEVER, PATIENCE, QUICKLY, Running, config, stream};

/// A request as it came.
#[derive(Debug, Clone)]
struct Request {
    line: String,
    headers: Vec<String>,
    body: String,
}

/// Answers requests with what is set, and records them.
#[derive(Clone, Default)]
struct StandIn {
    requests: Arc<Mutex<Vec<Request>>>,
    /// Requests that are still to be refused.
    refusals: Arc<AtomicUsize>,
    answer: Arc<Mutex<String>>,
}

impl StandIn {
    /// Serves on this port of loopback until the test is over.
    async fn serve(&self, port: u16) -> Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let stand_in = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let stand_in = stand_in.clone();
                tokio::spawn(async move { stand_in.answer(client).await });
            }
        });
        Ok(())
    }

    async fn answer(&self, client: TcpStream) -> Result<()> {
        let mut client = BufReader::new(client);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                anyhow::ensure!(client.read_line(&mut line).await? > 0, "gone");
                match line.trim_end() {
                    "" => break,
                    line => lines.push(line.to_owned()),
                }
            }
            let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.context("a length")?.parse()?];
            client.read_exact(&mut body).await?;
            let (line, body) = (lines.remove(0), String::from_utf8(body)?);
            self.requests.lock().expect("nobody panics while holding it").push(Request {
                line,
                headers: lines,
                body,
            });
            let take = |left: usize| left.checked_sub(1);
            let is_refused =
                self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
            let answer = if is_refused {
                // as ClickHouse says that it reads no row with a secret in it
                let body = "Code: 27. DB::Exception: Cannot parse input: s3cret\n";
                format!(
                    "HTTP/1.1 400 Bad Request\r\nX-ClickHouse-Exception-Code: 27\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
            } else {
                let body = self.answer.lock().expect("nobody panics while holding it").clone();
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            };
            client.write_all(answer.as_bytes()).await?;
        }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("nobody panics while holding it").clone()
    }
}

fn at(port: u16) -> EventsLogConfig {
    config(&[
        &format!("--clickhouse-host=127.0.0.1:{port}"),
        "--clickhouse-database=logs",
        "--clickhouse-username=bulker",
        "--clickhouse-password=s3cret",
        "--redis-url=redis://127.0.0.1:1", // ClickHouse wins
    ])
}

#[tokio::test]
async fn an_insert_has_a_row_for_each_event_in_the_order_of_the_table() -> Result<()> {
    let (stand_in, port) = (StandIn::default(), testkit::free_port()?);
    stand_in.serve(port).await?;
    let running = Running::start(&at(port), NEVER)?;
    let before = jiff::Timestamp::now().as_millisecond();
    running.log.post("d\t\"1", EventType::BulkerBatch, Level::Error, || json!({"a": "\\ \u{1} é"}));
    running.log.post("d2", EventType::BulkerStream, Level::Info, || json!({"n": 1}));
    running.stop().await?;

    let requests = stand_in.requests();
    let [Request { line, headers, body }] = requests.as_slice() else {
        panic!("one request: {requests:?}")
    };
    assert_eq!(
        line,
        "POST /?database=logs&query=INSERT+INTO+events_log+FORMAT+JSONCompactEachRow&async_insert=1\
         &wait_for_async_insert=0&async_insert_busy_timeout_ms=10000&date_time_input_format=best_effort HTTP/1.1"
    );
    for header in ["x-clickhouse-user: bulker", "x-clickhouse-key: s3cret"] {
        assert!(headers.iter().any(|found| found == header), "{headers:?}");
    }
    let rows: Vec<[String; 5]> =
        body.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let expected = [
        ["d2", "bulker_stream", "info", r#"{"n":1}"#],
        ["d\t\"1", "bulker_batch", "error", "{\"a\":\"\\\\ \\u0001 é\"}"],
    ];
    assert_eq!(rows.len(), expected.len(), "a failure once, not twice");
    for (row, expected) in rows.iter().zip(expected) {
        let at: jiff::Timestamp = row[0].parse()?;
        assert!((before..before + 60_000).contains(&at.as_millisecond()), "{row:?}");
        assert!(row[0].ends_with('Z'), "{row:?}");
        assert_eq!(row[1..], expected);
    }
    let first = body.lines().next().context("a line")?;
    assert_eq!(
        first[first.find(',').context("a comma")?..],
        *r#","d2","bulker_stream","info","{\"n\":1}"]"#
    );
    Ok(())
}

#[tokio::test]
async fn what_clickhouse_does_not_take_is_sent_again() -> Result<()> {
    // given that nobody listens, and later somebody who refuses twice
    let (stand_in, port) = (StandIn::default(), testkit::free_port()?);
    stand_in.refusals.store(2, Ordering::SeqCst);
    let running = Running::start(&at(port), QUICKLY)?;
    let post = |n: u32| {
        running.log.post("d", EventType::BulkerBatch, Level::Info, || json!({ "n": n }));
    };
    post(1);
    wait_until(PATIENCE, || async { running.errors("clickhouse error") > 1 }).await?;
    stand_in.serve(port).await?;
    wait_until(PATIENCE, || async { running.errors("clickhouse error: refused") > 0 }).await?;
    post(2);
    wait_until(PATIENCE, || async { stand_in.requests().len() == 3 }).await?;
    running.stop().await?;
    // then the one that is taken has all events, in order, and no other one follows
    let requests = stand_in.requests();
    assert_eq!(requests.len(), 3);
    let numbers: Vec<_> = requests[2]
        .body
        .lines()
        .filter_map(|line| {
            Some(line.rsplit_once(r#"\"n\":"#)?.1.trim_end_matches("}\"]").to_owned())
        })
        .collect();
    assert_eq!(numbers, ["1", "2"]);
    Ok(())
}

#[tokio::test]
async fn rows_are_read_as_records() -> Result<()> {
    let (stand_in, port) = (StandIn::default(), testkit::free_port()?);
    stand_in.serve(port).await?;
    let rows = [
        r#"[1700000000001, 18446744073709551615, "bulker_batch", "d", "{\"a\":\"é\"}"]"#,
        r#"[1700000000000, 7, "bulker_batch", "d", "not JSON"]"#,
        r#"[1700000000000, 5, "bulker_batch", "d", "{}"]"#,
    ];
    *stand_in.answer.lock().expect("nobody panics while holding it") = rows.join("\n") + "\n";
    let running = Running::start(&at(port), NEVER)?;
    let query = Query { streams: vec![stream("bulker_batch", "d")], ..Query::default() };
    let records = running.log.read(&query).await?.records;
    let found: Vec<_> = records.iter().map(|r| (r.id.to_string(), r.content.get())).collect();
    assert_eq!(
        found,
        [
            ("1700000000001-18446744073709551615".to_owned(), r#"{"a":"é"}"#),
            ("1700000000000-7".to_owned(), "null"),
            ("1700000000000-5".to_owned(), "{}")
        ]
    );
    assert_eq!(running.errors("unmarshal_error"), 1);
    // few at a time, although all are wanted
    let [asked] = stand_in.requests().try_into().expect("one question");
    assert!(asked.body.starts_with("select ") && asked.body.contains(" limit 32 "), "{asked:?}");
    // what the server says of a refusal may quote a row
    stand_in.refusals.store(1, Ordering::SeqCst);
    let error = running.log.read(&query).await.unwrap_err();
    assert_eq!(error.to_string(), "clickhouse answered 400, code 27");
    running.stop().await
}
