//! Rows that the database refuses although our types accept them: exactly those are handed back,
//! all others load.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use warehouse::LoadReport;

use crate::{
    ledger::Account,
    loader::{FAIL, ISOLATE, Loader, batch},
};

/// Enough for several segments.
const EVENTS: usize = 3_000;

/// One reason for which a database refuses rows.
struct Kind {
    name: &'static str,
    /// Made before the load.
    sql: &'static str,
    /// An event with this number that the table takes.
    good: fn(usize) -> Value,
    /// One that it refuses.
    bad: fn(usize) -> Value,
    sqlstate: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "a number out of range",
        sql: "create table t (id bigint, n smallint)",
        good: |id| json!({"id": id, "n": id % 100}),
        bad: |id| json!({"id": id, "n": 70_000}),
        sqlstate: "22003",
    },
    Kind {
        name: "an invalid date in a typed column",
        sql: "create table t (id bigint, d date)",
        good: |id| json!({"id": id, "d": "2026-11-24T00:00:00Z"}),
        bad: |id| json!({"id": id, "d": "2026-02-30", "__sql_type_d": "date"}),
        sqlstate: "22008",
    },
    Kind {
        name: "a text that is no JSON",
        sql: "create table t (id bigint, j jsonb)",
        good: |id| json!({"id": id, "j": "{\"a\": 1}"}),
        bad: |id| json!({"id": id, "j": "{\"a\": "}),
        sqlstate: "22P02",
    },
    Kind {
        name: "a null where there must be none",
        sql: "create table t (id bigint, n bigint not null)",
        good: |id| json!({"id": id, "n": 1}),
        bad: |id| json!({"id": id}),
        sqlstate: "23502",
    },
    Kind {
        name: "a check",
        sql: "create table t (id bigint, n bigint check (n < 10))",
        good: |id| json!({"id": id, "n": 9}),
        bad: |id| json!({"id": id, "n": 10}),
        sqlstate: "23514",
    },
    Kind {
        name: "a key that is there already",
        sql: "create table t (id bigint, n bigint unique); \
              insert into t (n) select -value from generate_series(1, 3000) value",
        good: |id| json!({"id": id, "n": id}),
        bad: |id| json!({"id": id, "n": -1 - i64::try_from(id).unwrap_or(0)}),
        sqlstate: "23505",
    },
    Kind {
        name: "a foreign key",
        sql: "create table parents (id bigint primary key); insert into parents values (1); \
              create table t (id bigint, parent bigint references parents)",
        good: |id| json!({"id": id, "parent": 1}),
        bad: |id| json!({"id": id, "parent": 2 + id}),
        sqlstate: "23503",
    },
    Kind {
        name: "a foreign key that is deferred to the end of the transaction",
        sql: "create table parents (id bigint primary key); insert into parents values (1); \
              create table t (id bigint, \
              parent bigint references parents deferrable initially deferred)",
        good: |id| json!({"id": id, "parent": 1}),
        bad: |id| json!({"id": id, "parent": 2 + id}),
        sqlstate: "23503",
    },
    Kind {
        name: "a trigger that raises before a row",
        sql: "create table t (id bigint, n bigint); \
              create function refuse() returns trigger language plpgsql as \
              $$begin if new.n = 13 then raise exception 'no %', new.n; end if; return new; end$$; \
              create trigger refuse before insert on t for each row execute function refuse()",
        good: |id| json!({"id": id, "n": 1}),
        bad: |id| json!({"id": id, "n": 13}),
        sqlstate: "P0001",
    },
    Kind {
        name: "a deferred trigger that raises after all rows",
        sql: "create table t (id bigint, n bigint); \
              create function refuse() returns trigger language plpgsql as \
              $$begin if new.n = 13 then raise exception 'no %', new.n; end if; return new; end$$; \
              create constraint trigger refuse after insert on t deferrable initially deferred \
              for each row execute function refuse()",
        good: |id| json!({"id": id, "n": 1}),
        bad: |id| json!({"id": id, "n": 13}),
        sqlstate: "P0001",
    },
    Kind {
        name: "a row too wide for an index",
        sql: "create table t (id bigint, n text); create index on t (n)",
        good: |id| json!({"id": id, "n": "short"}),
        bad: |id| json!({"id": id, "n": incompressible(id, 9_000)}),
        sqlstate: "54000",
    },
];

/// Text that PostgreSQL cannot make smaller.
fn incompressible(seed: usize, length: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("{:08x}", state >> 32));
    }
    text
}

/// Numbers of the bad events: neighbours, the first, the last, and some in between.
fn bad_numbers() -> BTreeSet<usize> {
    BTreeSet::from([0, 1, 700, 1_499, 1_500, 2_200, EVENTS - 1])
}

