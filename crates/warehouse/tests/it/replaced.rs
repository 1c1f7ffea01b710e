//! Tables and partitions whose rows are replaced beside their readers.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use sqlx::{Executor, PgConnection};
use testkit::wait_until;
use warehouse::{
    bulk::{BulkMode, Stream, StreamError},
    postgres::Settings,
};

use crate::loader::{Loader, options};

const LIMIT: Duration = Duration::from_secs(30);

async fn run(connection: &mut PgConnection, sql: &str) -> Result<()> {
    connection.execute(sqlx::raw_sql(sql)).await?;
    Ok(())
}

/// Replaces the rows of table `t` by this event.
async fn replace(loader: &Loader, event: &str) -> Result<(), StreamError> {
    let postgres = loader.postgres.clone();
    let mut stream = Stream::open(postgres, "t", BulkMode::ReplaceTable, options(&json!({})))?;
    stream.consume(event.as_bytes()).await?;
    stream.complete().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_lets_readers_pass_while_it_waits_for_one_of_them() -> Result<()> {
    for event in [r#"{"n": 2}"#, "{}"] {
        // given a long report on the table
        let settings =
            Settings { schema_lock_timeout: Duration::from_millis(200), ..Settings::default() };
        let loader = Loader::with_settings(settings).await?;
        loader.database.query("create table t (n bigint); insert into t values (1)").await?;
        let mut report = loader.database.connect().await?;
        run(&mut report, "begin; select count(*) from t").await?;
        // when the table is replaced
        let others = async {
            let waiting = "select count(*) from pg_locks where not granted and relation = \
                           (select oid from pg_class where relname = 't')";
            wait_until(LIMIT, async || loader.number(waiting).await.is_ok_and(|n| n > 0)).await?;
            // then another reader passes long before the report ends
            let mut reader = loader.database.connect().await?;
            run(&mut reader, "set lock_timeout = '15s'; select count(*) from t").await?;
            run(&mut report, "rollback").await
        };
        let (replaced, others) = tokio::join!(replace(&loader, event), others);
        others?;
        replaced?;
        let expected = i64::from(event != "{}");
        assert_eq!(loader.number("select count(*) from t where n = 2").await?, expected, "{event}");
        assert_eq!(loader.number("select count(*) from t where n = 1").await?, 0, "{event}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_is_never_let_in_says_what_it_waited_for() -> Result<()> {
    let settings = Settings {
        schema_lock_timeout: Duration::from_millis(50),
        schema_patience: Duration::from_millis(100),
        ..Settings::default()
    };
    let loader = Loader::with_settings(settings).await?;
    loader.database.query("create table t (n bigint); insert into t values (1)").await?;
    let mut report = loader.database.connect().await?;
    run(&mut report, "begin; select count(*) from t").await?;
    let error = replace(&loader, r#"{"n": 2}"#).await.expect_err("the report goes on");
    let text = error.to_string();
    assert!(text.contains("table t is in use by others"), "{text}");
    run(&mut report, "rollback").await?;
    assert_eq!(loader.number("select n from t").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_cannot_be_emptied_keeps_its_rows_and_the_reason_is_told() -> Result<()> {
    // given a table without replica identity that is published
    let loader = Loader::new().await?;
    let load = async |n: i64| -> Result<(), StreamError> {
        let with = options(&json!({"partitionId": "2026-11-24"}));
        let postgres = loader.postgres.clone();
        let mut stream = Stream::open(postgres, "t", BulkMode::ReplacePartition, with)?;
        stream.consume(json!({"n": n}).to_string().as_bytes()).await?;
        stream.complete().await
    };
    load(1).await?;
    loader.database.query("create publication everything for all tables").await?;
    // when
    let error = load(2).await.expect_err("its rows cannot be deleted");
    // then
    let StreamError::Load(error) = error else { panic!("{error}") };
    let told = error.server_error().map(|error| error.full_text.clone()).unwrap_or_default();
    assert!(told.contains("replica identity"), "{told}");
    assert!(error.to_string().contains("replica identity"), "{error}");
    assert_eq!(loader.number("select n from t").await?, 1);
    Ok(())
}
