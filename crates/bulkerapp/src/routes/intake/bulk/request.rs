//! What a `/bulk` request says beside its lines.

use std::borrow::Cow;

use axum::http::HeaderMap;
use uuid::Uuid;
use warehouse::{OptionError, StreamOptions, is_own_table};

use super::BulkError;
use crate::routes::{encoding::check_unpacked, query};

const SCHEMA: &str = "x-jitsu-schema";
/// What happens to the table when the request does not say.
const DEFAULT_MODE: &str = "replace_table";

/// A stream as the request wants it. The destination's own options are not looked at.
#[derive(Debug)]
pub(super) struct BulkRequest {
    pub(super) table: String,
    /// Any text: the warehouse knows which ones there are.
    pub(super) mode: String,
    /// Names the load in logs.
    pub(super) job_id: String,
    pub(super) options: StreamOptions,
}

impl BulkRequest {
    pub(super) fn read(
        destination_id: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<BulkRequest, BulkError> {
        let (mut table, mut mode) = (Cow::Borrowed(""), Cow::Borrowed(""));
        let (mut task_id, mut job_id) = (Cow::Borrowed(""), Cow::Borrowed(""));
        let mut options = StreamOptions::default();
        for (name, value) in query::parameters(query) {
            match name.as_ref() {
                "tableName" => table = value,
                "mode" => mode = value,
                "taskId" => task_id = value,
                "jobId" => job_id = value,
                "partitionId" => options.partition_id = Some(value.into_owned()),
                "pk" if !value.is_empty() => options.primary_key.push(value.into_owned()),
                _ => {}
            }
        }
        if table.is_empty() {
            return Err(BulkError::NoTable);
        }
        if is_own_table(&table) {
            return Err(BulkError::OwnTable(table.into_owned()));
        }
        check_unpacked(headers)?;
        options.deduplicate = !options.primary_key.is_empty();
        if let Some(header) = headers.get(SCHEMA).filter(|value| !value.is_empty()) {
            let text = String::from_utf8_lossy(header.as_bytes()).into_owned();
            options.set("schema", &text.into()).map_err(|error| match error {
                OptionError::Value { reason, .. } => BulkError::Schema(reason),
                other => BulkError::Schema(other.to_string()),
            })?;
        }
        if mode.is_empty() {
            mode = Cow::Borrowed(DEFAULT_MODE);
        }
        if job_id.is_empty() {
            if task_id.is_empty() {
                task_id = Uuid::new_v4().to_string().into();
            }
            job_id = format!("{destination_id}_{table}_{task_id}").into();
        }
        let (table, mode, job_id) = (table.into_owned(), mode.into_owned(), job_id.into_owned());
        Ok(BulkRequest { table, mode, job_id, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str, schema: &str) -> Result<BulkRequest, BulkError> {
        let mut headers = HeaderMap::new();
        headers.insert(SCHEMA, schema.parse().unwrap());
        BulkRequest::read("pg", query, &headers)
    }

    #[test]
    fn a_table_is_all_that_is_needed() {
        let request = read("tableName=a%20b", "").unwrap();
        assert_eq!((request.table.as_str(), request.mode.as_str()), ("a b", "replace_table"));
        let task_id = request.job_id.strip_prefix("pg_a b_").unwrap();
        assert!(Uuid::parse_str(task_id).is_ok(), "{task_id}");
        assert_eq!(request.options, StreamOptions::default());
    }

    #[test]
    fn jobs_are_named_by_the_request() {
        assert_eq!(read("tableName=t&taskId=7", "").unwrap().job_id, "pg_t_7");
        assert_eq!(read("tableName=t&taskId=7&jobId=j", "").unwrap().job_id, "j");
    }

    #[test]
    fn keys_turn_deduplication_on() {
        let options = read("tableName=t&pk=a&pk=b%2Cc&partitionId=p", "").unwrap().options;
        assert_eq!(options.primary_key, ["a", "b,c"]);
        assert!(options.deduplicate);
        assert_eq!(options.partition_id.as_deref(), Some("p"));
        assert!(!read("tableName=t&pk=", "").unwrap().options.deduplicate);
    }

    #[test]
    fn a_schema_declares_columns_or_says_what_is_wrong() {
        let schema = r#"{"name":"t","fields":[{"name":"id","type":2}]}"#;
        assert_eq!(read("tableName=t", schema).unwrap().options.schema.len(), 1);
        let none = read("tableName=t", r#"{"name":"t","fields":[]}"#).unwrap();
        assert!(none.options.schema.is_empty());
        for broken in ["{", r#"{"fields":[{"name":"id","type":9}]}"#] {
            let error = read("tableName=t", broken).unwrap_err().to_string();
            assert!(error.starts_with("schema unmarshal error: "), "{error}");
        }
    }

    #[test]
    fn without_a_table_there_is_nothing_to_do() {
        for query in ["", "mode=batch", "tableName="] {
            assert!(matches!(read(query, "{"), Err(BulkError::NoTable)), "{query}");
        }
    }
}
