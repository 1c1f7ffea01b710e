//! The options of a stream, as destinations and clients write them.
//!
//! A key that is not registered or a value that does not parse is an error that names the key; the
//! caller decides whether that ends anything.

use serde_json::{Map, Value};

use crate::rows::{data_type::DataType, sql_type::SqlType};

/// An option that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A key that is not registered.
    #[error("unknown option {0}")]
    Unknown(String),
    /// A value that does not parse.
    #[error("failed to parse '{key}' option: {reason}")]
    Value {
        /// The option's key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// `deduplicate` without `primaryKey`.
    #[error(
        "MergeRows option requires primary key in the destination table. Please provide WithPrimaryKey option"
    )]
    DeduplicateWithoutKey,
    /// Rows that replace a partition, without `partitionId`.
    #[error("WithPartition is required option for ReplacePartitionStream")]
    PartitionWithoutId,
    /// A table that the ledger is kept in, whichever the options are. Nothing of it is the
    /// destination's fault: others of its tables can be loaded.
    #[error("{0} is a table of the loader's own")]
    OwnTable(String),
}

/// A column that the `schema` option declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaField {
    /// The column's name as it is declared, before the identifier rules.
    pub name: String,
    /// What its code (0 to 6) stands for.
    pub data_type: DataType,
}

/// How the events of a destination are loaded that do not say it themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadMode {
    /// As they come.
    Stream,
    /// Together, once a period.
    Batch,
}

impl LoadMode {
    fn parse(name: &str) -> Option<LoadMode> {
        match name {
            "stream" => Some(LoadMode::Stream),
            "batch" => Some(LoadMode::Batch),
            _ => None,
        }
    }
}

/// Options of one stream. Fields named after their keys; absent ones have the documented default.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamOptions {
    /// `batch` or `stream`; `None` when not given.
    pub mode: Option<LoadMode>,
    /// Events per batch; 0 leaves it to the service. This and the next five are for the service.
    pub batch_size: i64,
    /// Bytes per batch; 0 is no limit.
    pub batch_size_bytes: i64,
    /// Period of batches in minutes; 0 leaves it to the service.
    pub frequency: f64,
    /// Events per batch of the retry topic; 0 leaves it to the service.
    pub retry_batch_size: i64,
    /// Period of retries in minutes; 0 leaves it to the service.
    pub retry_frequency: f64,
    /// Whether the tables of a destination are loaded at different moments of the period.
    pub spread_tables_schedule: bool,
    /// Values for the `env.` macros of webhooks, an object; no other kind of destination reads
    /// them.
    pub functions_env: Option<Value>,
    /// Events per part of a batch; 0 is off.
    pub temporary_batch_size: i64,
    /// Key columns, in key order, as given.
    pub primary_key: Vec<String>,
    /// Whether rows with equal key are merged; wants `primary_key`.
    pub deduplicate: bool,
    /// How far back rows are merged, in days: 365 where it is not given. In PostgreSQL any number
    /// above 0 means the whole table; 0 or less merges inside the batch only. Single events are
    /// merged into the whole table.
    pub deduplicate_window: i64,
    /// Path of the field whose greatest value wins among equal keys.
    pub discriminator_field: Vec<String>,
    /// The partition that `replace_partition` replaces: the value of the column `__partition_id`.
    pub partition_id: Option<String>,
    /// The schema of the table, as given; `None`: that of the destination.
    pub namespace: Option<String>,
    /// The column that a new table gets an index for, as given.
    pub timestamp_column: Option<String>,
    /// Whether all names are lower-cased.
    pub to_same_case: bool,
    /// Columns that are declared, in their order.
    pub schema: Vec<SchemaField>,
    /// Column → SQL type.
    pub(crate) column_types: Vec<(String, SqlType)>,
    /// Whether nulls are left out, as by default; else a null refuses its event.
    pub omit_nils: bool,
    /// Whether tables never get columns; values without one go to `_unmapped_data`.
    pub schema_freeze: bool,
    /// From so many columns on a table gets no more, 5000 where it is not given.
    pub max_columns_count: i64,
    /// Whether staging tables are ordinary tables of the schema.
    pub disable_temporary_tables: bool,
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions {
            mode: None,
            batch_size: 0,
            batch_size_bytes: 0,
            frequency: 0.0,
            retry_batch_size: 0,
            retry_frequency: 0.0,
            spread_tables_schedule: false,
            functions_env: None,
            temporary_batch_size: 0,
            primary_key: Vec::new(),
            deduplicate: false,
            deduplicate_window: 365,
            discriminator_field: Vec::new(),
            partition_id: None,
            namespace: None,
            timestamp_column: None,
            to_same_case: false,
            schema: Vec::new(),
            column_types: Vec::new(),
            omit_nils: true,
            schema_freeze: false,
            max_columns_count: 5000,
            disable_temporary_tables: false,
        }
    }
}

