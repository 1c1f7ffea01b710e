//! The search for the rows at fault: what an error of unknown kind is taken for, and what the search
//! may cost.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use warehouse::{Fault, LoadOptions, LoadReport, MicroBatch, Progress, RowsOf};

use crate::loader::{ISOLATE, Loader, batch, options};

/// Puts each row into the table of its tenant.
const ROUTES: &str = "create table t (id bigint, tenant text); \
    create table t_acme (id bigint, tenant text); \
    create function route() returns trigger language plpgsql as $$begin \
    execute format('insert into %I values ($1, $2)', 't_' || new.tenant) using new.id, new.tenant; \
    return new; end$$; \
    create trigger route before insert on t for each row execute function route()";

fn of_tenant(id: usize, tenant: &str) -> String {
    json!({"id": id, "tenant": tenant}).to_string()
}

fn refused(report: &LoadReport) -> BTreeSet<(usize, usize)> {
    report.refused.iter().map(|row| (row.batch, row.row)).collect()
}

fn key() -> Value {
    json!({"primaryKey": "id", "deduplicate": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_unknown_kind_is_a_rows_where_the_table_took_another() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query(ROUTES).await?;
    let events = [of_tenant(1, "nobody"), of_tenant(2, "acme"), of_tenant(3, "nobody")];
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 0), (0, 2)]));
    assert_eq!(report.refused[0].error.sqlstate, "42P01");
    assert_eq!(loader.number("select count(*) from t_acme").await?, 1);
    // also in a later load
    let report = loader.load(&json!({}), &[of_tenant(4, "nobody")], ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 0)]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_unknown_kind_is_the_tables_while_no_row_was_taken() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query(ROUTES).await?;
    // when the first events are of tenants without a table
    let events = [of_tenant(1, "nobody"), of_tenant(2, "nowhere")];
    let error = loader.load(&json!({}), &events, ISOLATE).await.expect_err("none is taken");
    // then they wait
    assert_eq!(error.fault(), Fault::Environment, "{error}");
    // until one is taken, or the table changes
    let events = [of_tenant(1, "nobody"), of_tenant(2, "nowhere"), of_tenant(3, "acme")];
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 0), (0, 1)]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_under_other_rules_proves_nothing() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query(ROUTES).await?;
    loader.load(&json!({}), &[of_tenant(1, "acme")], ISOLATE).await?;
    // when the table refuses everything since it changed
    let sql = "alter table t add always bigint generated always as (id) stored; \
        create function refuse() returns trigger language plpgsql as \
        $$begin raise exception 'closed' using errcode = '55000'; end$$; \
        create trigger a_refuse before insert on t for each row execute function refuse()";
    loader.database.query(sql).await?;
    let error = loader.load(&json!({}), &[of_tenant(2, "acme")], ISOLATE).await;
    // then it is the table's, and told as such
    let error = error.expect_err("the table takes nothing");
    assert_eq!(error.fault(), Fault::Environment, "{error}");
    assert!(error.to_string().contains("55000"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_batches_than_subtransactions_can_stay_are_loaded_but_for_a_row() -> Result<()> {
    for with in [key(), json!({})] {
        let loader = Loader::new().await?;
        loader.database.query("create table t (id bigint, n smallint, a text, b text)").await?;
        // given seventy events, none of which is like the one before
        let events: Vec<_> = (0..70)
            .map(|id| {
                let n = if id == 30 { 70_000 } else { 1 };
                let mut event = json!({"id": id, "n": n});
                if id % 2 == 1 {
                    event["a"] = json!("x");
                }
                event.to_string()
            })
            .collect();
        let batches = events.iter().map(|event| batch(&with, std::slice::from_ref(event)));
        let how = LoadOptions { rows: RowsOf::Events, ..ISOLATE };
        let report = loader.postgres.load(batches.collect(), how).await?;
        assert_eq!(refused(&report), BTreeSet::from([(30, 0)]), "{with}");
        assert_eq!(loader.number("select count(*) from t").await?, 69, "{with}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_micro_batch_per_event_is_loaded_but_for_a_row() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint, n smallint, a text)").await?;
    let mut events = MicroBatch::new("t", &options(&key()))?;
    for id in 0..70 {
        let n = if id == 63 { 70_000 } else { 1 };
        let event = match id % 2 {
            0 => json!({"id": id, "n": n}),
            _ => json!({"id": id, "n": n, "a": "x"}),
        };
        events.push(event.to_string().as_bytes())?;
    }
    let how = LoadOptions { rows: RowsOf::Events, ..ISOLATE };
    let report = loader.postgres.load(events.into_batches(), how).await?;
    assert_eq!(refused(&report), BTreeSet::from([(63, 0)]));
    assert_eq!(loader.number("select count(*) from t").await?, 69);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_too_long_is_loaded_in_parts() -> Result<()> {
    for with in [json!({}), key()] {
        // given a table that needs a millisecond a row, and statements that may take 300
        let loader = Loader::with_parameters(&json!({"statement_timeout": "300"})).await?;
        let sql = "create table t (id bigint primary key); \
            create function drag() returns trigger language plpgsql as \
            $$begin perform pg_sleep(0.001); return new; end$$; \
            create trigger drag before insert on t for each row execute function drag()";
        loader.database.query(sql).await?;
        // when more rows than that come in a batch
        let events: Vec<_> = (0..800).map(|id| json!({"id": id}).to_string()).collect();
        let report = loader.load(&with, &events, ISOLATE).await?;
        // then all of them are there, and none is refused
        assert_eq!((report.counts.loaded, report.counts.refused), (800, 0), "{with}");
        assert_eq!(loader.number("select count(*) from t").await?, 800, "{with}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_alone_takes_too_long_is_refused_where_others_are_taken() -> Result<()> {
    let loader = Loader::with_parameters(&json!({"statement_timeout": "300"})).await?;
    let sql = "create table t (id bigint); create function drag() returns trigger language plpgsql \
        as $$begin if new.id = 5 then perform pg_sleep(30); end if; return new; end$$; \
        create trigger drag before insert on t for each row execute function drag()";
    loader.database.query(sql).await?;
    let events: Vec<_> = (0..8).map(|id| json!({"id": id}).to_string()).collect();
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 5)]));
    assert_eq!(loader.number("select count(*) from t").await?, 7);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_row_takes_too_long_none_is_refused() -> Result<()> {
    let loader = Loader::with_parameters(&json!({"statement_timeout": "200"})).await?;
    let sql = "create table t (id bigint); create function drag() returns trigger language plpgsql \
        as $$begin perform pg_sleep(30); return new; end$$; \
        create trigger drag before insert on t for each row execute function drag()";
    loader.database.query(sql).await?;
    let events: Vec<_> = (0..4).map(|id| json!({"id": id}).to_string()).collect();
    let error = loader.load(&json!({}), &events, ISOLATE).await.expect_err("each takes 30 s");
    assert!(error.is_too_slow() && error.fault() == Fault::Environment, "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_search_shows_that_it_moves() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint, must bigint not null)").await?;
    let progress = Progress::default();
    let events: Vec<_> = (0..2_000).map(|id| json!({"id": id}).to_string()).collect();
    let postgres = loader.postgres.watched_by(&progress);
    let load =
        tokio::spawn(async move { postgres.load(vec![batch(&json!({}), &events)], ISOLATE).await });
    let mut seen = BTreeSet::new();
    while !load.is_finished() {
        seen.insert(progress.steps());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(load.await??.counts.refused, 2_000);
    assert!(seen.len() > 5, "{seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_without_their_key_cost_one_transaction() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint primary key, v bigint)").await?;
    // given many events without their key among those that have it
    let event = |n: usize| match n.is_multiple_of(10) {
        true => json!({"v": n}),
        false => json!({"id": n, "v": n}),
    };
    let events: Vec<_> = (0..2_000).map(|n| event(n).to_string()).collect();
    // when they are merged
    let report = loader.load(&key(), &events, ISOLATE).await?;
    assert_eq!((report.counts.loaded, report.counts.refused), (1_800, 200));
    // then the load does not begin anew for each of them
    let rollbacks = "select xact_rollback from pg_stat_database where datname = current_database()";
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(loader.number(rollbacks).await? < 20);
    Ok(())
}
