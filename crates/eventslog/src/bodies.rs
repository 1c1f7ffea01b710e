//! The bodies of events. Field names and values are an interface: the console shows them.

use serde::Serialize;

/// Body of [`EventType::BulkerStream`](crate::EventType::BulkerStream).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamBody<'a, R, M> {
    /// The message as it was read.
    pub original: &'a str,
    pub status: StreamStatus,
    /// Messages that wait behind this one.
    pub queue_size: u64,
    /// Messages per second.
    pub speed: f64,
    /// The table, once the stream knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub representation: Option<R>,
    /// The row as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapped_data: Option<M>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StreamStatus {
    Success,
    Failed,
}

/// Body of [`EventType::BulkerBatch`](crate::EventType::BulkerBatch): the fields of the stream's
/// state, then its last row.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchBody<S, M> {
    /// Serializes as an object.
    #[serde(flatten)]
    pub state: S,
    /// The last row as stored; null when there is none.
    pub last_mapped_row: Option<M>,
}

/// Body of [`EventType::Incoming`](crate::EventType::Incoming).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IncomingBody<'a> {
    /// The message as it came.
    pub body: &'a str,
    pub status: IncomingStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// Destinations that it was handed on to; empty unless it was accepted.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub async_destinations: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub tags: &'a [String],
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum IncomingStatus {
    Success,
    Skipped,
    Failed,
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::RawValue};

    use super::*;

    #[test]
    fn a_batch_has_the_fields_of_its_state_in_their_order_and_then_its_last_row() {
        let state =
            json!({"representation": {"name": "t"}, "status": "COMPLETED", "processedRows": 2});
        let row: &RawValue = serde_json::from_str(r#"{"b":1.0,"a":"<&>"}"#).unwrap();
        let body = BatchBody { state: &state, last_mapped_row: Some(row) };
        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            r#"{"representation":{"name":"t"},"status":"COMPLETED","processedRows":2,"lastMappedRow":{"b":1.0,"a":"<&>"}}"#
        );
        let body = BatchBody { state: &state, last_mapped_row: None::<()> };
        assert!(serde_json::to_string(&body).unwrap().ends_with(r#","lastMappedRow":null}"#));
    }

    #[test]
    fn what_a_message_has_not_is_left_out() {
        let mut body = StreamBody {
            original: "{\"id\":1}",
            status: StreamStatus::Success,
            queue_size: 0,
            speed: 1.5,
            representation: None::<()>,
            mapped_data: None::<()>,
            error: None,
        };
        let text = r#"{"original":"{\"id\":1}","status":"SUCCESS","queueSize":0,"speed":1.5}"#;
        assert_eq!(serde_json::to_string(&body).unwrap(), text);
        (body.status, body.error) = (StreamStatus::Failed, Some("no"));
        let text = serde_json::to_string(&body).unwrap();
        assert!(text.ends_with(r#""status":"FAILED","queueSize":0,"speed":1.5,"error":"no"}"#));
    }

    #[test]
    fn a_skipped_request_has_neither_destinations_nor_tags() {
        let body = IncomingBody {
            body: "x",
            status: IncomingStatus::Skipped,
            error: Some("filtered"),
            async_destinations: &[],
            tags: &[],
        };
        let text = r#"{"body":"x","status":"SKIPPED","error":"filtered"}"#;
        assert_eq!(serde_json::to_string(&body).unwrap(), text);
    }
}