/// Keys that are taken, with any value, and have no effect here.
const IGNORED: [&str; 15] = [
    "functions",
    "streams",
    "dataLayout",
    "events",
    "debugTill",
    "hosts",
    "schedule",
    "timezone",
    "storageKey",
    "tableNamePrefix",
    "multithreading",
    "threadsCount",
    "keepOriginalNames",
    "addMeta",
    "disabled",
];

impl StreamOptions {
    /// Takes one option in serialized form. A key given twice replaces its value; `primaryKey` and
    /// `discriminatorField` append to it, the former only what it does not name yet.
    ///
    /// Errors: [`OptionError::Unknown`] and [`OptionError::Value`]; the options are as they were.
    pub fn set(&mut self, key: &str, value: &Value) -> Result<(), OptionError> {
        self.take(key, value).map_err(|reason| match reason {
            Refusal::Unknown => OptionError::Unknown(key.to_owned()),
            Refusal::Value(reason) => OptionError::Value { key: key.to_owned(), reason },
        })
    }

    /// Checks what holds between options: [`OptionError::DeduplicateWithoutKey`].
    pub fn validate(&self) -> Result<(), OptionError> {
        if self.deduplicate && self.primary_key.is_empty() {
            return Err(OptionError::DeduplicateWithoutKey);
        }
        Ok(())
    }

    /// The same for events that are stored one after the other: they know nothing of each other, so
    /// the later one wins, and there are no parts and no window.
    pub(crate) fn of_single_events(mut self) -> StreamOptions {
        self.discriminator_field = Vec::new();
        self.temporary_batch_size = 0;
        self.deduplicate_window = StreamOptions::default().deduplicate_window;
        self
    }

    /// Whether rows are merged into the table by their key.
    pub(crate) fn merges_into_table(&self) -> bool {
        self.deduplicate && self.deduplicate_window > 0
    }

    fn take(&mut self, key: &str, value: &Value) -> Result<(), Refusal> {
        match key {
            "mode" => {
                let mode = string(value)?;
                let Some(mode) = LoadMode::parse(&mode) else {
                    return Err(Refusal::Value(format!("unknown mode: {mode}")));
                };
                self.mode = Some(mode);
            }
            "batchSize" => self.batch_size = int(value)?,
            "batchSizeBytes" => self.batch_size_bytes = int(value)?,
            "frequency" => self.frequency = float(value)?,
            "retryBatchSize" => self.retry_batch_size = int(value)?,
            "retryFrequency" => self.retry_frequency = float(value)?,
            "spreadTablesSchedule" => self.spread_tables_schedule = bool(value)?,
            "functionsEnv" => self.functions_env = object_or_text(value)?,
            "temporaryBatchSize" => self.temporary_batch_size = int(value)?,
            "primaryKey" => {
                for name in names(value)? {
                    if !self.primary_key.contains(&name) {
                        self.primary_key.push(name);
                    }
                }
            }
            "deduplicate" => self.deduplicate = bool(value)?,
            "deduplicateWindow" => self.deduplicate_window = int(value)?,
            "discriminatorField" => self.discriminator_field.extend(names(value)?),
            "partitionId" => self.partition_id = Some(string(value)?),
            "namespace" => self.namespace = not_empty(string(value)?),
            "timestampColumn" => self.timestamp_column = not_empty(string(value)?),
            "toSameCase" => self.to_same_case = bool(value)?,
            "schema" => self.schema = schema(value)?,
            "columnTypes" => self.column_types = column_types(value)?,
            "omitNils" => self.omit_nils = bool(value)?,
            "schemaFreeze" => self.schema_freeze = bool(value)?,
            "maxColumnsCount" => self.max_columns_count = int(value)?,
            "disableTemporaryTables" => self.disable_temporary_tables = bool(value)?,
            _ if IGNORED.contains(&key) => {}
            _ => return Err(Refusal::Unknown),
        }
        Ok(())
    }
}

enum Refusal {
    Unknown,
    Value(String),
}

fn wrong_type<T>(value: &Value, expected: &str) -> Result<T, Refusal> {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Err(Refusal::Value(format!("incorrect type {kind}, expected {expected}")))
}

fn bool(value: &Value) -> Result<bool, Refusal> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::String(text) => {
            bool_word(text).ok_or_else(|| Refusal::Value(format!("'{text}' is not a bool")))
        }
        _ => wrong_type(value, "bool or string"),
    }
}

/// The words that stand for a bool.
pub(super) fn bool_word(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn int(value: &Value) -> Result<i64, Refusal> {
    let parsed = match value {
        Value::Null => return Ok(0),
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_i64().or_else(|| {
            // a number without a fraction may be spelled as a float
            #[allow(clippy::cast_possible_truncation)]
            number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64)
        }),
        _ => return wrong_type(value, "int or string"),
    };
    parsed.ok_or_else(|| Refusal::Value(format!("{value} is not an integer")))
}

