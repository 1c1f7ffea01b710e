//! The caller's statements in the load's transaction.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use serde_json::json;
use warehouse::{Batch, Checkpoint, LoadError};

use crate::loader::{ISOLATE, Loader, batch, options};

/// A checkpoint over the table `place`, which also keeps what the load reported.
fn checkpoint(expected: i64, seen: &Arc<Mutex<Vec<u64>>>) -> Checkpoint {
    let seen = seen.clone();
    Checkpoint {
        lock: format!("select 1 from place where next = {expected} for update"),
        advance: Box::new(move |report| {
            let counts = report.counts;
            let refused = report.refused.iter().map(|row| row.batch as u64 * 100 + row.row as u64);
            if let Ok(mut seen) = seen.lock() {
                seen.extend(refused);
            }
            let sql = format!("update place set next = next + {}", counts.loaded + counts.refused);
            Box::pin(std::future::ready(Ok(sql)))
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tables_and_options_move_one_checkpoint() -> Result<()> {
    // given two tables and a batch with options of its own, one row in each of which the database refuses
    let loader = Loader::new().await?;
    loader.database.query("create table place (next bigint); insert into place values (0); create table t (id bigint, n smallint); create table u (id bigint, n smallint)").await?;
    let event = |id: usize, n: i64| json!({"id": id, "n": n}).to_string();
    let first = batch(&json!({}), &[event(1, 1), event(2, 70_000)]);
    let second =
        batch(&json!({"primaryKey": "id", "deduplicate": true}), &[event(3, 1), event(3, 2)]);
    let mut third = Batch::new("u", options(&json!({})))?;
    third.push(event(5, -70_000).as_bytes())?;
    third.push(event(6, 1).as_bytes())?;
    // when they are loaded under one checkpoint
    let seen = Arc::default();
    let report = loader
        .postgres
        .load(vec![first, second, third], Some(&checkpoint(0, &seen)), ISOLATE)
        .await?;
    // then it knew all of them, moved once, and the good rows are there
    assert_eq!(*seen.lock().expect("nobody panics while holding it"), [1, 200]);
    let counts = report.counts;
    assert_eq!((counts.loaded, counts.merged, counts.refused), (3, 1, 2));
    assert_eq!(loader.number("select next from place").await?, 5);
    assert_eq!(loader.number("select count(*) from t").await?, 2);
    assert_eq!(loader.number("select count(*) from u").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_not_where_it_was_loads_nothing() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table place (next bigint); insert into place values (7)").await?;
    let events = [json!({"id": 1}).to_string()];
    let seen = Arc::default();
    let checkpoint = checkpoint(0, &seen);
    let load = loader.postgres.load(vec![batch(&json!({}), &events)], Some(&checkpoint), ISOLATE);
    assert!(matches!(load.await, Err(LoadError::CheckpointMoved)));
    assert_eq!(loader.number("select count(*) from t").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_caller_rolls_everything_back() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table place (next bigint); insert into place values (0)").await?;
    let checkpoint = Checkpoint {
        lock: "select 1 from place for update".to_owned(),
        advance: Box::new(|_| Box::pin(std::future::ready(Err(LoadError::config("not today"))))),
    };
    let events = [json!({"id": 1}).to_string()];
    let load = loader.postgres.load(vec![batch(&json!({}), &events)], Some(&checkpoint), ISOLATE);
    assert!(matches!(load.await, Err(LoadError::Config(_))));
    assert_eq!(loader.number("select count(*) from t").await?, 0);
    Ok(())
}
