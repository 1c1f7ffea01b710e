//! Many streams, read as one.

use anyhow::{Context, Result};
use eventslog::{Position, Query, StreamName};

use crate::running::{QUICKLY, Running, actor, ask, connect, in_redis, stream};

#[tokio::test]
async fn pages_of_many_streams_are_their_records_in_one_order_each_once() -> Result<()> {
    // given streams of very different lengths whose ids are mostly the same, and one that is empty
    let url = testkit::redis_url().await?;
    let mut redis = connect(&url).await?;
    let actor = actor();
    let mut streams = Vec::new();
    let mut expected = Vec::new();
    for (number, length) in [350_u64, 3, 0, 1, 120].into_iter().enumerate() {
        for kind in ["bulker_batch", "bulker_stream"] {
            let name = stream(kind, &format!("{actor}-{number}"));
            for entry in 0..length {
                let id = format!("17000000{:05}-{}", entry / 3, entry % 3);
                let key = format!("events_log:{kind}.all#{}", name.actor);
                let _: String = ask(&mut redis, &["XADD", &key, &id, "event", "{}"]).await?;
                expected.push(Position { id: id.parse()?, stream: name.clone() });
            }
            streams.push(name);
        }
    }
    expected.sort();
    expected.reverse();
    let running = Running::start(&in_redis(&url, 100), QUICKLY)?;
    for limit in [1000, 101, 7, 1] {
        // when they are read page by page
        let mut query = Query { streams: streams.clone(), limit: Some(limit), ..Query::default() };
        let mut found: Vec<Position> = Vec::new();
        loop {
            let page = running.log.read(&query).await?.records;
            let name = |i: usize| -> StreamName { streams[i].clone() };
            found.extend(page.iter().map(|r| Position { id: r.id, stream: name(r.stream) }));
            if page.len() < limit {
                break;
            }
            query.after = Some(found.last().context("a last one")?.clone());
            if limit == 1 && found.len() > 30 {
                break; // the others have shown the end
            }
        }
        // then every record came once, in order
        let upto = if limit == 1 { found.len() } else { expected.len() };
        assert!(found == expected[..upto], "{limit} at a time");
    }
    running.stop().await
}

#[tokio::test]
async fn streams_of_large_records_are_read_in_order_although_their_pieces_are_not_held()
-> Result<()> {
    // given more in the first pieces of all streams than is held
    let url = testkit::redis_url().await?;
    let mut redis = connect(&url).await?;
    let actor = actor();
    let event = format!("\"{}\"", "x".repeat(300_000));
    let mut streams = Vec::new();
    let mut expected = Vec::new();
    for number in 0..40 {
        let name = stream("bulker_batch", &format!("{actor}-{number:02}"));
        for entry in 0..2 {
            let id = format!("17000000{:05}-0", entry * 40 + (number * 7) % 40);
            let key = format!("events_log:bulker_batch.all#{}", name.actor);
            let _: String = ask(&mut redis, &["XADD", &key, &id, "event", &event]).await?;
            expected.push(Position { id: id.parse()?, stream: name.clone() });
        }
        streams.push(name);
    }
    expected.sort();
    expected.reverse();
    let running = Running::start(&in_redis(&url, 100), QUICKLY)?;
    let query = Query { streams: streams.clone(), ..Query::default() };
    let records = running.log.read(&query).await?.records;
    let name = |i: usize| -> StreamName { streams[i].clone() };
    let found: Vec<_> =
        records.iter().map(|r| Position { id: r.id, stream: name(r.stream) }).collect();
    assert!(found == expected);
    for name in &streams {
        let key = format!("events_log:bulker_batch.all#{}", name.actor);
        let () = ask(&mut redis, &["DEL", &key]).await?;
    }
    running.stop().await
}
