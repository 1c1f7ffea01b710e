//! What is told of one `/bulk` call once it is over: a reply, a record for the events log.

use std::time::Duration;

use eventslog::BatchBody;
use serde::Serialize;
use serde_json::{Value, json};
use warehouse::bulk::State;

/// How a call went, as far as it went.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// `None`: there was no stream.
    pub(super) state: Option<State>,
    /// Bytes of the lines that became rows.
    pub(super) bytes: u64,
}

/// The reply to a load that stored something. The state's bytes and seconds stay 0, as clients know
/// them.
#[derive(Serialize)]
pub(super) struct Stored<'a> {
    message: &'a str,
    state: &'a State,
}

impl Account {
    /// `None`: nothing was stored.
    pub(super) fn stored(&self) -> Option<Stored<'_>> {
        let state = self.state.as_ref().filter(|state| state.processed_rows > 0)?;
        Some(Stored { message: "ok", state })
    }

    /// The record's body: the stream's state with what only the service knows, then the last row,
    /// which is not kept.
    pub(super) fn record(&self, error: Option<&str>, took: Duration) -> BatchBody<Value, ()> {
        let state = match &self.state {
            Some(state) => {
                let mut state = state.clone();
                state.processed_bytes = self.bytes;
                state.processing_time_sec = took.as_secs_f64();
                state.error = state.error.or_else(|| error.map(ToOwned::to_owned));
                // names and finite numbers: there is nothing in it that could fail
                serde_json::to_value(state).unwrap_or_else(|_| json!({}))
            }
            None => json!({
                "representation": null,
                "status": "",
                "mode": "",
                "error": error.unwrap_or_default(),
                "processedRows": 0,
                "processedBytes": 0,
                "successfulRows": 0,
                "processingTimeSec": took.as_secs_f64(),
                "statistics": { "name": "", "timeProcessedMs": 0, "estimatedCost": 0 },
                "queueSize": 0,
            }),
        };
        BatchBody { state, last_mapped_row: None }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use warehouse::{
        StreamOptions,
        bulk::{BulkMode, Stream},
        postgres::{Credentials, Postgres, Settings},
    };

    use super::*;

    const TOOK: Duration = Duration::from_millis(1_500);

    #[test]
    fn without_a_stream_the_record_has_the_error_alone() {
        let record = Account::default().record(Some("no such destination"), TOOK);
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"representation":null,"status":"","mode":"","error":"no such destination","processedRows":0,"processedBytes":0,"successfulRows":0,"processingTimeSec":1.5,"statistics":{"name":"","timeProcessedMs":0,"estimatedCost":0},"queueSize":0,"lastMappedRow":null}"#
        );
    }

    #[tokio::test]
    async fn with_a_stream_the_record_is_its_state() {
        let credentials = json!({"host": "h", "database": "d", "defaultSchema": "s"});
        let credentials = Credentials::read(&credentials).unwrap();
        let postgres = Postgres::new(&credentials, Settings::default()).unwrap();
        let options = Arc::new(StreamOptions::default());
        let mut stream = Stream::open(postgres, "t", BulkMode::Batch, options).unwrap();
        stream.consume(br#"{"a":1}"#).await.unwrap();
        let account = Account { state: Some(stream.abort().clone()), bytes: 7 };
        assert_eq!(
            serde_json::to_string(&account.record(Some("aborted: ABORT"), TOOK)).unwrap(),
            r#"{"representation":{"name":"t","schema":null},"status":"ABORTED","mode":"batch","error":"aborted: ABORT","processedRows":1,"processedBytes":7,"successfulRows":0,"processingTimeSec":1.5,"statistics":{"name":"","timeProcessedMs":0,"estimatedCost":0},"queueSize":0,"lastMappedRow":null}"#
        );
        assert!(account.record(None, TOOK).state.get("error").is_none());
    }
}
