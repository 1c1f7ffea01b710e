//! One stream, read from its end.

use anyhow::Result;
use eventslog::{Position, Query, RecordId};
use testkit::wait_until;

use crate::running::{PATIENCE, QUICKLY, Running, actor, ask, connect, in_redis, stream};

const FIRST: i64 = 1_700_000_000_000;

#[tokio::test]
async fn a_range_of_a_stream_is_read_newest_first() -> Result<()> {
    // given five events, two of them in one millisecond
    let url = testkit::redis_url().await?;
    let (mut redis, actor) = (connect(&url).await?, actor());
    let key = format!("events_log:incoming.all#{actor}");
    for (n, id) in ["0-1", "1-0", "1-1", "2-0", "3-0"].into_iter().enumerate() {
        let (millis, number) = id.split_once('-').unwrap_or_default();
        let id = format!("{}-{number}", FIRST + millis.parse::<i64>()?);
        let event = format!(r#"{{"n": {n}}}"#);
        let _: String = ask(&mut redis, &["XADD", &key, &id, "event", &event]).await?;
    }
    let running = Running::start(&in_redis(&url, 100), QUICKLY)?;
    let all = Query { streams: vec![stream("incoming", &actor)], ..Query::default() };
    let after = |millis: i64, number| {
        let id = RecordId { millis: millis.try_into().unwrap_or_default(), number };
        Some(Position { id, stream: stream("incoming", &actor) })
    };
    let cases = [
        ("all", all.clone(), "4 3 2 1 0"),
        ("newest", Query { limit: Some(2), ..all.clone() }, "4 3"),
        ("from", Query { start: Some(FIRST + 1), ..all.clone() }, "4 3 2 1"),
        ("to", Query { end: Some(FIRST + 1), ..all.clone() }, "2 1 0"),
        ("between", Query { start: Some(FIRST + 1), end: Some(FIRST + 2), ..all.clone() }, "3 2 1"),
        ("before", Query { after: after(FIRST + 1, 1), ..all.clone() }, "1 0"),
        ("before time", Query { after: after(FIRST + 1, u64::MAX), ..all.clone() }, "2 1 0"),
        (
            "before and to",
            Query { after: after(FIRST + 2, 0), end: Some(FIRST), ..all.clone() },
            "0",
        ),
        ("nothing", Query { start: Some(FIRST + 4), ..all.clone() }, ""),
        ("failures", Query { errors_only: true, ..all.clone() }, ""),
    ];
    for (name, query, expected) in cases {
        let records = running.log.read(&query).await?.records;
        let numbers: Vec<_> = records
            .iter()
            .map(|record| record.content.get().trim_start_matches("{\"n\": ").trim_end_matches('}'))
            .collect();
        assert_eq!(numbers.join(" "), expected, "{name}");
    }
    running.stop().await
}

#[tokio::test]
async fn what_is_no_event_is_counted() -> Result<()> {
    let url = testkit::redis_url().await?;
    let (mut redis, actor) = (connect(&url).await?, actor());
    let key = format!("events_log:incoming.all#{actor}");
    for [id, field, event] in [
        ["5-0", "event", "{}"],
        ["1700000000000-0", "event", "{\"n\":1}"],
        ["1700000000001-0", "event", "{\"n\":"],
        ["1700000000002-0", "other", "{}"],
        ["1700000000003-0", "event", "[]"],
    ] {
        let _: String = ask(&mut redis, &["XADD", &key, id, field, event]).await?;
    }
    let running = Running::start(&in_redis(&url, 100), QUICKLY)?;
    let query = Query { streams: vec![stream("incoming", &actor)], ..Query::default() };
    let records = running.log.read(&query).await?.records;
    let found: Vec<_> =
        records.iter().map(|record| format!("{} {}", record.id, record.content.get())).collect();
    // a content that is none is null; an id without a time has no place
    let expected = [
        "1700000000003-0 []",
        "1700000000002-0 null",
        "1700000000001-0 null",
        "1700000000000-0 {\"n\":1}",
    ];
    assert_eq!(found, expected);
    assert_eq!(running.errors("unmarshal_error"), 2);
    assert_eq!(running.errors("parse_timestamp_error"), 1);
    // a key that is something else is an error, and the next reader is not hurt
    let () = ask(&mut redis, &["SET", &key, "x"]).await?;
    let error = running.log.read(&query).await.unwrap_err();
    assert_eq!(error.to_string(), "redis: answered WRONGTYPE");
    let () = ask(&mut redis, &["DEL", &key]).await?;
    wait_until(PATIENCE, || async { running.log.read(&query).await.is_ok() }).await?;
    running.stop().await
}

#[tokio::test]
async fn records_are_read_up_to_a_number_of_bytes() -> Result<()> {
    // given a stream of more records than Redis is asked for at a time, of a kilobyte each
    let url = testkit::redis_url().await?;
    let (mut redis, actor) = (connect(&url).await?, actor());
    let key = format!("events_log:incoming.all#{actor}");
    let event = format!("\"{}\"", "x".repeat(998));
    for n in 0..100 {
        let id = format!("{}-0", FIRST + n);
        let _: String = ask(&mut redis, &["XADD", &key, &id, "event", &event]).await?;
    }
    let running = Running::start(&in_redis(&url, 100), QUICKLY)?;
    let all = Query { streams: vec![stream("incoming", &actor)], ..Query::default() };
    let with = |limit, max_bytes| Query { limit, max_bytes, ..all.clone() };
    for (query, count, is_cut) in [
        (with(None, None), 100, false),
        (with(None, Some(100_000)), 100, false),
        (with(None, Some(99_999)), 99, true),
        (with(None, Some(2_500)), 2, true),
        (with(Some(2), Some(2_500)), 2, false),
        (with(None, Some(1)), 1, true),
    ] {
        let found = running.log.read(&query).await?;
        assert_eq!((found.records.len(), found.is_cut), (count, is_cut), "{query:?}");
    }
    running.stop().await
}
