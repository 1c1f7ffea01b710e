//! Where the account of a load goes, for people to look at.

use serde_json::Value;

/// Takes what is told of loads that are over. Never blocks, never fails: a load does not depend on it.
pub trait BatchLog: Send + Sync {
    /// A load into this destination (or, of that name, none) is over. `body` has the fields of a `bulker_batch` event.
    fn post(&self, destination_id: &str, is_failed: bool, body: Value);
}

/// For installations without an events log.
pub struct NoBatchLog;

impl BatchLog for NoBatchLog {
    fn post(&self, _: &str, _: bool, _: Value) {}
}
