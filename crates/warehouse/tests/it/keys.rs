//! Keys: those that a table gets while it is used, and those that it has already.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use sqlx::Executor;
use testkit::wait_until;
use warehouse::Progress;

use crate::loader::{FAIL, ISOLATE, Loader, batch};

const LIMIT: Duration = Duration::from_secs(30);

fn event(value: &Value) -> String {
    value.to_string()
}

fn merged() -> Value {
    json!({"primaryKey": "id", "deduplicate": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_whatever_isolation_transactions_have_by_default() -> Result<()> {
    for level in ["repeatable read", "serializable"] {
        // given a database whose transactions keep their first snapshot
        let loader = Loader::new().await?;
        let database = loader.database.credentials()["database"].as_str().map(str::to_owned);
        let database = database.unwrap_or_default();
        let sql = format!(
            "alter database {database} set default_transaction_isolation = '{level}'; \
             create table t (id bigint, v bigint); insert into t values (1, 1)"
        );
        loader.database.query(&sql).await?;
        // when a table with rows gets a key
        let events = [event(&json!({"id": 1, "v": 2})), event(&json!({"id": 2, "v": 2}))];
        loader.load(&merged(), &events, ISOLATE).await?;
        // then its index does not wait for the transaction that holds the table's lock
        assert_eq!(loader.number("select count(*) from t where v = 2").await?, 2, "{level}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_names_a_column_twice_is_a_key_over_it() -> Result<()> {
    for options in [
        json!({"primaryKey": "id,id", "deduplicate": true}),
        json!({"primaryKey": "id,ID", "deduplicate": true, "toSameCase": true}),
    ] {
        let loader = Loader::new().await?;
        for v in [1, 2] {
            loader.load(&options, &[event(&json!({"id": 1, "v": v}))], ISOLATE).await?;
        }
        assert_eq!(loader.number("select v from t").await?, 2);
        let columns = "select cardinality(conkey) from pg_constraint \
                       where conrelid = 't'::regclass and contype = 'p'";
        assert_eq!(loader.number(columns).await?, 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_place_of_a_table_is_named() -> Result<()> {
    let kinds = [
        ("create view t as select 1 as id", "is a view"),
        ("create materialized view t as select 1 as id", "is a materialized view"),
        ("create sequence t", "is a sequence"),
        ("create type t as (id bigint)", "is a composite type"),
        ("create table other (id bigint); create index t on other (id)", "is an index"),
    ];
    for (sql, words) in kinds {
        let loader = Loader::new().await?;
        loader.database.query(sql).await?;
        for how in [ISOLATE, FAIL] {
            let loaded = loader.load(&json!({}), &[event(&json!({"id": 1}))], how).await;
            let error = loaded.expect_err("nothing can be loaded there").to_string();
            assert!(error.contains(words) && error.contains("\"t\""), "{error}");
        }
    }
    Ok(())
}

/// Indexes and constraints of these tables, but for those of NOT NULL.
const OF_TABLES: &str = "select count(*) from \
    (select conname from pg_constraint where conrelid = any ($tables) and contype <> 'n' union all \
     select indexrelid::regclass::text from pg_index where indrelid = any ($tables)) found";

async fn left_on(loader: &Loader, tables: &str) -> Result<i64> {
    loader.number(&OF_TABLES.replace("$tables", &format!("'{tables}'::regclass[]"))).await
}

const HITS: &str = "create table t (id bigint, at timestamptz, v bigint) partition by range (at); \
    create table t_11 partition of t for values from ('2026-11-01') to ('2026-12-01'); \
    create table t_12 partition of t for values from ('2026-12-01') to ('2027-01-01') \
    partition by hash (id); \
    create table t_12_0 partition of t_12 for values with (modulus 2, remainder 0); \
    create table t_12_1 partition of t_12 for values with (modulus 2, remainder 1); \
    insert into t values (1, '2026-11-02T00:00:00Z', 0), (2, '2026-12-02T00:00:00Z', 0)";

fn hit(id: usize, month: usize) -> String {
    json!({"id": id, "at": format!("2026-{month}-02T00:00:00Z"), "v": 1}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_with_rows_gets_a_key() -> Result<()> {
    // given a table with partitions of partitions
    let loader = Loader::new().await?;
    loader.database.query(HITS).await?;
    // when a stream has a key over the columns that rows are put into them by
    let options = json!({"primaryKey": "id,at", "deduplicate": true});
    let events = [hit(1, 11), hit(2, 12), hit(3, 12)];
    let report = loader.load(&options, &events, ISOLATE).await?;
    // then rows are merged
    assert_eq!(report.counts.refused, 0);
    assert_eq!(loader.number("select count(*) from t where v = 1").await?, 3);
    assert_eq!(loader.number("select count(*) from t").await?, 3);
    let invalid = "select count(*) from pg_index where not indisvalid \
                   and indrelid in (select relid from pg_partition_tree('t'))";
    assert_eq!(loader.number(invalid).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_partitioned_table_cannot_have_is_refused_with_the_reason() -> Result<()> {
    let cases = [
        ("id", "must include all partitioning columns"),
        ("at", "must include all partitioning columns"),
        ("id,at", "could not create unique index"),
    ];
    for (key, words) in cases {
        let loader = Loader::new().await?;
        loader.database.query(HITS).await?;
        loader.database.query("insert into t values (2, '2026-12-02T00:00:00Z', 0)").await?;
        let options = json!({"primaryKey": key, "deduplicate": true});
        let error = loader.load(&options, &[hit(3, 11)], ISOLATE).await.expect_err("no key");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(left_on(&loader, "{t,t_11,t_12,t_12_0,t_12_1}").await?, 0, "{key}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_of_a_key_is_dropped_or_taken_over() -> Result<()> {
    let cases = [
        ("an index that is not finished", "create unique index jitsu_pk_00ab on t (id)", true),
        ("an index that is finished", "create unique index jitsu_pk_00ab on t (id)", false),
        ("an index over other columns", "create unique index jitsu_pk_00ab on t (v, id)", false),
        (
            "a promise",
            "create unique index jitsu_pk_00ab on t (id); \
             alter table t add constraint jitsu_pk_00ab_nn check (id is not null) not valid",
            false,
        ),
    ];
    for (name, sql, is_broken) in cases {
        let loader = Loader::new().await?;
        loader.database.query("create table t (id bigint, v bigint)").await?;
        loader.database.query(&format!("insert into t values (1, 0); {sql}")).await?;
        if is_broken {
            let broken = "update pg_index set indisvalid = false \
                          where indexrelid = 'jitsu_pk_00ab'::regclass";
            loader.database.query(broken).await?;
        }
        loader.load(&merged(), &[event(&json!({"id": 1, "v": 1}))], ISOLATE).await?;
        assert_eq!(loader.number("select v from t").await?, 1, "{name}");
        assert_eq!(left_on(&loader, "{t}").await?, 2, "{name}: the key and its index");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_being_built_shows_that_it_moves_and_ends_with_its_load() -> Result<()> {
    // given a table whose key waits for another session's transaction
    let loader = Loader::new().await?;
    loader
        .database
        .query("create table t (id bigint, v bigint); insert into t values (1, 0)")
        .await?;
    let mut writer = loader.database.connect().await?;
    Executor::execute(&mut writer, sqlx::raw_sql("begin; insert into t values (2, 0)")).await?;
    let progress = Progress::default();
    let postgres = loader.postgres.watched_by(&progress);
    let load = tokio::spawn(async move {
        let batch = batch(&merged(), &[event(&json!({"id": 1, "v": 1}))]);
        postgres.load(vec![batch], ISOLATE).await
    });
    let building = "select count(*) from pg_stat_activity where datname = current_database() \
                    and query like 'create unique index concurrently%' and state = 'active'";
    wait_until(LIMIT, async || loader.number(building).await.is_ok_and(|n| n > 0)).await?;
    // when nothing but the waiting happens
    let before = progress.steps();
    wait_until(LIMIT, async || progress.steps() >= before + 2).await?;
    // and the load is dropped
    load.abort();
    // then the server does not go on with it
    wait_until(LIMIT, async || loader.number(building).await.is_ok_and(|n| n == 0)).await?;
    // and the next load leaves one key and nothing else
    Executor::execute(&mut writer, sqlx::raw_sql("commit")).await?;
    loader.load(&merged(), &[event(&json!({"id": 1, "v": 1}))], ISOLATE).await?;
    assert_eq!(left_on(&loader, "{t}").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_a_load_that_is_dropped_ends_in_the_database() -> Result<()> {
    // given a load that is in a statement which takes long
    let loader = Loader::new().await?;
    let sql = "create table t (id bigint); create function drag() returns trigger \
        language plpgsql as $$begin perform pg_sleep(600); return new; end$$; \
        create trigger drag before insert on t for each row execute function drag()";
    loader.database.query(sql).await?;
    let postgres = loader.postgres.clone();
    let load = tokio::spawn(async move {
        postgres.load(vec![batch(&json!({}), &[event(&json!({"id": 1}))])], ISOLATE).await
    });
    let sleeping = "select count(*) from pg_stat_activity where datname = current_database() \
                    and wait_event = 'PgSleep'";
    wait_until(LIMIT, async || loader.number(sleeping).await.is_ok_and(|n| n > 0)).await?;
    // when it is dropped
    load.abort();
    // then the server notices
    wait_until(LIMIT, async || loader.number(sleeping).await.is_ok_and(|n| n == 0)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_key_that_is_deferrable_repeats_are_refused_and_new_keys_stored() -> Result<()> {
    for when in ["immediate", "deferred"] {
        let loader = Loader::new().await?;
        let sql = format!(
            "create table t (id bigint primary key deferrable initially {when}, v bigint); \
             insert into t values (1, 1)"
        );
        loader.database.query(&sql).await?;
        let events = [json!({"id": 1, "v": 2}), json!({"id": 2, "v": 2})];
        let report = loader.load(&merged(), &events.each_ref().map(event), ISOLATE).await?;
        assert_eq!(report.refused.iter().map(|row| row.row).collect::<Vec<_>>(), [0], "{when}");
        assert_eq!(report.refused[0].error.sqlstate, "23505", "{when}");
        assert_eq!(loader.number("select count(*) from t").await?, 2, "{when}");
    }
    Ok(())
}
