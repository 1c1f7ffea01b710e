//! Kafka without policy: what a topic is, how bytes get in and out, what the cluster knows.

mod admin;
mod config;
mod fetcher;
mod native;
mod topic;

pub use admin::Admin;
pub use config::{AckMode, KafkaConfig, SaslSettings};
pub use fetcher::{Fetcher, FetcherSettings, PartitionReader};
pub use native::{
    AdminError, FetchError, Fetched, GroupMembers, GroupOffset, Message, OffsetSpec,
    TopicDescription,
};
pub use topic::{
    ALL_TABLES, MAX_TOPIC_NAME, Mode, TopicId, TopicNameError, check_length, fnv1a, is_topic_part,
    topic_name,
};
