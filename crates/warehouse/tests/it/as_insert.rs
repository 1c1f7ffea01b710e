//! COPY means what INSERT means: tables of which the customer made more than we would.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::wait_until;
use warehouse::{
    LoadOptions, RowsOf,
    postgres::{Credentials, Postgres, Settings},
};

use crate::loader::{FAIL, ISOLATE, Loader, batch};

const AS_EVENTS: LoadOptions = LoadOptions { rows: RowsOf::Events, ..ISOLATE };
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

fn keyed() -> Value {
    json!({"primaryKey": "id", "deduplicate": true})
}

fn events(events: &[Value]) -> Vec<String> {
    events.iter().map(Value::to_string).collect()
}

/// A table's rows as JSON, one a line, without what is NULL.
async fn rows(loader: &Loader, table: &str) -> Result<Vec<Value>> {
    let sql = format!("select jsonb_strip_nulls(to_jsonb({table}))::text from {table} order by 1");
    let rows = loader.database.query(&sql).await?;
    let parsed = rows.into_iter().flatten().flatten().map(|text| serde_json::from_str(&text));
    Ok(parsed.collect::<Result<_, _>>()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_computed_column_are_postgresqls_and_those_of_events_are_kept_aside()
-> Result<()> {
    for how in [ISOLATE, FAIL, AS_EVENTS] {
        for options in [json!({}), keyed()] {
            // given
            let loader = Loader::new().await?;
            let table = "create table t (id bigint primary key, qty bigint, \
                         total bigint generated always as (qty * 10) stored)";
            loader.database.query(table).await?;
            // when one event brings a value of its own for it
            let brought = [json!({"id": 1, "qty": 2}), json!({"id": 2, "qty": 3, "total": 31})];
            for event in &events(&brought) {
                loader.load(&options, std::slice::from_ref(event), how).await?;
            }
            // then
            let expected = [
                json!({"id": 1, "qty": 2, "total": 20}),
                json!({"id": 2, "qty": 3, "total": 30, "_unmapped_data": {"total": 31}}),
            ];
            assert_eq!(rows(&loader, "t").await?, expected, "{how:?} {options}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_table_computes_its_columns() -> Result<()> {
    let loader = Loader::new().await?;
    let table = "create table t (id bigint generated always as identity, qty bigint, \
                 total bigint generated always as (qty * 10) stored)";
    loader.database.query(table).await?;
    let mut stream = warehouse::bulk::Stream::open(
        loader.postgres.clone(),
        "t",
        warehouse::bulk::BulkMode::ReplaceTable,
        crate::loader::options(&json!({})),
    )?;
    stream.consume(br#"{"id": 7, "qty": 3, "total": 31}"#).await?;
    stream.complete().await?;
    let expected = json!({"id": 7, "qty": 3, "total": 30, "_unmapped_data": {"total": 31}});
    assert_eq!(rows(&loader, "t").await?, [expected]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_single_events_follows_a_table_that_somebody_changes() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id bigint, qty bigint, total bigint)").await?;
    let (postgres, mode) = (loader.postgres.clone(), warehouse::bulk::BulkMode::Stream);
    let options = crate::loader::options(&json!({}));
    let mut stream = warehouse::bulk::Stream::open(postgres, "t", mode, options)?;
    stream.consume(br#"{"id": 1, "qty": 2, "total": 3}"#).await?;
    let change = "alter table t drop total; \
                  alter table t add total bigint generated always as (qty * 10) stored";
    loader.database.query(change).await?;
    stream.consume(br#"{"id": 2, "qty": 3, "total": 4}"#).await?;
    let expected = [
        json!({"id": 1, "qty": 2, "total": 20}),
        json!({"id": 2, "qty": 3, "total": 30, "_unmapped_data": {"total": 4}}),
    ];
    assert_eq!(rows(&loader, "t").await?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_takes_the_events_value_whether_its_key_is_new_or_repeats() -> Result<()> {
    for identity in ["always", "by default"] {
        for how in [ISOLATE, FAIL, AS_EVENTS] {
            let loader = Loader::new().await?;
            let table = format!(
                "create table t (id bigint generated {identity} as identity primary key, v text)"
            );
            loader.database.query(&table).await?;
            for (id, v) in [(7, "a"), (7, "b"), (8, "c")] {
                let event = json!({"id": id, "v": v}).to_string();
                let report = loader.load(&keyed(), &[event], how).await?;
                assert_eq!(report.counts.loaded, 1, "{identity} {how:?} {id}");
            }
            let expected = [json!({"id": 7, "v": "b"}), json!({"id": 8, "v": "c"})];
            assert_eq!(rows(&loader, "t").await?, expected, "{identity} {how:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_a_row_where_the_table_fills_its_own_key() -> Result<()> {
    let keys = [
        "bigserial",
        "bigint generated always as identity",
        "bigint generated by default as identity",
        "uuid default gen_random_uuid()",
        "timestamptz default clock_timestamp()",
        "timestamptz default now()",
        "timestamp default current_timestamp",
    ];
    let loader = Loader::new().await?;
    for key in keys {
        let columns = format!("seq {key} primary key, id bigint, v text");
        let table = format!("drop table if exists t; create table t ({columns})");
        for how in [ISOLATE, AS_EVENTS] {
            for options in [json!({}), json!({"primaryKey": "id"}), keyed()] {
                loader.database.query(&table).await?;
                let brought: Vec<_> =
                    (0..20).map(|id| json!({"id": id, "v": "x"}).to_string()).collect();
                for _ in 0..2 {
                    let report = loader.load(&options, &brought, how).await?;
                    assert_eq!((report.counts.loaded, report.counts.merged), (20, 0), "{key}");
                }
                let counted = "select count(*) + count(distinct seq) + count(distinct id) from t";
                assert_eq!(loader.number(counted).await?, 40 + 40 + 20, "{key} {how:?} {options}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_and_without_a_key_that_the_table_fills_are_loaded_together() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (seq bigserial primary key, id bigint, v text)").await?;
    let brought = [
        json!({"id": 1, "v": "a", "seq": 100}),
        json!({"id": 2, "v": "b"}),
        json!({"id": 3, "v": "c", "seq": 100}),
    ];
    let report = loader.load(&keyed(), &events(&brought), ISOLATE).await?;
    assert_eq!((report.counts.loaded, report.counts.merged), (2, 1));
    let expected = [json!({"id": 2, "v": "b", "seq": 1}), json!({"id": 3, "v": "c", "seq": 100})];
    assert_eq!(rows(&loader, "t").await?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_where_a_rule_of_the_table_sends_them() -> Result<()> {
    for how in [ISOLATE, FAIL, AS_EVENTS] {
        let loader = Loader::new().await?;
        let table = "create table t (id bigint); create table elsewhere (id bigint); \
                     create rule elsewhere as on insert to t do instead \
                     insert into elsewhere values (new.id)";
        loader.database.query(table).await?;
        let report = loader.load(&json!({}), &events(&[json!({"id": 1})]), how).await?;
        assert_eq!((report.counts.loaded, report.counts.merged), (1, 0));
        assert_eq!(loader.number("select count(*) from t").await?, 0);
        assert_eq!(loader.number("select count(*) from elsewhere").await?, 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_trigger_takes_elsewhere_count_as_loaded() -> Result<()> {
    let loader = Loader::new().await?;
    let table = "create table t (id bigint); create table elsewhere (id bigint); \
                 create function route() returns trigger language plpgsql as \
                 'begin insert into elsewhere values (new.id); return null; end'; \
                 create trigger route before insert on t for each row execute function route()";
    loader.database.query(table).await?;
    for how in [ISOLATE, FAIL, AS_EVENTS] {
        let report = loader.load(&json!({}), &events(&[json!({"id": 1})]), how).await?;
        assert_eq!((report.counts.loaded, report.counts.merged), (1, 0), "{how:?}");
    }
    assert_eq!(loader.number("select count(*) from elsewhere").await?, 3);
    Ok(())
}

/// A loader whose role is nobody special, and that role.
async fn as_plain_role(loader: &Loader) -> Result<(Postgres, String)> {
    let role = format!("plain_{}", loader.database.name());
    loader.database.query(&format!("create role {role} login password 'plain'")).await?;
    let mut credentials = loader.database.credentials();
    credentials["username"] = json!(role);
    credentials["password"] = json!("plain");
    let postgres = Postgres::new(&Credentials::read(&credentials)?, Settings::default())?;
    Ok((postgres, role))
}

#[tokio::test(flavor = "multi_thread")]
async fn under_row_level_security_rows_are_stored_that_the_policy_lets_pass() -> Result<()> {
    for (options, key) in [(json!({}), ""), (keyed(), "primary key")] {
        // given a policy for the role that loads
        let loader = Loader::new().await?;
        let (postgres, role) = as_plain_role(&loader).await?;
        let table = format!(
            "create table t (id bigint {key}, tenant text); insert into t values (1, 'acme'); \
             grant select, insert, update on t to {role}; \
             alter table t enable row level security; \
             create policy w on t to {role} using (true) with check (tenant like 'acme%')"
        );
        loader.database.query(&table).await?;
        // when
        let brought = [json!({"id": 1, "tenant": "acme 2"}), json!({"id": 3, "tenant": "acme"})];
        let report = postgres.load(vec![batch(&options, &events(&brought))], ISOLATE).await?;
        // then
        assert_eq!((report.counts.loaded, report.counts.refused), (2, 0));
        let sql = "select count(*) from t where (id, tenant) in ((1, 'acme 2'), (3, 'acme'))";
        assert_eq!(loader.number(sql).await?, 2);
        postgres.close().await;
        loader.database.query(&format!("drop owned by {role}; drop role {role}")).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_rights_on_columns_alone_rows_are_loaded() -> Result<()> {
    let loader = Loader::new().await?;
    let (postgres, role) = as_plain_role(&loader).await?;
    let table = format!(
        "create table t (id bigint, n bigint, secret text); grant insert (id, n) on t to {role}"
    );
    loader.database.query(&table).await?;
    let brought = events(&[json!({"id": 1, "n": 2})]);
    let report = postgres.load(vec![batch(&json!({}), &brought)], ISOLATE).await?;
    assert_eq!(report.counts.loaded, 1);
    postgres.close().await;
    loader.database.query(&format!("drop owned by {role}; drop role {role}")).await?;
    Ok(())
}

/// What somebody does to the table while a load waits for it, and what is then in `n`.
const CHANGES: [(&str, &str); 5] = [
    ("alter table t alter column n type double precision", "16000"),
    ("alter table t alter column n type timestamptz using to_timestamp(n)", ""),
    ("alter table t alter column n type text", "16000"),
    ("alter table t drop column n; alter table t add column n boolean", ""),
    ("alter table t rename to u; create table t (id bigint, n double precision)", "16000"),
];

#[tokio::test(flavor = "multi_thread")]
async fn values_are_read_as_what_they_are_by_a_table_that_changed_under_the_load() -> Result<()> {
    for how in [ISOLATE, FAIL, AS_EVENTS] {
        for (change, expected) in CHANGES {
            // given a table that somebody changes
            let loader = Loader::new().await?;
            loader.database.query("create table t (id bigint, n bigint)").await?;
            let mut somebody = loader.database.connect().await?;
            run(&mut somebody, &format!("begin; lock table t; {change}")).await?;
            // when a load has read the table as it was
            let brought = events(&[json!({"id": 1, "n": 16000})]);
            let options = json!({});
            let load = loader.load(&options, &brought, how);
            let commit = async {
                let waiting = "select count(*) from pg_locks where not granted and \
                               database = (select oid from pg_database where datname = current_database())";
                wait_until(LIMIT, async || loader.number(waiting).await.is_ok_and(|n| n > 0))
                    .await?;
                run(&mut somebody, "commit").await
            };
            let (report, committed) = tokio::join!(load, commit);
            committed?;
            // then its values are those of the event
            assert_eq!(report?.counts.loaded, 1, "{change}");
            let sql = "set time zone 'UTC'; select coalesce(n::text, '') from t where id = 1";
            let found = loader.database.query(sql).await?;
            assert_eq!(found[0][0].as_deref(), Some(expected), "{how:?} {change}");
        }
    }
    Ok(())
}

async fn run(connection: &mut sqlx::PgConnection, sql: &str) -> Result<()> {
    use sqlx::Executor;
    connection.execute(sqlx::raw_sql(sql)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_trigger_says_much_is_loaded() -> Result<()> {
    // notices fill the connection while rows are sent; information is sent whatever one asks for
    for level in ["notice", "warning", "info"] {
        let loader = Loader::new().await?;
        let table = format!(
            "create table t (id bigint, v text); \
             create function say() returns trigger language plpgsql as \
             $$ begin raise {level} '%', repeat(new.v, 2); return new; end $$; \
             create trigger say before insert on t for each row execute function say()"
        );
        loader.database.query(&table).await?;
        let v = "lorem ipsum ".repeat(40);
        let brought: Vec<_> = (0..20_000).map(|id| json!({"id": id, "v": v}).to_string()).collect();
        let options = json!({});
        let load = loader.load(&options, &brought, ISOLATE);
        let report = tokio::time::timeout(2 * LIMIT, load).await??;
        assert_eq!(report.counts.loaded, 20_000, "{level}");
    }
    Ok(())
}
