//! Tables that are changed while others use them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::wait_until;
use tokio_util::sync::CancellationToken;
use warehouse::{LoadError, LoadOptions, Refusals, RowsOf, SchemaChanges, postgres::Settings};

use crate::loader::{FAIL, ISOLATE, Loader};

const LIMIT: Duration = Duration::from_secs(30);
const LOADERS: usize = 8;
const ROWS: usize = 50;

fn event(value: &Value) -> String {
    value.to_string()
}

/// How many rounds the race has; `make race N=50` sets it.
fn rounds() -> usize {
    std::env::var("RACE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

async fn race(how: LoadOptions, options: Value) -> Result<()> {
    let loader = Arc::new(Loader::new().await?);
    let start = Arc::new(tokio::sync::Barrier::new(LOADERS));
    let mut loads = tokio::task::JoinSet::new();
    for number in 0..LOADERS {
        let (loader, start, options) = (loader.clone(), start.clone(), options.clone());
        loads.spawn(async move {
            let events: Vec<_> = (0..ROWS)
                .map(|row| {
                    let mut event = json!({"id": number * ROWS + row});
                    event[format!("column_{number}_{}", row % 5)] = json!(row);
                    event.to_string()
                })
                .collect();
            start.wait().await;
            loader.load(&options, &events, how).await
        });
    }
    while let Some(loaded) = loads.join_next().await {
        assert_eq!(loaded?.context("a loader of the race")?.counts.loaded, ROWS as u64);
    }
    assert_eq!(loader.number("select count(*) from t").await?, i64::try_from(LOADERS * ROWS)?);
    assert_eq!(
        loader.number("select count(distinct id) from t").await?,
        i64::try_from(LOADERS * ROWS)?
    );
    let filled = "select count(*) from t, jsonb_object_keys(jsonb_strip_nulls(to_jsonb(t))) key \
                  where key like 'column%'";
    assert_eq!(
        loader.number(filled).await?,
        i64::try_from(LOADERS * ROWS)?,
        "values in their columns"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_loaders_race_to_make_one_table() -> Result<()> {
    for round in 1..=rounds() {
        for (how, name) in [(ISOLATE, "changes before the load"), (FAIL, "changes in the load")] {
            for options in [json!({}), json!({"primaryKey": "id", "deduplicate": true})] {
                let result = race(how, options.clone()).await;
                println!(
                    "round {round}, {name}, options {options}: {}",
                    if result.is_ok() { "all rows there" } else { "FAILED" }
                );
                result?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_reader_delays_the_load_and_no_other_session() -> Result<()> {
    // given a table that another session has been reading for long
    let lock_timeout = Duration::from_millis(200);
    let settings = Settings { schema_lock_timeout: lock_timeout, ..Settings::default() };
    let loader = Arc::new(Loader::with_settings(settings).await?);
    loader.load(&json!({}), &[event(&json!({"id": 1}))], ISOLATE).await?;
    let mut reader = loader.database.connect().await?;
    execute(&mut reader, "begin; select count(*) from t").await?;
    // when a load brings a new column while others read and write
    let done = CancellationToken::new();
    let load = tokio::spawn({
        let (loader, done) = (loader.clone(), done.clone());
        async move {
            let loaded =
                loader.load(&json!({}), &[event(&json!({"id": 2, "new": "x"}))], ISOLATE).await;
            done.cancel();
            loaded
        }
    });
    let others = tokio::spawn({
        let (database, done) = (loader.database.connect().await?, done.clone());
        async move {
            let mut connection = database;
            // no statement may have to wait longer than the change of the table may, give or take
            // its own time
            execute(&mut connection, "set lock_timeout = '1s'").await?;
            let mut statements = 0;
            while !done.is_cancelled() {
                execute(&mut connection, "select count(*) from t; insert into t values (100)")
                    .await?;
                statements += 1;
            }
            anyhow::Ok(statements)
        }
    });
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                   and wait_event_type = 'Lock' and query like 'alter table%'";
    for _ in 0..3 {
        // it gives up and comes again
        wait_until(LIMIT, async || loader.number(waiting).await.is_ok_and(|n| n > 0)).await?;
        wait_until(LIMIT, async || loader.number(waiting).await.is_ok_and(|n| n == 0)).await?;
    }
    assert!(!load.is_finished(), "the column cannot be added while the reader is there");
    execute(&mut reader, "commit").await?;
    // then the load goes through as soon as the reader has gone
    assert_eq!(load.await??.counts.loaded, 1);
    let statements = others.await?.context("another session's statement waited too long")?;
    assert!(statements > 0);
    assert_eq!(loader.number("select count(*) from t where new = 'x'").await?, 1);
    assert_eq!(loader.number("select count(*) from t where id = 100").await?, statements);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_cannot_be_made_in_time_is_worth_another_try() -> Result<()> {
    let settings = Settings {
        schema_lock_timeout: Duration::from_millis(50),
        schema_patience: Duration::from_millis(300),
        ..Settings::default()
    };
    let loader = Loader::with_settings(settings).await?;
    for (how, column) in [(ISOLATE, "a"), (FAIL, "b")] {
        loader.load(&json!({}), &[event(&json!({"id": 1}))], how).await?;
        let mut reader = loader.database.connect().await?;
        execute(&mut reader, "begin; select count(*) from t").await?;
        let with_column = [event(&json!({"id": 2, column: 1}))];
        let loaded = loader.load(&json!({}), &with_column, how).await;
        assert!(matches!(&loaded, Err(LoadError::Busy(_))), "{loaded:?}");
        assert!(loaded.is_err_and(|error| error.is_retriable()));
        execute(&mut reader, "commit").await?;
        loader.load(&json!({}), &with_column, how).await?;
        let sql = format!("select count(*) from t where {column} = 1");
        assert_eq!(loader.number(&sql).await?, 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_on_a_table_with_rows_while_others_write() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint, n bigint); insert into t select v, 0 from generate_series(1, 1000) v").await?;
    // given a writer whose transaction is open: an index that is not built concurrently would block
    // the next one
    let mut writer = loader.database.connect().await?;
    execute(&mut writer, "begin; insert into t values (5000, 0)").await?;
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let load = async { loader.load(&options, &[event(&json!({"id": 7, "n": 1}))], ISOLATE).await };
    let others = async {
        let building = "select count(*) from pg_stat_activity where datname = current_database() and query like 'create unique index concurrently%'";
        wait_until(LIMIT, async || loader.number(building).await.is_ok_and(|n| n > 0)).await?;
        let mut other = loader.database.connect().await?;
        execute(&mut other, "set lock_timeout = '1s'; insert into t values (5001, 0)").await?;
        execute(&mut writer, "commit").await
    };
    let (loaded, others) = tokio::join!(load, others);
    others?;
    assert_eq!(loaded?.counts.loaded, 1);
    assert_eq!(loader.number("select n from t where id = 7").await?, 1);
    assert_eq!(loader.number("select count(*) from t").await?, 1002);
    let keys = "select count(*) from pg_constraint where conrelid = 't'::regclass and contype = 'p' and conname like 'jitsu_pk_%'";
    assert_eq!(loader.number(keys).await?, 1);
    let checks =
        "select count(*) from pg_constraint where conrelid = 't'::regclass and contype = 'c'";
    assert_eq!(loader.number(checks).await?, 0, "what proved NOT NULL is gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_rows_refuse_is_tried_once_and_again_when_they_changed() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint); insert into t values (1), (1)").await?;
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let events = [event(&json!({"id": 2}))];
    let mut errors = Vec::new();
    for _ in 0..2 {
        let loaded = loader.load(&options, &events, ISOLATE).await;
        let error = loaded.expect_err("there are duplicates");
        assert!(matches!(&error, LoadError::Schema { .. }), "{error}");
        errors.push(error.server_error().expect("the server's").clone());
    }
    assert_eq!(errors[0].sqlstate, "23505");
    // the text names the index, and each attempt has one of its own
    assert_eq!(errors[0].full_text, errors[1].full_text, "the second time nothing was built");
    let left = "select count(*) from pg_index where indrelid = 't'::regclass";
    assert_eq!(loader.number(left).await?, 0, "nothing is left behind");
    let checks = "select count(*) from pg_constraint where conrelid = 't'::regclass";
    assert_eq!(loader.number(checks).await?, 0, "nothing is left behind");
    // when the duplicate is removed, which statistics show a moment later
    loader.database.query("delete from t where ctid = (select min(ctid) from t)").await?;
    wait_until(LIMIT, async || loader.load(&options, &events, ISOLATE).await.is_ok()).await?;
    assert_eq!(loader.number("select count(*) from t").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_beyond_what_postgresql_has_room_for_are_unmapped() -> Result<()> {
    // given a table that had 1590 columns, most of which are dropped
    let loader = Loader::new().await?;
    let columns: Vec<_> = (0..1_589).map(|n| format!("c{n} bigint")).collect();
    loader.database.query(&format!("create table t (id bigint, {})", columns.join(", "))).await?;
    let drops: Vec<_> = (0..1_500).map(|n| format!("drop column c{n}")).collect();
    loader.database.query(&format!("alter table t {}", drops.join(", "))).await?;
    // when an event brings 20 new ones
    let mut wide = json!({"id": 1});
    for n in 0..20 {
        wide[format!("new_{n}")] = json!(n);
    }
    for how in [ISOLATE, FAIL] {
        assert_eq!(loader.load(&json!({}), &[event(&wide)], how).await?.counts.loaded, 1);
    }
    // then what has room becomes a column, and the rest is kept
    let made = "select count(*) from pg_attribute where attrelid = 't'::regclass and attname like 'new_%' and not attisdropped";
    assert_eq!(loader.number(made).await?, 9, "one place is kept for _unmapped_data");
    let kept =
        "select count(*) from (select jsonb_object_keys(_unmapped_data) from t where id = 1) k";
    assert_eq!(loader.number(kept).await?, 22);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_another_loader_made_meanwhile_decides_the_type() -> Result<()> {
    let loader = Loader::new().await?;
    let how = LoadOptions {
        refusals: Refusals::Isolate,
        schema_changes: SchemaChanges::BeforeLoad,
        rows: RowsOf::Batch,
    };
    loader.load(&json!({}), &[event(&json!({"id": 1, "v": 1}))], how).await?;
    let report = loader.load(&json!({}), &[event(&json!({"id": 2, "v": "text"}))], how).await?;
    assert_eq!(report.counts.loaded, 1);
    let unmapped = "select count(*) from t where _unmapped_data = '{\"v\": \"text\"}'";
    assert_eq!(loader.number(unmapped).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_loaded_into() -> Result<()> {
    let loader = Loader::new().await?;
    let sql = "create table t (id bigint primary key, v bigint) partition by range (id); \
               create table t_low partition of t for values from (0) to (100); \
               create table t_high partition of t for values from (100) to (200)";
    loader.database.query(sql).await?;
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let events = |version: u64| {
        let event = |id: u64| event(&json!({"id": id, "v": version, "new": "x"}));
        [event(50), event(150), event(250)]
    };
    for version in [1, 2] {
        let report = loader.load(&options, &events(version), ISOLATE).await?;
        assert_eq!(report.counts.loaded, 2);
        assert_eq!(report.refused.len(), 1, "no partition takes it");
        let sql = format!("select count(*) from t where v = {version} and new = 'x'");
        assert_eq!(loader.number(&sql).await?, 2);
    }
    Ok(())
}

async fn execute(connection: &mut sqlx::PgConnection, sql: &str) -> Result<()> {
    sqlx::Executor::execute(connection, sqlx::raw_sql(sql))
        .await
        .with_context(|| sql.to_owned())?;
    Ok(())
}
