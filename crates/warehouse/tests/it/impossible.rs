//! Columns, schemas and keys that cannot be made: the events that ask for them are handed back, all
//! others load.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Database;
use warehouse::{Batch, Fault, LoadError, LoadOptions, LoadReport, MicroBatch, RowsOf};

use crate::loader::{ISOLATE, Loader, batch, options};

const BY_EVENT: LoadOptions = LoadOptions { rows: RowsOf::Events, ..ISOLATE };

/// The event with this number, with a column `x` that is hinted so.
fn hinted(id: usize, hint: &Value) -> String {
    json!({"id": id, "x": "x", "__sql_type_x": hint}).to_string()
}

fn plain(id: usize) -> String {
    json!({"id": id}).to_string()
}

fn refused(report: &LoadReport) -> BTreeSet<(usize, usize)> {
    report.refused.iter().map(|row| (row.batch, row.row)).collect()
}

async fn ids(database: &Database) -> Result<Vec<String>> {
    let rows = database.query("select id from t order by id").await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_that_no_column_can_have_costs_the_events_that_have_it() -> Result<()> {
    let hints = [
        (json!("nosuchtype"), "42704"),
        (json!("nosuchschema.citext"), "3F000"),
        (json!("a.b.c"), "0A000"),
        (json!("a.b.c.d"), "42601"),
        (json!(["regclass", "regclass default 'nope'"]), "42P01"),
        (json!(["bigint", "bigint default 'x'"]), "22P02"),
        (json!(["date", "date default 5"]), "42804"),
        (json!("numeric(5000)"), "22023"),
        (json!("record"), "42P16"),
    ];
    for (hint, code) in hints {
        for has_table in [false, true] {
            // given a table, or none yet
            let loader = Loader::new().await?;
            if has_table {
                loader.load(&json!({}), &[plain(0)], ISOLATE).await?;
            }
            // when one event in three wants a column that cannot be made
            let events: Vec<_> =
                (1..10).map(|id| if id % 3 == 0 { hinted(id, &hint) } else { plain(id) }).collect();
            let report = loader.load(&json!({}), &events, ISOLATE).await?;
            // then those wait with the reason
            assert_eq!(refused(&report), BTreeSet::from([(0, 2), (0, 5), (0, 8)]), "{hint}");
            for row in &report.refused {
                assert_eq!(row.error.sqlstate, code, "{hint}: {}", row.error.full_text);
                assert!(!row.error.full_text.is_empty());
            }
            let expected = if has_table { 7 } else { 6 };
            assert_eq!(ids(&loader.database).await?.len(), expected, "{hint}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_rows_there_cannot_have_costs_the_events_that_want_it() -> Result<()> {
    let loader = Loader::new().await?;
    loader.load(&json!({}), &[plain(0)], ISOLATE).await?;
    let events = [hinted(1, &json!(["text", "text not null"])), plain(9)];
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 0)]));
    assert_eq!(report.refused[0].error.sqlstate, "23502");
    assert_eq!(ids(&loader.database).await?, ["0", "9"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_stream_cost_only_themselves_too() -> Result<()> {
    let loader = Loader::new().await?;
    let mut events = MicroBatch::new("t", &options(&json!({})))?;
    for event in [plain(1), hinted(2, &json!("nosuchtype")), plain(3), hinted(4, &json!("text"))] {
        events.push(event.as_bytes())?;
    }
    let report = loader.postgres.load(events.into_batches(), BY_EVENT).await?;
    assert_eq!(report.counts.refused, 1);
    assert_eq!(ids(&loader.database).await?, ["1", "3", "4"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_impossible_columns_all_are_found_at_once() -> Result<()> {
    // given as many columns that cannot be made as that can, each in an event of its own
    let loader = Loader::new().await?;
    let event = |id: usize| {
        let mut event = json!({"id": id});
        event[format!("c{id}")] = json!("x");
        let hint = if id.is_multiple_of(2) { "text" } else { "nosuchtype" };
        event[format!("__sql_type_c{id}")] = json!(hint);
        event.to_string()
    };
    let events: Vec<_> = (0..200).map(event).collect();
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused(&report), (0..100).map(|n| (0, 2 * n + 1)).collect());
    assert_eq!(loader.number("select count(*) from t where c198 = 'x' or c0 = 'x'").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_other_events_bring_without_the_hint_are_stored() -> Result<()> {
    let loader = Loader::new().await?;
    let events = [
        hinted(1, &json!("nosuchtype")),
        json!({"id": 2, "x": 5}).to_string(),
        hinted(3, &json!("varchar(7)")),
        hinted(4, &json!("nosuchtype")),
    ];
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 0), (0, 3)]));
    assert_eq!(loader.number("select count(*) from t where x in ('5', 'x')").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_nothing_but_an_impossible_column_makes_no_table() -> Result<()> {
    let loader = Loader::new().await?;
    let event = json!({"x": "x", "__sql_type_x": "nosuchtype"}).to_string();
    let report = loader.load(&json!({}), &[event], ISOLATE).await?;
    assert_eq!((report.counts.refused, report.counts.merged), (1, 0));
    assert_eq!(loader.number("select count(*) from pg_tables where tablename = 't'").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_hint_makes_impossible_costs_the_events_with_the_hint() -> Result<()> {
    let loader = Loader::new().await?;
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let events = [
        json!({"id": 1, "__sql_type_id": "json"}).to_string(),
        json!({"id": 2}).to_string(),
        json!({"id": 3}).to_string(),
    ];
    let report = loader.load(&options, &events, ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 0)]));
    assert_eq!(ids(&loader.database).await?, ["2", "3"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_system_columns_are_unmapped() -> Result<()> {
    for how in [ISOLATE, BY_EVENT] {
        let loader = Loader::new().await?;
        for id in [1, 2] {
            let event = json!({
                "id": id, "xmin": 2.5, "ctid": "C-77", "tableoid": true, "XMAX": 7, "oid": 9,
                "cmin": [1], "__sql_type_cmin": "nosuchtype",
            });
            let report = loader.load(&json!({}), &[event.to_string()], how).await?;
            assert_eq!(report.counts.loaded, 1);
        }
        let unmapped = "select count(*) from t where oid = 9 and \"XMAX\" = 7 and \
            _unmapped_data - 'cmin' = '{\"xmin\": 2.5, \"ctid\": \"C-77\", \"tableoid\": true}'";
        assert_eq!(loader.number(unmapped).await?, 2);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_has_no_place_in_a_full_table_costs_its_event() -> Result<()> {
    // given a table with as many columns as there can be
    let loader = Loader::new().await?;
    let columns: Vec<_> = (0..1_599).map(|n| format!("c{n} bigint")).collect();
    loader.database.query(&format!("create table t (id bigint, {})", columns.join(", "))).await?;
    // when an event brings one more
    let events = [plain(1), json!({"id": 2, "new": 1}).to_string(), plain(3)];
    let report = loader.load(&json!({}), &events, ISOLATE).await?;
    // then nothing of it is lost: it is handed back, and the others are there
    assert_eq!(refused(&report), BTreeSet::from([(0, 1)]));
    assert_eq!(report.refused[0].error.sqlstate, "54011");
    assert_eq!(ids(&loader.database).await?, ["1", "3"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_has_no_place_in_a_table_of_anothers_columns_costs_its_event() -> Result<()> {
    let kinds = [
        "create type shape as (id bigint); create table t of shape",
        "create table parent (id bigint) partition by range (id); \
         create table t partition of parent default",
    ];
    for sql in kinds {
        let loader = Loader::new().await?;
        loader.database.query(sql).await?;
        let events = [plain(1), json!({"id": 2, "new": 1}).to_string(), plain(3)];
        let report = loader.load(&json!({}), &events, ISOLATE).await?;
        assert_eq!(refused(&report), BTreeSet::from([(0, 1)]), "{sql}");
        assert_eq!(report.refused[0].error.sqlstate, "42809", "{sql}");
        assert_eq!(ids(&loader.database).await?, ["1", "3"], "{sql}");
    }
    Ok(())
}

/// A load of two batches: event 1 with these options, event 2 without.
async fn with_options(
    loader: &Loader,
    with: &Value,
    of_events: bool,
) -> Result<LoadReport, LoadError> {
    let first = batch(with, &[plain(1)]);
    let first = if of_events { first.with_event_options() } else { first };
    loader.postgres.load(vec![first, batch(&json!({}), &[plain(2)])], ISOLATE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_cannot_be_had_cost_the_events_that_came_with_them() -> Result<()> {
    let cases = [
        ("a schema that is reserved", "", json!({"namespace": "pg_mine"}), "42939"),
        ("a type that is not there", "", json!({"columnTypes": {"id": "nosuchtype"}}), "42704"),
        (
            "a key that the rows do not allow",
            "create table t (id bigint); insert into t values (1), (1)",
            json!({"primaryKey": "id", "deduplicate": true}),
            "23505",
        ),
        (
            "a view in the place of the table",
            "create schema other; create view other.t as select 1 as id",
            json!({"namespace": "other"}),
            "42809",
        ),
    ];
    for (name, sql, with, code) in cases {
        let loader = Loader::new().await?;
        if !sql.is_empty() {
            loader.database.query(sql).await?;
        }
        // when they came with the events
        let report = with_options(&loader, &with, true).await?;
        assert_eq!(refused(&report), BTreeSet::from([(0, 0)]), "{name}");
        assert_eq!(report.refused[0].error.sqlstate, code, "{name}");
        assert_eq!(loader.number("select count(*) from t where id = 2").await?, 1, "{name}");
        // when they are the destination's
        let loader = Loader::new().await?;
        if !sql.is_empty() {
            loader.database.query(sql).await?;
        }
        let error = with_options(&loader, &with, false).await.expect_err("it is the table's");
        assert_eq!(error.fault(), Fault::Environment, "{name}: {error}");
        assert!(error.to_string().contains(code), "{name}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_the_role_may_not_make_costs_the_events_that_name_it() -> Result<()> {
    // given a role that may use its own schema only
    let loader = Loader::of_plain_role("grant usage, create on schema public to {role}").await?;
    // when an event names another one
    let report = with_options(&loader, &json!({"namespace": "other"}), true).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 0)]));
    assert_eq!(report.refused[0].error.sqlstate, "42501");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_schema_that_is_denied_costs_the_events_that_name_it() -> Result<()> {
    for granted in ["select", "usage"] {
        // given a table of that name elsewhere, which the role may not fill
        let loader = Loader::of_plain_role(
            &"grant usage, create on schema public to {role}; create schema other; \
              create table other.t (id bigint); {granted}"
                .replace(
                    "{granted}",
                    match granted {
                        "usage" => "grant usage on schema other to {role}",
                        _ => "grant all on other.t to {role}", // but not its schema
                    },
                ),
        )
        .await?;
        // when an event names it
        let report = with_options(&loader, &json!({"namespace": "other"}), true).await?;
        // then it waits alone
        assert_eq!(refused(&report), BTreeSet::from([(0, 0)]), "{granted}");
        assert_eq!(report.refused[0].error.sqlstate, "42501", "{granted}");
        assert_eq!(ids(&loader.database).await?, ["2"], "{granted}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_the_table_lacks_is_waited_for() -> Result<()> {
    // given a table of another role's
    let loader = Loader::of_plain_role(
        "create table t (id bigint); grant select, insert on t to {role}; \
         grant usage on schema public to {role}",
    )
    .await?;
    // when events bring a column, one of them by a hint
    let events = [plain(1), json!({"id": 2, "y": 1}).to_string(), hinted(3, &json!("text"))];
    let error = loader.load(&json!({}), &events, ISOLATE).await.expect_err("it is not ours");
    // then none of them is blamed
    assert_eq!(error.fault(), Fault::Environment, "{error}");
    assert!(error.to_string().contains("must be owner of table t"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_that_differs_from_row_to_row_does_not_write_the_table_anew() -> Result<()> {
    let loader = Loader::new().await?;
    let sql = "create table t (id bigint); insert into t select generate_series(1, 1000)";
    loader.database.query(sql).await?;
    let file = "select pg_relation_filenode('t')::bigint";
    let before = loader.number(file).await?;
    let event = json!({
        "id": 0,
        "u": "00000000-0000-0000-0000-000000000000",
        "__sql_type_u": ["uuid", "uuid default gen_random_uuid()"],
        "at": "2026-11-24T00:00:00Z",
        "__sql_type_at": ["timestamptz", "timestamptz default clock_timestamp()"],
        "n": 5,
        "__sql_type_n": "bigserial",
    });
    let report = loader.load(&json!({}), &[event.to_string()], ISOLATE).await?;
    assert_eq!(report.counts.loaded, 1);
    assert_eq!(loader.number(file).await?, before);
    assert_eq!(loader.number("select count(*) from t where n = 5").await?, 1);
    loader.database.query("insert into t (id) values (-1)").await?;
    let filled = "select count(*) from t where u is not null and at is not null";
    assert_eq!(loader.number(filled).await?, 2, "later rows get the defaults");
    Ok(())
}

/// Batches are loaded together, so what one of them is refused for must leave the others alone.
#[tokio::test(flavor = "multi_thread")]
async fn batches_of_one_load_do_not_share_what_is_refused() -> Result<()> {
    let loader = Loader::new().await?;
    let batches: Vec<Batch> = vec![
        batch(&json!({}), &[plain(1), hinted(2, &json!("nosuchtype"))]),
        batch(&json!({}), &[hinted(3, &json!("text")), plain(4)]),
    ];
    let report = loader.postgres.load(batches, ISOLATE).await?;
    assert_eq!(refused(&report), BTreeSet::from([(0, 1)]));
    assert_eq!(ids(&loader.database).await?, ["1", "3", "4"]);
    Ok(())
}
