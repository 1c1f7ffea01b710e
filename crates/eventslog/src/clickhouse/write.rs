//! Everything that waits, in one insert.

use jiff::Timestamp;

use super::ClickHouseLog;
use crate::{StoreError, buffer::Streams};

/// The values stand in the table's order, without their columns' names. The server gathers inserts
/// of many processes; it answers when it has them in memory.
const SETTINGS: [(&str, &str); 5] = [
    ("query", "INSERT INTO events_log FORMAT JSONCompactEachRow"),
    ("async_insert", "1"),
    ("wait_for_async_insert", "0"),
    ("async_insert_busy_timeout_ms", "10000"),
    ("date_time_input_format", "best_effort"),
];

impl ClickHouseLog {
    pub(crate) async fn write(&self, streams: &Streams) -> Result<(), StoreError> {
        self.call(&SETTINGS, rows(streams)).await.map(drop)
    }
}

/// A line for each event: timestamp, actorId, type, level, message.
fn rows(streams: &Streams) -> Vec<u8> {
    let mut rows = Vec::new();
    for (_, kind, actor, stream) in streams.iter() {
        for event in &stream.events {
            let at = Timestamp::from_millisecond(event.at).unwrap_or_default().to_string();
            let body = String::from_utf8_lossy(&event.body);
            let row = (at, actor, kind.as_str(), event.level.as_str(), body);
            // texts cannot fail, and neither can memory
            if serde_json::to_writer(&mut rows, &row).is_ok() {
                rows.push(b'\n');
            }
        }
    }
    rows
}
