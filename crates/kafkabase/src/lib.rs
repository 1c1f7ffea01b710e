//! Kafka without policy: what a topic is, how bytes get in and out, what the cluster knows.

mod admin;
mod fetcher;
mod native;

pub use admin::Admin;
pub use fetcher::{Fetcher, FetcherSettings, PartitionReader};
pub use native::{
    AdminError, FetchError, Fetched, GroupMembers, GroupOffset, Message, OffsetSpec,
    TopicDescription,
};
