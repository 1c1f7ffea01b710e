//! What calls that fail or are dropped leave on the server: no open transaction, and no lock.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use serde_json::json;
use testkit::wait_until;
use warehouse::{
    LoadError,
    bulk::{BulkMode, Stream, StreamError},
};

use crate::loader::{ISOLATE, Loader, options};

/// Well below the time after which the server ends a transaction by itself.
const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_make_its_table_leaves_no_transaction_open() -> Result<()> {
    // given a stream whose new table is to be indexed by a column
    let loader = Loader::new().await?;
    let with = options(&json!({"timestampColumn": "at"}));
    let mut stream = Stream::open(loader.postgres.clone(), "t", BulkMode::Stream, with)?;
    // when its first event lacks that column
    let refused = stream.consume(br#"{"id": 1}"#).await;
    assert!(matches!(refused, Err(StreamError::Load(LoadError::Config(_)))), "{refused:?}");
    // then the change of the table is rolled back, instead of being left to the next statement
    let open = "select count(*) from pg_stat_activity \
                where datname = current_database() and state like 'idle in transaction%'";
    wait_until(LIMIT, async || loader.number(open).await.is_ok_and(|n| n == 0)).await?;
    stream.consume(br#"{"id": 2, "at": "2026-11-24T00:00:00Z"}"#).await?;
    assert_eq!(loader.number("select count(*) from t").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_dropped_while_it_makes_a_key_frees_the_lock_of_the_table() -> Result<()> {
    // given a table with rows, and a writer that the index of a new key waits for
    let loader = Arc::new(Loader::new().await?);
    loader.database.query("create table t (id bigint); insert into t values (1)").await?;
    let mut writer = loader.database.connect().await?;
    sqlx::Executor::execute(&mut writer, sqlx::raw_sql("begin; insert into t values (2)")).await?;
    let load = tokio::spawn({
        let (loader, options) = (loader.clone(), json!({"primaryKey": "id", "deduplicate": true}));
        async move { loader.load(&options, &[json!({"id": 3}).to_string()], ISOLATE).await }
    });
    let building = "select count(*) from pg_stat_activity where datname = current_database() \
                    and query like 'create unique index concurrently%'";
    wait_until(LIMIT, async || loader.number(building).await.is_ok_and(|n| n > 0)).await?;
    let locks = "select count(*) from pg_locks l join pg_database d on d.oid = l.database \
                 where d.datname = current_database() and l.locktype = 'advisory'";
    assert_eq!(loader.number(locks).await?, 1, "the table has an owner while its key is made");
    // when the load is dropped
    load.abort();
    // then another loader can change the table, although the index still waits for the writer
    wait_until(LIMIT, async || loader.number(locks).await.is_ok_and(|n| n == 0)).await?;
    Ok(())
}
