//! What librdkafka offers and rust-rdkafka does not bind: group offsets with metadata, the reason
//! why a topic was not made, descriptions of topics and groups, offsets at an isolation level, and a
//! partition's own queue read in bulk with the offset at which the partition ended.
//!
//! The only place of the workspace that says `unsafe`. Each function keeps two rules: what
//! librdkafka allocates is freed by a guard on every path, and no pointer outlives the client it
//! came from (every handle holds the client's `Arc`). Breaking the first leaks, breaking the second
//! is undefined behaviour.
#![allow(unsafe_code)]

mod admin;
mod answers;
mod create;
mod partition_queue;
mod request;
#[cfg(test)]
mod trouble;

pub(crate) use admin::{
    alter_group_offsets, group_members, list_group_offsets, list_offsets, topic_id,
};
pub use answers::{AdminError, CommittedOffset, OffsetSpec};
pub(crate) use create::{NewTopic, create_topic};
pub(crate) use partition_queue::PartitionQueue;
pub use partition_queue::{FetchError, Fetched, Message};
#[cfg(test)]
pub(crate) use trouble::{Right, allow, make_fatal};