fn float(value: &Value) -> Result<f64, Refusal> {
    let parsed = match value {
        Value::Null => return Ok(0.0),
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_f64(),
        _ => return wrong_type(value, "number or string"),
    };
    parsed.ok_or_else(|| Refusal::Value(format!("{value} is not a number")))
}

fn string(value: &Value) -> Result<String, Refusal> {
    match value {
        Value::String(text) => Ok(text.clone()),
        _ => wrong_type(value, "string"),
    }
}

fn not_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn names(value: &Value) -> Result<Vec<String>, Refusal> {
    match value {
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(text.split(',').map(|name| name.trim().to_owned()).collect()),
        _ => wrong_type(value, "string or []string"),
    }
}

fn object_or_text(value: &Value) -> Result<Option<Value>, Refusal> {
    match value {
        Value::Object(_) => Ok(Some(value.clone())),
        Value::String(text) => {
            let parsed: Map<String, Value> = serde_json::from_str(text)
                .map_err(|_| Refusal::Value("not the text of a JSON object".to_owned()))?;
            Ok(Some(Value::Object(parsed)))
        }
        _ => wrong_type(value, "object or string"),
    }
}

fn schema(value: &Value) -> Result<Vec<SchemaField>, Refusal> {
    let Value::String(text) = value else {
        return wrong_type(value, "string");
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let parsed: Value = serde_json::from_str(text)
        .map_err(|_| Refusal::Value("not the text of a JSON object".to_owned()))?;
    let Some(fields) = parsed.get("fields").and_then(Value::as_array) else {
        return Ok(Vec::new());
    };
    fields
        .iter()
        .map(|field| {
            let name = field.get("name").and_then(Value::as_str);
            let code = field.get("type").unwrap_or(&Value::Null);
            match (name, DataType::from_schema_code(code)) {
                (Some(name), Some(data_type)) => {
                    Ok(SchemaField { name: name.to_owned(), data_type })
                }
                _ => Err(Refusal::Value("a field wants a name and a type from 0 to 6".to_owned())),
            }
        })
        .collect()
}

fn column_types(value: &Value) -> Result<Vec<(String, SqlType)>, Refusal> {
    let Value::Object(types) = value else {
        return wrong_type(value, "object");
    };
    let strings = types.iter().filter_map(|(name, sql_type)| Some((name, sql_type.as_str()?)));
    strings
        .map(|(name, sql_type)| match SqlType::plain(sql_type) {
            Some(sql_type) => Ok((name.clone(), sql_type)),
            None => Err(Refusal::Value(format!("the type of {name} is not an SQL type"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(key: &str, value: Value) -> Result<StreamOptions, OptionError> {
        let mut options = StreamOptions::default();
        options.set(key, &value).map(|()| options)
    }

    #[test]
    fn values_are_parsed_from_their_serialized_forms() {
        assert!(set("deduplicate", json!("T")).unwrap().deduplicate);
        assert_eq!(set("batchSize", json!("12")).unwrap().batch_size, 12);
        assert_eq!(set("batchSize", json!(12.0)).unwrap().batch_size, 12);
        assert_eq!(set("batchSize", json!(null)).unwrap().batch_size, 0);
        assert!((set("frequency", json!("0.5")).unwrap().frequency - 0.5).abs() < f64::EPSILON);
        assert_eq!(set("primaryKey", json!("a, b")).unwrap().primary_key, ["a", "b"]);
        assert!(set("primaryKey", json!("")).unwrap().primary_key.is_empty());
        assert!(set("functions", json!([1])).is_ok(), "ignored keys take any value");
    }

    #[test]
    fn what_does_not_parse_names_the_key() {
        let refused = [
            ("deduplicate", json!(1)),
            ("batchSize", json!(1.5)),
            ("batchSize", json!("x")),
            ("primaryKey", json!(["a"])),
            ("mode", json!("replace_table")),
            ("namespace", json!(5)),
            ("schema", json!({"fields": []})),
            ("columnTypes", json!({"a": "text; drop table t"})),
        ];
        for (key, value) in refused {
            let error = set(key, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("failed to parse '{key}' option: ")), "{error}");
        }
        assert_eq!(set("nope", json!(1)).unwrap_err().to_string(), "unknown option nope");
    }

    #[test]
    fn giving_the_key_twice_appends() {
        let mut options = StreamOptions::default();
        options.set("primaryKey", &json!("a")).unwrap();
        options.set("primaryKey", &json!("b,a")).unwrap();
        assert_eq!(options.primary_key, ["a", "b"], "each once");
    }

    #[test]
    fn a_schema_is_the_text_of_its_json() {
        let text =
            r#"{"name": "x", "fields": [{"name": "id", "type": 2}, {"name": "at", "type": 5}]}"#;
        let options = set("schema", json!(text)).unwrap();
        let types: Vec<_> = options.schema.iter().map(|f| (f.name.as_str(), f.data_type)).collect();
        assert_eq!(types, [("id", DataType::Int64), ("at", DataType::Timestamp)]);
    }
}
