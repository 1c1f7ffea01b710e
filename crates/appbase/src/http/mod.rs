//! HTTP as the original answers it, on servers that have limits.

mod body;
mod connection;
mod path;
mod pool;
mod probe;
mod reply;
mod serve;
mod stream;

#[cfg(test)]
mod exhaustion;

pub use body::{BodyError, BodyLimits, read_and_drop, read_body};
pub use path::redirect_to_route;
pub use probe::probe;
pub use reply::{error_reply, json_reply, not_found, ok_message, ordered_json_reply};
pub use serve::{Server, ServerLimits};
