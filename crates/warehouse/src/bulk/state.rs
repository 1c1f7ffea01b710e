//! What a stream tells about itself. Names and order of the fields are an interface: services hand
//! them on as JSON.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::BulkMode;
use crate::load::{LoadReport, LoadedTable};

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Takes events.
    Active,
    /// Ended, and its good events are stored.
    Completed,
    /// Given up by the caller.
    Aborted,
    /// Ended by an error; of the batch family nothing is stored.
    Failed,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Active => "ACTIVE",
            Status::Completed => "COMPLETED",
            Status::Aborted => "ABORTED",
            Status::Failed => "FAILED",
        })
    }
}

/// The account of one stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The table that the stream works on.
    pub representation: Representation,
    /// Where the stream is in its life.
    pub status: Status,
    /// The mode that the stream was opened with.
    pub mode: BulkMode,
    /// The last error's text; it stays when later events are good. Holds no row value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Events that became rows, whether or not the rows were stored.
    pub processed_rows: u64,
    /// Bytes of the events. The service fills it in, as it does `processing_time_sec` and
    /// `queue_size`.
    pub processed_bytes: u64,
    /// Events taken without an error; 0 when the stream was aborted or failed.
    pub successful_rows: u64,
    /// `processed_rows` as it was when the last failing event failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub error_row_index: u64,
    /// How long the service was at it, in seconds.
    #[serde(serialize_with = "shortest")]
    pub processing_time_sec: f64,
    /// What took how long; `None` until something was stored, and for single events: written as a
    /// phase without a name.
    #[serde(serialize_with = "phase_or_empty")]
    pub statistics: Option<Phase>,
    /// Events of the topic that wait behind these.
    pub queue_size: u64,
}

/// The table that a stream works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Representation {
    /// The table's final name, without its schema.
    pub name: String,
    /// The same once something was stored; `None` before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_name: Option<String>,
    /// Column → SQL type, in the table's order; `None` until something was stored.
    pub schema: Option<Map<String, Value>>,
    /// Columns of the primary key, in its order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_key_fields: Vec<String>,
    /// The name of the primary key's constraint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_key_name: Option<String>,
}

impl Representation {
    pub(super) fn set_table(&mut self, table: &LoadedTable) {
        let schema =
            table.columns.iter().map(|(name, sql_type)| (name.clone(), sql_type.as_str().into()));
        *self = Representation {
            name: table.name.clone(),
            target_name: Some(table.name.clone()),
            schema: Some(schema.collect()),
            primary_key_fields: table.key.clone(),
            primary_key_name: table.key_name.clone(),
        };
    }
}

/// One phase of a stream's work, or all of them together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phase {
    /// What the original calls the phase, such as `postgres_load_data`; `total` for all together.
    pub name: &'static str,
    /// Bytes of the events that went through it.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_processed: u64,
    /// How long it took, in milliseconds.
    pub time_processed_ms: u64,
    /// Of warehouses that charge for bytes; 0 for PostgreSQL.
    #[serde(serialize_with = "shortest")]
    pub estimated_cost: f64,
    /// The phases of a total, by name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub states: Map<String, Value>,
}

impl Phase {
    pub(super) fn new(name: &'static str, bytes: u64, time: Duration) -> Phase {
        Phase {
            name,
            bytes_processed: bytes,
            time_processed_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            estimated_cost: 0.0,
            states: Map::new(),
        }
    }

    pub(super) fn total<const N: usize>(phases: [Phase; N]) -> Phase {
        let mut total = Phase::new("total", 0, Duration::ZERO);
        for phase in phases {
            total.bytes_processed += phase.bytes_processed;
            total.time_processed_ms += phase.time_processed_ms;
            let name = phase.name.to_owned();
            total.states.insert(name, serde_json::to_value(phase).unwrap_or_default());
        }
        total
    }
}

