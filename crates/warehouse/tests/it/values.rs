//! What a value of an event is in the table: itself, or kept aside whole.

use anyhow::Result;
use serde_json::json;

use crate::loader::{ISOLATE, Loader};

/// Loads events one a time into table `t` and answers a column of all rows, in the order of `id`.
/// Nothing may be refused.
async fn stored(table: &str, events: &[&str], column: &str) -> Result<Vec<Option<String>>> {
    let loader = Loader::new().await?;
    loader.database.query(table).await?;
    for event in events {
        let report = loader.load(&json!({}), &[(*event).to_owned()], ISOLATE).await?;
        assert_eq!(report.counts.refused, 0, "{event}: {:?}", report.refused);
    }
    let rows =
        loader.database.query(&format!("select ({column})::text from t order by id")).await?;
    Ok(rows.into_iter().flatten().collect())
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_numeric_column_keeps_all_digits_that_it_was_made_for() -> Result<()> {
    let found = stored(
        "create table t (id bigint, n numeric(30,10), _unmapped_data jsonb)",
        &[
            r#"{"id": 1, "n": 9234567890.1234567890}"#,
            r#"{"id": 2, "n": 12345678901234567890}"#,
            r#"{"id": 3, "n": 0.1}"#,
            r#"{"id": 4, "n": "12.50"}"#,
        ],
        "coalesce(n::text, _unmapped_data::text)",
    );
    let expected = [
        "9234567890.1234567890",
        "12345678901234567890.0000000000",
        "0.1000000000",
        r#"{"n": "12.50"}"#,
    ];
    assert_eq!(found.await?, some(&expected));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_the_customers_own_gets_all_digits() -> Result<()> {
    for sql_type in ["amount", "varchar(30)"] {
        let table =
            format!("create domain amount as numeric; create table t (id bigint, n {sql_type})");
        let events =
            [r#"{"id": 1, "n": 9234567890.1234567890}"#, r#"{"id": 2, "n": 12345678901234567890}"#];
        let expected = ["9234567890.1234567890", "12345678901234567890"];
        assert_eq!(stored(&table, &events, "n").await?, some(&expected), "{sql_type}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_of_numeric_keeps_all_digits() -> Result<()> {
    let found = stored(
        "select 1",
        &[
            r#"{"id": 1, "n": 9234567890.1234567890, "__sql_type_n": "numeric(30,10)"}"#,
            r#"{"id": 2, "n": "12.50", "__sql_type_n": "numeric(30,10)"}"#,
            r#"{"id": 3, "n": 12345678901234567890, "__sql_type_n": "numeric(30,10)"}"#,
            r#"{"id": 4, "n": 1e-3, "__sql_type_n": "numeric(30,10)"}"#,
        ],
        "n",
    );
    let expected = [
        "9234567890.1234567890",
        "12.5000000000",
        "12345678901234567890.0000000000",
        "0.0010000000",
    ];
    assert_eq!(found.await?, some(&expected));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_a_type_cannot_hold_is_kept_aside() -> Result<()> {
    let cases = [
        ("smallint", "70000.5", r#"{"n": 70000.5}"#),
        ("integer", "3.5", r#"{"n": 3.5}"#),
        ("integer", "true", r#"{"n": true}"#),
        ("real", "1e39", r#"{"n": 1000000000000000000000000000000000000000}"#),
        ("numeric", "1e131072", r#"{"n": "1e131072"}"#),
        ("double precision", "1e400", r#"{"n": "1e400"}"#),
        ("double precision", "\"7e12345\"", r#"{"n": "7e12345"}"#),
        ("double precision", "\"0x1p1024\"", r#"{"n": "0x1p1024"}"#),
        ("double precision", "\"-1e999\"", r#"{"n": "-1e999"}"#),
    ];
    for (sql_type, value, expected) in cases {
        let table = format!("create table t (id bigint, n {sql_type})");
        let event = format!(r#"{{"id": 1, "n": {value}}}"#);
        let found = stored(&table, &[&event], "coalesce(n::text, _unmapped_data::text)").await?;
        assert_eq!(found, some(&[expected]), "{value} into {sql_type}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_keys_of_a_numeric_column_are_one_however_they_are_spelled() -> Result<()> {
    let loader = Loader::new().await?;
    loader.database.query("create table t (id numeric(20,2) primary key, v bigint)").await?;
    let options = json!({"primaryKey": "id", "deduplicate": true});
    let events = [r#"{"id": 1, "v": 1}"#, r#"{"id": 1.00, "v": 2}"#, r#"{"id": 1.001, "v": 3}"#];
    let report = loader.load(&options, &events.map(str::to_owned), ISOLATE).await?;
    assert_eq!((report.counts.loaded, report.counts.merged), (1, 2));
    assert_eq!(loader.number("select v from t").await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_real_nul_is_left_out_of_json_and_of_text() -> Result<()> {
    let texts = [r"a\u0000b", r"speaks of \\u0000 here", r"dir\\u0000new", r"\\\u0000x"];
    for (hint, column) in [(r#", "__sql_type_p": "jsonb""#, "p"), ("", "p_m")] {
        let event =
            |(id, text): (usize, &&str)| format!(r#"{{"id": {id}, "p": {{"m": "{text}"}}{hint}}}"#);
        let events: Vec<_> = texts.iter().enumerate().map(event).collect();
        let events: Vec<_> = events.iter().map(String::as_str).collect();
        let text = if hint.is_empty() { column.to_owned() } else { format!("{column} ->> 'm'") };
        let expected = ["ab", r"speaks of \u0000 here", r"dir\u0000new", r"\x"];
        assert_eq!(stored("select 1", &events, &text).await?, some(&expected), "{hint}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_of_json_goes_where_an_event_calls_it_json() -> Result<()> {
    for sql_type in ["character varying(100)", "char(9)", "name"] {
        let table = format!("create table t (id bigint, tags {sql_type})");
        let events = [
            r#"{"id": 1, "tags": [1], "__sql_type_tags": "jsonb"}"#,
            r#"{"id": 2, "tags": {"a": 1}, "__sql_type_tags": "json"}"#,
        ];
        let found = stored(&table, &events, "tags::text").await?;
        let found: Vec<_> = found.iter().flatten().map(|text| text.trim_end()).collect();
        assert_eq!(found, ["[1]", r#"{"a":1}"#], "{sql_type}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_surrogate_pair_is_stored_wherever_it_stands() -> Result<()> {
    let events = [
        r#"{"id": 1, "\ud83d": 1, "a": "\ud83d"}"#,
        r#"{"id": 2, "a": [{"\ud83d": 1}]}"#,
        r#"{"id": 3, "a": {"b": {"\ud83d": "\udc00"}}, "__sql_type_a": "jsonb"}"#,
        r#"{"id": 4, "a": {"\ud83d": {"__sql_type_c": "text", "c": 1}}}"#,
    ];
    for event in events {
        warehouse::check_event(event.as_bytes())?;
    }
    assert_eq!(stored("select 1", &events, "id").await?, some(&["1", "2", "3", "4"]));
    Ok(())
}
