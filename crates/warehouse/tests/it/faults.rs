//! Whose fault a failed load is: what is waited for, and what leads to an event.

use anyhow::Result;
use serde_json::{Value, json};
use warehouse::{Fault, LoadError};

use crate::loader::{FAIL, Loader};

const RAISES: &str = "create function raises() returns trigger language plpgsql as \
                      $$begin raise exception 'secret %', new.id using errcode = '{}'; end$$; \
                      create trigger raises before insert on t for each row \
                      execute function raises()";

/// What a load of `event` into a table that `sql` made ends with.
async fn failed(sql: &str, event: &Value) -> Result<LoadError> {
    let loader = Loader::new().await?;
    loader.database.query(&format!("create table t (id bigint, n bigint); {sql}")).await?;
    let loaded = loader.load(&json!({}), &[event.to_string()], FAIL).await;
    Ok(loaded.expect_err("the table does not take it"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_function_raises_is_never_the_environments() -> Result<()> {
    let cases = [
        ("P0001", Fault::Event),
        ("23514", Fault::Event),
        ("53400", Fault::Unknown),
        ("55000", Fault::Unknown),
        ("57014", Fault::Unknown),
        ("40001", Fault::Unknown),
        ("08006", Fault::Unknown),
        ("28000", Fault::Unknown),
        ("42501", Fault::Unknown),
        ("XX002", Fault::Unknown),
    ];
    for (code, fault) in cases {
        let error = failed(&RAISES.replace("{}", code), &json!({"id": 4711})).await?;
        assert_eq!(error.fault(), fault, "{code}: {error:?}");
        assert!(!error.is_retriable() && !error.is_too_slow(), "{code}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("4711"), "a value of a row in {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_says_itself_is_told_apart() -> Result<()> {
    let through_a_function = "create function routes() returns trigger language plpgsql as \
         $$begin execute 'insert into t_' || new.id || ' values (1)'; return null; end$$; \
         create trigger routes before insert on t for each row execute function routes()";
    let cases = [
        ("a value out of range", "alter table t alter n type smallint", Fault::Event),
        ("a check", "alter table t add check (n < 10)", Fault::Event),
        ("a table that only a function names", through_a_function, Fault::Unknown),
        (
            "a table that only reads",
            "alter database {} set default_transaction_read_only = on",
            Fault::Environment,
        ),
    ];
    for (name, sql, fault) in cases {
        let loader = Loader::new().await?;
        let database =
            loader.database.credentials()["database"].as_str().unwrap_or_default().to_owned();
        loader.database.query("create table t (id bigint, n bigint)").await?;
        loader.database.query(&sql.replace("{}", &database)).await?;
        let event = json!({"id": 1, "n": 70_000}).to_string();
        let loaded = loader.load(&json!({}), &[event], FAIL).await;
        let error = loaded.expect_err("the table does not take it");
        assert_eq!(error.fault(), fault, "{name}: {error:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_the_server_ended_for_its_length_is_too_slow() -> Result<()> {
    let slow = "create function sleeps() returns trigger language plpgsql as \
                $$begin perform pg_sleep(30); return new; end$$; \
                create trigger sleeps before insert on t for each row execute function sleeps()";
    let loader = Loader::with_parameters(&json!({"statement_timeout": "200"})).await?;
    loader.database.query(&format!("create table t (id bigint, n bigint); {slow}")).await?;
    let loaded = loader.load(&json!({}), &[json!({"id": 1}).to_string()], FAIL).await;
    let error = loaded.expect_err("it takes too long");
    assert_eq!((error.fault(), error.is_too_slow()), (Fault::Environment, true), "{error:?}");
    Ok(())
}
