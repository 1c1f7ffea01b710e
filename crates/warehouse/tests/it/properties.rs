//! What holds for any events, against a real table.

use std::collections::BTreeSet;

use anyhow::Result;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};
use warehouse::{Batch, DiskLimit, MemoryLimit, NameOf, RowError, StreamOptions, identifier};

use crate::loader::{FAIL, ISOLATE, Loader, batch};

/// Loads are slow next to unit tests, so the generated events come in batches.
const BATCHES: usize = 25;
const EVENTS: usize = 40;

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no other", |f| f.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[12][0-9]{3}-[01][0-9]-[0-3][0-9](T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-][01][0-9]:[0-5][0-9])?)?"
            .prop_map(Value::from),
        "[0-9]{1,25}(\\.[0-9]{1,3})?".prop_map(Value::from),
        Just(Value::from("true")),
    ]
}

/// Few names, so that values of all kinds meet in one column; and any name at all.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[abcABC_]{0,2}", 2 => any::<String>(), 1 => "[a-zé]{60,70}"]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..4)
                .prop_map(|entries| { Value::Object(entries.into_iter().collect::<Map<_, _>>()) }),
        ]
    })
}

fn event() -> impl Strategy<Value = Value> {
    prop::collection::vec((key(), value()), 0..8)
        .prop_map(|entries| Value::Object(entries.into_iter().collect::<Map<_, _>>()))
}

fn generated<T>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).expect("the strategy makes values").current()
}

