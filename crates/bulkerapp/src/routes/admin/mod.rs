//! What an administrator may do and see.

mod failed;
mod pause;

pub use failed::FailedEvents;
pub(super) use failed::failed;
pub(super) use pause::{pause, resume};
