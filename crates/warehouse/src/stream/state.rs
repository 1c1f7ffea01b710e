//! What a stream tells about itself. The field names are an interface: services hand them on as JSON.

use serde::Serialize;

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    Active,
    Completed,
    Aborted,
    Failed,
}

/// The account of one stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub representation: Representation,
    pub status: Status,
    pub mode: &'static str,
    /// The last error's text; it stays when later events are good. Holds no row value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Events that became rows, whether or not the rows were stored.
    pub processed_rows: u64,
    /// Filled by the service, as the next and `queue_size` are.
    pub processed_bytes: u64,
    /// Events taken without an error; 0 when the stream was aborted or failed.
    pub successful_rows: u64,
    /// `processed_rows` as it was when the last failing event failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub error_row_index: u64,
    pub processing_time_sec: f64,
    pub queue_size: u64,
}

/// The table that a stream works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Representation {
    pub name: String,
}

impl State {
    pub(super) fn new(table: &str, mode: &'static str) -> State {
        State {
            representation: Representation { name: table.to_owned() },
            status: Status::Active,
            mode,
            error: None,
            processed_rows: 0,
            processed_bytes: 0,
            successful_rows: 0,
            error_row_index: 0,
            processing_time_sec: 0.0,
            queue_size: 0,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_left_out() {
        let state = serde_json::to_value(State::new("t", "batch")).unwrap();
        let keys: Vec<_> = state.as_object().unwrap().keys().cloned().collect();
        assert_eq!(
            keys,
            [
                "representation",
                "status",
                "mode",
                "processedRows",
                "processedBytes",
                "successfulRows",
                "processingTimeSec",
                "queueSize"
            ]
        );
        assert_eq!(state["status"], "ACTIVE");
    }
}
