//! `GET /events`: what lately passed, over all destinations.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::log::Logged;

fn batch(status: &str, table: &str) -> String {
    format!(r#"{{"representation":{{"name":"{table}"}},"status":"{status}","processedRows":1}}"#)
}

/// The ids of a reply, and its cursor.
fn read(body: &str) -> Result<(Vec<String>, Option<String>)> {
    let reply: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    let events = reply["events"].as_array().context("events")?;
    let place = |event: &Value| {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", text("id"), text("type"), text("destinationId"))
    };
    Ok((events.iter().map(place).collect(), reply["cursor"].as_str().map(str::to_owned)))
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_all_destinations_come_newest_first_with_their_table_and_outcome() -> Result<()> {
    let mut logged = Logged::start(&["a", "b"]).await?;
    let (good, bad) = (batch("COMPLETED", "t"), batch("FAILED", "u"));
    let message = r#"{"original":"{}","status":"SUCCESS","queueSize":0,"speed":1}"#;
    logged.add("bulker_batch.all#a", "1700000000000-0", &good).await?;
    logged.add("bulker_batch.all#b", "1700000000120-0", &bad).await?;
    logged.add("bulker_batch.error#b", "1700000000120-0", &bad).await?;
    logged.add("bulker_stream.all#a", "1700092800000-0", message).await?;
    logged.add("bulker_batch.all#unknown", "1700000000000-0", &good).await?;
    logged.add("incoming.all#a", "1700000000000-0", "{}").await?;

    let first = &format!(
        r#"{{"id":"1700000000000-0","date":"2023-11-14T22:13:20Z","destinationId":"a","type":"bulker_batch","status":"success","tableName":"t","content":{good}}}"#
    );
    let second = &format!(
        r#"{{"id":"1700000000120-0","date":"2023-11-14T22:13:20.12Z","destinationId":"b","type":"bulker_batch","status":"error","tableName":"u","content":{bad}}}"#
    );
    let third = &format!(
        r#"{{"id":"1700092800000-0","date":"2023-11-16T00:00:00Z","destinationId":"a","type":"bulker_stream","status":"success","tableName":null,"content":{message}}}"#
    );
    let cases: [(&str, &[&String]); 12] = [
        ("", &[third, second, first]),
        ("?limit=1000", &[third, second, first]),
        ("?destinationId=a", &[third, first]),
        ("?destinationId=b&status=error", &[second]),
        ("?status=error", &[second]),
        ("?status=success", &[third, first]),
        ("?type=bulker_stream", &[third]),
        ("?type=bulker_batch&status=success", &[first]),
        ("?tableName=t", &[first]),
        ("?tableName=nothing", &[]),
        ("?start=1700000000001&end=2023-11-15", &[second]),
        ("?destinationId=unknown&type=bulker_stream", &[]),
    ];
    for (query, events) in cases {
        let answer = logged.app.ask(&format!("/events{query}")).await?;
        let events: Vec<_> = events.iter().map(|event| event.as_str()).collect();
        let expected = format!(r#"{{"events":[{}],"cursor":null}}"#, events.join(","));
        assert_eq!((answer.status, &answer.body), (200, &expected), "{query}");
        let content_type = answer.header("content-type");
        assert_eq!(content_type.as_deref(), Some("application/json; charset=utf-8"));
    }
    logged.app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn following_cursors_shows_every_event_once() -> Result<()> {
    // given events of the same moments in several streams, of which every tenth is of table `rare`
    let mut logged = Logged::start(&["a", "b", "c"]).await?;
    let mut expected = Vec::new();
    for n in 0..250 {
        let id = format!("170000000{:04}-{}", n / 2, n % 2);
        let table = if n % 10 == 0 { "rare" } else { "common" };
        for stream in ["bulker_batch.all#a", "bulker_batch.all#b", "bulker_stream.all#a"] {
            logged.add(stream, &id, &batch("COMPLETED", table)).await?;
            let (kind, actor) = stream.split_once(".all#").context("a name")?;
            expected.push((format!("{id} {kind} {actor}"), table));
        }
    }
    expected.reverse(); // as written: by id, then kind, then destination
    for (query, is_wanted) in [
        ("limit=100", (|_| true) as fn(&str) -> bool),
        ("limit=7&tableName=rare", |table| table == "rare"),
        ("limit=999&status=success", |_| true),
    ] {
        let wanted: Vec<_> =
            expected.iter().filter(|(_, t)| is_wanted(t)).map(|(e, _)| e.clone()).collect();
        // when they are read page by page
        let (mut found, mut path) = (Vec::new(), format!("/events?{query}"));
        loop {
            let answer = logged.app.ask(&path).await?;
            let (page, cursor) = read(&answer.body)?;
            found.extend(page);
            let Some(cursor) = cursor else { break };
            assert!(found.len() <= wanted.len(), "it does not end");
            path = format!("/events?{query}&cursor={cursor}");
        }
        // then each came once, in order
        assert_eq!(found, wanted, "{query}");
    }
    logged.app.stop().await
}
