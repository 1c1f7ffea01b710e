//! Keys: those that a table gets while it is used, and those that it has already.

use anyhow::Result;
use serde_json::{Value, json};

use crate::loader::{FAIL, ISOLATE, Loader};

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