/// Every run of a test sees the same values.
pub(crate) fn runner() -> TestRunner {
    TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn any_object_loads_or_is_refused_by_name() -> Result<()> {
    let mut runner = runner();
    for _ in 0..BATCHES {
        let loader = Loader::new().await?;
        let mut expected = 0;
        // the second batch meets the types that the first one made
        for _ in 0..2 {
            let mut batch = Batch::new("t", StreamOptions::default().into())?;
            for _ in 0..EVENTS {
                let event = generated(&mut runner, &event()).to_string();
                match batch.push(event.as_bytes()) {
                    Ok(()) => {}
                    Err(RowError::Hint { .. } | RowError::SqlType { .. }) => {}
                    Err(error) => panic!("{error}: {event}"),
                }
            }
            let total = batch.row_count() as u64;
            let counts = loader.postgres.load(vec![batch], ISOLATE).await?.counts;
            assert_eq!(counts.loaded + counts.merged, total, "{counts:?}");
            assert_eq!(counts.refused, 0, "all types are ours, so all values fit");
            expected += counts.loaded;
        }
        assert_eq!(loader.number("select count(*) from t").await?, i64::try_from(expected)?);
    }
    Ok(())
}

/// An event and what its columns read back as.
fn typed_event() -> impl Strategy<Value = (Value, Vec<Option<String>>)> {
    let text = "[^\\x00]{0,20}"
        .prop_filter("not a timestamp", |text| !text.starts_with(['1', '2']) || text.len() < 19);
    (any::<i64>(), any::<bool>(), text, 0_i64..4_000_000_000, -1e15_f64..1e15, any::<Option<i32>>())
        .prop_map(|(int, bool, text, second, float, maybe)| {
            let at = jiff::Timestamp::constant(second, 0).strftime("%Y-%m-%dT%H:%M:%S").to_string();
            let event = json!({
                "int": int, "bool": bool, "text": text, "at": format!("{at}Z"), "float": float,
                "maybe": maybe, "list": [int, text],
            });
            let columns = vec![
                Some(int.to_string()),
                Some(bool.to_string()),
                Some(text.clone()),
                Some(at),
                Some(float.to_bits().to_string()),
                maybe.map(|maybe| maybe.to_string()),
                Some(json!([int, text]).to_string()),
            ];
            (event, columns)
        })
}

const READ_BACK: &str = "select \"int\"::text, bool::text, \"text\", \
    to_char(\"at\" at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS'), \"float\"::text, \
    maybe::text, list from t order by number";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_loaded_reads_back_equal() -> Result<()> {
    let mut runner = runner();
    let loader = Loader::new().await?;
    let cases: Vec<_> = (0..500).map(|_| generated(&mut runner, &typed_event())).collect();
    let numbered = |(number, (event, _)): (usize, &(Value, Vec<Option<String>>))| {
        let mut event = event.clone();
        event["number"] = json!(number);
        event.to_string()
    };
    let events: Vec<_> = cases.iter().enumerate().map(numbered).collect();
    assert_eq!(loader.load(&json!({}), &events, FAIL).await?.counts.loaded, 500);
    let rows = loader.database.query(READ_BACK).await?;
    for ((event, mut expected), mut row) in cases.into_iter().zip(rows) {
        // floats by their bits: equal numbers may be spelled differently
        let float: f64 = row[4].as_deref().unwrap_or_default().parse()?;
        row[4] = Some(float.to_bits().to_string());
        if expected[4].as_deref() == Some(&(-0.0_f64).to_bits().to_string()) {
            expected[4] = Some(0.0_f64.to_bits().to_string());
        }
        assert_eq!(row, expected, "{event}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_events_does_not_change_the_set_of_rows() -> Result<()> {
    // no two kinds of values in a column: which type such a column gets is decided by all of them,
    // but which text a value leaves may depend on where it stood
    let mut runner = runner();
    for _ in 0..5 {
        let events: Vec<_> =
            (0..EVENTS).map(|_| generated(&mut runner, &typed_event()).0.to_string()).collect();
        let mut reversed = events.clone();
        reversed.reverse();
        let mut sets = Vec::new();
        for events in [events, reversed] {
            let loader = Loader::new().await?;
            loader.load(&json!({}), &events, ISOLATE).await?;
            let rows = loader.database.query("select to_jsonb(t)::text from t").await?;
            let mut rows: Vec<_> = rows.into_iter().flatten().collect();
            rows.sort();
            sets.push(rows);
        }
        assert_eq!(sets[0], sets[1]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_on_disk_loads_as_one_in_memory() -> Result<()> {
    let mut runner = runner();
    let events: Vec<_> = (0..2_000).map(|_| generated(&mut runner, &event()).to_string()).collect();
    let limit = MemoryLimit { bytes: 1, folder: std::env::temp_dir(), disk: DiskLimit::default() };
    let (mut contents, mut sizes) = (Vec::new(), Vec::new());
    for limit in [None, Some(limit)] {
        let loader = Loader::new().await?;
        let mut batch = batch(&json!({}), &[]);
        if let Some(limit) = &limit {
            batch = batch.with_memory_limit(limit.clone());
        }
        for (number, event) in events.iter().enumerate() {
            batch.push(event.as_bytes())?;
            if number % 500 == 0 {
                // more than a chunk of rows in memory, now and then
                batch.push(json!({"filler": "x".repeat(600_000)}).to_string().as_bytes())?;
            }
        }
        sizes.push(batch.byte_size());
        loader.postgres.load(vec![batch], ISOLATE).await?;
        contents.push(loader.database.query("select to_jsonb(t)::text from t").await?);
    }
    assert!(sizes[1] + (1 << 20) < sizes[0], "bytes in memory: {sizes:?}");
    assert_eq!(contents[0], contents[1]);
    Ok(())
}

proptest! {
    #[test]
    fn names_are_short_clean_and_stay_as_they_are(name in any::<String>()) {
        for of in [NameOf::Table, NameOf::Column] {
            let once = identifier(&name, of).into_owned();
            prop_assert!(!once.is_empty() && once.len() <= 63, "{once}");
            prop_assert!(!once.contains(['"', '\0', '\'', '.', ';']), "{once}");
            prop_assert_eq!(identifier(&once, of).into_owned(), once.clone());
        }
    }

    #[test]
    fn columns_of_a_batch_are_different_names(event in event()) {
        let mut batch = Batch::new("t", StreamOptions::default().into()).unwrap();
        if batch.push(event.to_string().as_bytes()).is_ok() {
            let (columns, _) = warehouse::postgres::copy_text(&batch).unwrap();
            let set: BTreeSet<_> = columns.iter().collect();
            prop_assert_eq!(set.len(), columns.len());
            prop_assert!(columns.iter().all(|name| !name.is_empty() && name.len() <= 63));
        }
    }
}
