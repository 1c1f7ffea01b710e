//! Any bytes on the way from JSON to a row: they are refused whole, or they become one line of COPY
//! text.
//!
//! `make fuzz` runs it; it wants cargo-fuzz and nightly Rust.

#![no_main]

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
};

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use warehouse::{Batch, StreamOptions, check_event, postgres::copy_text};

/// PostgreSQL's limit of a name, in bytes.
const NAME_LIMIT: usize = 63;
/// An event that comes before the fuzzed one in some batches: it gives columns types that others
/// may not fit.
const EARLIER: &[u8] =
    br#"{"id":1,"a":2,"b":{"c":true,"d":"2024-02-29"},"at":"2024-02-29T12:00:00Z","f":1.5,"j":[1]}"#;

static PLAIN: LazyLock<Arc<StreamOptions>> = LazyLock::new(Arc::default);
static STRICT: LazyLock<Arc<StreamOptions>> = LazyLock::new(|| {
    let mut options = StreamOptions::default();
    let given = [
        ("toSameCase", json!(true)),
        ("maxColumnsCount", json!(5)),
        ("columnTypes", json!({"a": "bigint"})),
        ("deduplicate", json!(true)),
        ("primaryKey", json!("id")),
    ];
    for (key, value) in given {
        options.set(key, &value).expect("the option is registered");
    }
    options.into()
});

fuzz_target!(|bytes: &[u8]| {
    let is_event = check_event(bytes).is_ok();
    for options in [&*PLAIN, &*STRICT] {
        for earlier in [None, Some(EARLIER)] {
            push_and_encode(bytes, is_event, earlier, options);
        }
    }
});

fn push_and_encode(
    bytes: &[u8],
    is_event: bool,
    earlier: Option<&[u8]>,
    options: &Arc<StreamOptions>,
) {
    let mut batch = Batch::new("t", options.clone()).expect("the options fit together");
    if let Some(earlier) = earlier {
        batch.push(earlier).expect("the earlier event is one");
    }
    // twice: the second time its paths are known
    for _ in 0..2 {
        let rows_before = batch.row_count();
        let pushed = batch.push(bytes);
        // what is checked at intake may still be refused here, for its hints or its keys; not the
        // other way round
        assert!(is_event || pushed.is_err(), "a row of what is no event");
        let added = usize::from(pushed.is_ok());
        assert_eq!(batch.row_count(), rows_before + added, "{pushed:?}");
    }
    let (columns, text) = copy_text(&batch).expect("rows in memory can be read");
    check_names(&columns);
    check_text(&text, batch.row_count(), columns.len());
}

fn check_names(columns: &[String]) {
    let mut seen = HashSet::new();
    for name in columns {
        assert!(!name.is_empty(), "a column without a name");
        assert!(name.len() <= NAME_LIMIT, "{} bytes: {name:?}", name.len());
        assert!(!name.contains(['\0', '"']), "{name:?}");
        assert!(seen.insert(name), "twice: {name:?}");
    }
}

/// Rows end with a newline, fields with a tab or their row; neither is inside a field.
fn check_text(text: &[u8], rows: usize, columns: usize) {
    let text = std::str::from_utf8(text).expect("COPY text is UTF-8");
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    assert_eq!(text.matches('\n').count(), rows, "rows of {text:?}");
    for line in text.split_terminator('\n') {
        // without columns, a row is an empty line
        assert_eq!(line.split('\t').count(), columns.max(1), "fields of {line:?}");
        assert!(columns > 0 || line.is_empty(), "a field of no column: {line:?}");
        line.split('\t').for_each(check_field);
    }
}

fn check_field(field: &str) {
    if field == "\\N" {
        return;
    }
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                let escape = characters.next();
                assert!(matches!(escape, Some('\\' | 'n' | 'r' | 't')), "{field:?}");
            }
            other => assert!(!matches!(other, '\0' | '\r'), "{field:?}"),
        }
    }
}
