//! A destination as it is written down.

use serde_json::{Map, Value};

/// A destination as its source has it. Two are the same when all of this is, order in arrays
/// included; the order of an object's fields does not count.
#[derive(Clone, PartialEq)]
pub struct DestinationConfig {
    /// Can be a part of a topic's name.
    pub id: String,
    /// The field `type`; empty where there is none.
    pub kind: String,
    /// Passed to the warehouse; never logged.
    pub credentials: Value,
    /// As they are written; not checked yet.
    pub options: Map<String, Value>,
    /// What other services write there: `metrics`, `backup`, or nothing.
    pub special: String,
    /// When it was changed, as its source says.
    pub updated_at: Option<String>,
}
