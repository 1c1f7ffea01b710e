//! The format of a case file.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "source_test")]
    _source_test: String,
    pub(crate) mode: String,
    pub(crate) table: String,
    pub(crate) options: Map<String, Value>,
    #[serde(default)]
    pub(crate) preexisting_sql: Vec<String>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) mode: Option<String>,
    pub(crate) options: Option<Map<String, Value>>,
    events: Vec<Box<RawValue>>,
    #[serde(default)]
    pub(crate) continue_on_error: bool,
    #[serde(default)]
    pub(crate) abort: bool,
    pub(crate) expect_error: Option<String>,
    #[serde(default)]
    pub(crate) expect_consume_errors: BTreeMap<String, String>,
    pub(crate) expect_table: Option<String>,
    pub(crate) expect_namespace: Option<String>,
    /// Column → type; empty: no such table.
    pub(crate) expect_columns: BTreeMap<String, String>,
    pub(crate) expect_column_order: Option<Vec<String>>,
    pub(crate) expect_not_null: Option<BTreeMap<String, String>>,
    pub(crate) expect_primary_key: Option<Vec<String>>,
    pub(crate) expect_primary_key_name: Option<String>,
    pub(crate) expect_indexes: Option<Vec<Vec<String>>>,
    pub(crate) expect_rows: Option<Vec<BTreeMap<String, Option<String>>>>,
    pub(crate) expect_row_count: Option<usize>,
    #[serde(default)]
    pub(crate) order_by: Vec<String>,
    pub(crate) expect_state: Option<Map<String, Value>>,
}

/// An event that stands for many.
#[derive(Debug, Deserialize)]
struct Repeated<'a> {
    #[serde(rename = "$repeat")]
    count: usize,
    #[serde(borrow)]
    event: &'a RawValue,
}

impl Case {
    pub(crate) fn parse(text: &str) -> Result<Case, String> {
        serde_json::from_str(text).map_err(|error| format!("not a case: {error}"))
    }

    /// Whether one of its streams has this mode.
    pub(crate) fn has_mode(&self, mode: &str) -> bool {
        self.steps.iter().any(|step| step.mode.as_ref().unwrap_or(&self.mode) == mode)
    }
}

impl Step {
    /// The events as the lines that a stream is fed: number spelling and key order are those of the
    /// file.
    pub(crate) fn lines(&self) -> Result<Vec<Vec<u8>>, String> {
        let mut lines = Vec::new();
        for event in &self.events {
            let text = event.get();
            if text.starts_with('"') {
                let line: String = serde_json::from_str(text).map_err(|error| error.to_string())?;
                lines.push(line.into_bytes());
            } else if let Ok(repeated) = serde_json::from_str::<Repeated<'_>>(text) {
                lines.extend((1..=repeated.count).map(|i| numbered(repeated.event.get(), i)));
            } else {
                lines.push(text.as_bytes().to_vec());
            }
        }
        Ok(lines)
    }
}

fn numbered(event: &str, i: usize) -> Vec<u8> {
    event.replace("\"$i\"", &i.to_string()).replace("\"$s\"", &format!("\"v{i}\"")).into_bytes()
}
