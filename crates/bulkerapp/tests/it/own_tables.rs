//! The tables of the ledger are the loader's own: no event reaches them, whichever way it comes.

use anyhow::{Result, ensure};
use testkit::{Database, wait_until};

use crate::app::{App, DESTINATION, PATIENCE, Setup, TOKEN, loaded_to};

/// Columns of both tables, and the positions.
async fn ledger(database: &Database) -> Result<String> {
    database
        .value(
            "select string_agg(attrelid::regclass || '.' || attname, ',' order by attrelid, attnum) \
             || (select string_agg(topic || ':' || next_offset, ',' order by topic) from bulker_offsets) \
             from pg_attribute where attrelid in ('bulker_offsets'::regclass, 'bulker_origins'::regclass) \
             and attnum > 0",
        )
        .await
}

async fn send(app: &App, path: &str, body: &str) -> Result<(u16, String)> {
    let bearer = format!("Bearer {TOKEN}");
    let answer = app.request("POST", path, &[("authorization", &bearer)], body.as_bytes()).await?;
    Ok((answer.status, answer.body))
}

#[tokio::test(flavor = "multi_thread")]
async fn events_for_the_ledgers_tables_are_turned_away() -> Result<()> {
    // given a ledger
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let topic = kafka.adopt(setup.topic("orders"));
    let app = setup.start().await?;
    assert_eq!(app.post("orders", r#"{"id":1}"#).await?, 200);
    loaded_to(&database, topic.name(), 1).await?;
    let before = ledger(&database).await?;

    // when events name its tables, as they are called or as the rules of names would call them
    for (name, table) in [
        ("bulker_offsets", "bulker_offsets"),
        ("bulker_origins", "bulker_origins"),
        ("bulker.offsets", "bulker.offsets"),
        ("bulker%21origins", "bulker!origins"),
        ("Bulker_Offsets", "Bulker_Offsets"),
    ] {
        // then they are refused with the reason
        let reason =
            format!(r#"{{"error":"invalid table name: {table} is a table of the loader's own"}}"#);
        let post = format!("/post/{DESTINATION}?tableName={name}");
        let schema = format!("{post}&streamOptions=%7B%22namespace%22%3A%22other%22%7D");
        for path in [post, schema] {
            let found = send(&app, &path, r#"{"topic":"x"}"#).await?;
            assert_eq!(found, (400, reason.clone()), "{path}");
        }
        for mode in ["replace_table", "replace_partition&partitionId=1", "batch", "stream", ""] {
            let path = format!("/bulk/{DESTINATION}?tableName={name}&mode={mode}");
            let found = send(&app, &path, r#"{"topic":"x"}"#).await?;
            assert_eq!(found, (400, reason.clone()), "{path}");
        }
    }
    // and the ledger is as it was
    assert_eq!(ledger(&database).await?, before);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_others_put_into_the_topic_of_such_a_table_are_dead_letters() -> Result<()> {
    // given topics of the ledger's tables, as an intake without these rules leaves them
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database)
        .with_options(r#"mode: "batch", frequency: 0.0167, toSameCase: true"#)
        .with("BULKER_MESSAGES_RETRY_COUNT", "0");
    let orders = kafka.adopt(setup.topic("orders"));
    let _retry = kafka.adopt(setup.retry_topic());
    let theirs = [
        kafka.adopt(setup.topic("bulker_offsets")),
        kafka.adopt(setup.stream_topic("BULKER_ORIGINS")),
    ];
    for topic in &theirs {
        kafka.create_topic(topic, 1, 1, &[]).await?;
        let forged = [r#"{"topic":"x","next_offset":7}"#, r#"{"note":"hello"}"#];
        kafka.produce_all(topic.name(), 0, forged.map(str::to_owned)).await?;
    }

    // when they are loaded beside another table
    let app = setup.start().await?;
    assert_eq!(app.post("orders", r#"{"id":1}"#).await?, 200);
    loaded_to(&database, orders.name(), 1).await?;
    for topic in &theirs {
        loaded_to(&database, topic.name(), 2).await?;
    }

    // then each of them is found with the reason, and no table has anything of it
    let all_found = wait_until(PATIENCE, || async {
        let path = format!("/failed/{DESTINATION}?details=true");
        let lines = app.ask(&path).await.and_then(|a| a.unchunked()).unwrap_or_default();
        lines.matches("is a table of the loader's own").count() == 4
    });
    all_found.await?;
    let columns = ledger(&database).await?;
    ensure!(!columns.contains("note"), "{columns}");
    let forged = database.value("select count(*) from bulker_offsets where topic = 'x'").await?;
    assert_eq!(forged, "0");
    app.stop().await
}
