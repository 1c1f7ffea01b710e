//! What an administrator may do and see.

mod failed;
mod pause;

pub(super) use failed::failed;
pub(super) use pause::{pause, resume};