fn events(kind: &Kind, bad: &BTreeSet<usize>) -> Vec<String> {
    let event = |number| match bad.contains(&number) {
        true => (kind.bad)(number),
        false => (kind.good)(number),
    };
    (0..EVENTS).map(|number| event(number).to_string()).collect()
}

fn refused_rows(report: &LoadReport) -> BTreeSet<usize> {
    report.refused.iter().map(|row| row.row).collect()
}

async fn check(kind: &Kind, options: &Value) -> Result<()> {
    // given a table that refuses some values
    let loader = Loader::new().await?;
    loader.database.query(kind.sql).await?;
    let before = loader.number("select count(*) from t").await?;
    let bad = bad_numbers();
    // when a batch brings such values
    let report = loader.load(options, &events(kind, &bad), ISOLATE).await?;

    // then those rows are handed back with the reason, and the others are there
    assert_eq!(refused_rows(&report), bad, "{}", kind.name);
    for row in &report.refused {
        assert_eq!(row.error.sqlstate, kind.sqlstate, "{}: {}", kind.name, row.error.full_text);
    }
    let good = EVENTS - bad.len();
    assert_eq!(report.counts.loaded, good as u64, "{}", kind.name);
    assert_eq!(report.counts.refused, bad.len() as u64, "{}", kind.name);
    let stored = loader.number("select count(*) from t").await? - before;
    assert_eq!(stored, i64::try_from(good)?, "{}", kind.name);
    let list = bad.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let of_bad = format!("select count(*) from t where id in ({list})");
    assert_eq!(loader.number(&of_bad).await?, 0, "{}", kind.name);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_costs_itself() -> Result<()> {
    for kind in KINDS {
        check(kind, &json!({})).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_costs_itself_where_rows_are_merged() -> Result<()> {
    for kind in KINDS.iter().filter(|kind| kind.sqlstate != "23505") {
        check(kind, &json!({"primaryKey": "id", "deduplicate": true})).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_isolation_a_refused_row_fails_the_batch() -> Result<()> {
    let kind = &KINDS[0];
    let loader = Loader::new().await?;
    loader.database.query(kind.sql).await?;
    let loaded = loader.load(&json!({}), &events(kind, &bad_numbers()), FAIL).await;
    let error = loaded.expect_err("a row is refused");
    assert!(!error.is_retriable(), "{error}");
    let shown = format!("{error} {error:?}");
    ensure!(!shown.contains("70000"), "a value of a row in {shown}");
    let server = error.server_error().map(|error| error.full_text.as_str());
    ensure!(server.is_some_and(|text| text.contains("70000")), "the owner gets all of it");
    assert_eq!(loader.number("select count(*) from t").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_rows_with_one_key_in_a_batch_the_later_is_refused() -> Result<()> {
    let loader = Loader::new().await?;
    let event = |id: usize, n: usize| json!({"id": id, "n": n}).to_string();
    let mut events: Vec<_> = (0..EVENTS).map(|id| event(id, 0)).collect();
    events[2_000] = event(5, 1);
    events[6] = event(5, 2);
    let report = loader.load(&json!({"primaryKey": "id"}), &events, ISOLATE).await?;
    assert_eq!(refused_rows(&report), BTreeSet::from([6, 2_000]));
    assert_eq!(loader.number("select n from t where id = 5").await?, 0);
    assert_eq!(loader.number("select count(*) from t").await?, i64::try_from(EVENTS)? - 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_merged_by_the_key_that_the_table_has() -> Result<()> {
    // given a key of the customer's own over other columns than the stream's
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint, other bigint primary key, v bigint)").await?;
    let event =
        |id: usize, other: usize, v: usize| json!({"id": id, "other": other, "v": v}).to_string();
    let events = [event(1, 5, 1), event(2, 5, 2), event(3, 6, 3)];
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let counts = loader.load(&options, &events, ISOLATE).await?.counts;
    assert_eq!((counts.loaded, counts.merged, counts.refused), (2, 1, 0));
    assert_eq!(loader.number("select v from t where other = 5").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_fail_only_together_end_somewhere() -> Result<()> {
    // given a key to which rows are equal that our comparison tells apart
    let loader = Loader::new().await?;
    let sql = "create collation caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
               create table t (id text collate caseless primary key, n bigint)";
    loader.database.query(sql).await?;
    let name =
        |n: usize| if n.is_multiple_of(2) { format!("key {n}") } else { format!("KEY {}", n - 1) };
    let events: Vec<_> = (0..700).map(|n| json!({"id": name(n), "n": n}).to_string()).collect();
    let options = json!({"primaryKey": "id", "deduplicate": true});
    // when they are merged, which one statement cannot do
    let report = loader.load(&options, &events, ISOLATE).await?;
    // then none is lost: each is there, replaced by its twin, or handed back
    assert_eq!(loader.number("select count(*) from t").await?, 350);
    assert_eq!(report.counts.loaded + report.counts.refused, 700);
    assert!(report.refused.iter().all(|row| row.error.sqlstate == "21000"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_leaves_its_place_to_an_earlier_one_of_its_key() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint, n smallint)").await?;
    let events = [
        json!({"id": 1, "n": 1}).to_string(),
        json!({"id": 1, "n": 2}).to_string(),
        json!({"id": 1, "n": 70_000}).to_string(),
        json!({"id": 2, "n": 3}).to_string(),
    ];
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let report = loader.load(&options, &events, ISOLATE).await?;
    assert_eq!(refused_rows(&report), BTreeSet::from([2]));
    assert_eq!((report.counts.loaded, report.counts.merged), (2, 1));
    assert_eq!(loader.number("select n from t where id = 1").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_too_wide_for_a_page_is_refused() -> Result<()> {
    let loader = Loader::new().await?;
    let columns: Vec<_> = (0..1_400).map(|n| format!("c{n} double precision")).collect();
    loader.database.query(&format!("create table t (id bigint, {})", columns.join(", "))).await?;
    let wide = |id: usize, columns: usize| {
        let values = (0..columns).map(|n| (format!("c{n}"), json!(0.5)));
        let all: serde_json::Map<_, _> =
            [("id".to_owned(), json!(id))].into_iter().chain(values).collect();
        Value::Object(all).to_string()
    };
    let events: Vec<_> = (0..20).map(|id| wide(id, if id == 10 { 1_400 } else { 3 })).collect();
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused_rows(&report), BTreeSet::from([10]));
    assert_eq!(report.refused[0].error.sqlstate, "54000");
    assert_eq!(loader.number("select count(*) from t").await?, 19);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_their_key_are_refused() -> Result<()> {
    let loader = Loader::new().await?;
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let without: Vec<_> = (0..10).map(|n| json!({"n": n}).to_string()).collect();
    // no event has the column, and there is no table
    let report = loader.load(&options, &without, ISOLATE).await?;
    assert_eq!(report.counts.refused, 10);
    // some have it
    let mixed = [json!({"id": 1, "n": 1}).to_string(), json!({"n": 2}).to_string()];
    let report = loader.load(&options, &mixed, ISOLATE).await?;
    assert_eq!(refused_rows(&report), BTreeSet::from([1]));
    // none has it, and the table does
    let report = loader.load(&options, &without, ISOLATE).await?;
    assert_eq!(report.counts.refused, 10);
    assert_eq!(loader.number("select count(*) from t").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_nothing_but_refused_rows_ends() -> Result<()> {
    let kind = &KINDS[4];
    let loader = Loader::new().await?;
    loader.database.query(kind.sql).await?;
    let all: BTreeSet<_> = (0..EVENTS / 10).collect();
    let events: Vec<_> = events(kind, &all).into_iter().take(all.len()).collect();
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused_rows(&report), all);
    assert_eq!(loader.number("select count(*) from t").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_refused_rows_do_not_slow_everybody_down() -> Result<()> {
    // given far more bad rows than a backend announces subtransactions (64)
    let kind = &KINDS[4];
    let loader = Loader::new().await?;
    loader.database.query(kind.sql).await?;
    let bad: BTreeSet<_> = (0..EVENTS).step_by(10).collect();
    // when they are cut out, and another session takes a snapshot while the load's transaction is
    // open
    let mut account = Account::open(&loader.postgres).await?;
    let batch = batch(&json!({}), &events(kind, &bad));
    let staged = loader.postgres.stage(vec![batch], Some(account.fence()), ISOLATE).await?;
    let overflowed = snapshot_overflowed(&loader.database.url()).await?;
    let changes = account.changes(staged.report());
    let report = staged.commit(&changes).await?;
    // then the snapshot lists all subtransactions that are open
    assert_eq!(refused_rows(&report), bad);
    assert!(!overflowed);
    Ok(())
}

/// Whether a snapshot that is taken now lacks open subtransactions, because some backend had too
/// many.
async fn snapshot_overflowed(url: &str) -> Result<bool> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute("begin isolation level repeatable read").await?;
    let (file,): (String,) =
        sqlx::query_as("select pg_export_snapshot()").fetch_one(&mut connection).await?;
    let (text,): (String,) = sqlx::query_as("select pg_read_file('pg_snapshots/' || $1)")
        .bind(file)
        .fetch_one(&mut connection)
        .await?;
    ensure!(text.contains("sof:"), "no such line in {text}");
    Ok(text.contains("sof:1"))
}