impl State {
    pub(super) fn new(table: &str, mode: BulkMode) -> State {
        State {
            representation: Representation {
                name: table.to_owned(),
                target_name: None,
                schema: None,
                primary_key_fields: Vec::new(),
                primary_key_name: None,
            },
            status: Status::Active,
            mode,
            error: None,
            processed_rows: 0,
            processed_bytes: 0,
            successful_rows: 0,
            error_row_index: 0,
            processing_time_sec: 0.0,
            statistics: None,
            queue_size: 0,
        }
    }

    /// The account of a load that no stream kept: what its last table looks like, and what became
    /// of `events` events.
    pub fn of_load(table: &str, mode: BulkMode, events: u64, report: &LoadReport) -> State {
        let mut state = State::new(table, mode);
        if let Some(table) = report.tables.last() {
            state.representation.set_table(table);
        }
        let phase = |name, time| Phase::new(name, 0, time);
        state.status = Status::Completed;
        state.processed_rows = events;
        state.successful_rows = report.counts.loaded + report.counts.merged;
        state.statistics = Some(Phase::total([
            phase("postgres_prepare_data", report.prepared_in),
            phase("postgres_load_data", report.sent_in),
            phase("commit", report.committed_in),
        ]));
        state
    }

    /// The account of a load that failed.
    pub fn of_failed_load(table: &str, mode: BulkMode, events: u64, error: String) -> State {
        let mut state = State::new(table, mode);
        state.processed_rows = events;
        state.failed_event(error);
        state.status = Status::Failed;
        state
    }

    /// Takes note of an event that failed.
    pub(super) fn failed_event(&mut self, error: String) {
        self.error_row_index = self.processed_rows;
        self.error = Some(error);
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A number without a fraction has no `.0`.
#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn shortest<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        #[allow(clippy::cast_possible_truncation)] // integers below 2^53 are exact
        return serializer.serialize_i64(*value as i64);
    }
    serializer.serialize_f64(*value)
}

fn phase_or_empty<S: Serializer>(phase: &Option<Phase>, serializer: S) -> Result<S::Ok, S::Error> {
    match phase {
        Some(phase) => phase.serialize(serializer),
        None => Phase::new("", 0, Duration::ZERO).serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_left_out_and_nothing_measured_is_a_phase_without_a_name() {
        let state = serde_json::to_string(&State::new("t", BulkMode::Batch)).unwrap();
        assert_eq!(
            state,
            r#"{"representation":{"name":"t","schema":null},"status":"ACTIVE","mode":"batch","processedRows":0,"processedBytes":0,"successfulRows":0,"processingTimeSec":0,"statistics":{"name":"","timeProcessedMs":0,"estimatedCost":0},"queueSize":0}"#
        );
    }

    #[test]
    fn all_fields_stand_in_their_order() {
        let mut state = State::new("t", BulkMode::ReplaceTable);
        state.representation = Representation {
            name: "t".to_owned(),
            target_name: Some("t".to_owned()),
            schema: Some(Map::from_iter([("id".to_owned(), "bigint".into())])),
            primary_key_fields: vec!["id".to_owned()],
            primary_key_name: Some("k".to_owned()),
        };
        state.status = Status::Failed;
        state.processed_rows = 3;
        state.failed_event("no".to_owned());
        state.processing_time_sec = 1.5;
        let phase = |name, bytes| Phase::new(name, bytes, Duration::from_millis(2));
        state.statistics = Some(Phase::total([phase("consume", 7), phase("merge", 0)]));
        assert_eq!(
            serde_json::to_string(&state).unwrap(),
            r#"{"representation":{"name":"t","targetName":"t","schema":{"id":"bigint"},"primaryKeyFields":["id"],"primaryKeyName":"k"},"status":"FAILED","mode":"replace_table","error":"no","processedRows":3,"processedBytes":0,"successfulRows":0,"errorRowIndex":3,"processingTimeSec":1.5,"statistics":{"name":"total","bytesProcessed":7,"timeProcessedMs":4,"estimatedCost":0,"states":{"consume":{"name":"consume","bytesProcessed":7,"timeProcessedMs":2,"estimatedCost":0},"merge":{"name":"merge","timeProcessedMs":2,"estimatedCost":0}}},"queueSize":0}"#
        );
    }
}
