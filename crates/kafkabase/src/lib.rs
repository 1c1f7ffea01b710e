//! Kafka without policy: what a topic is, how bytes get in and out, what the cluster knows.

#![warn(missing_docs)]

mod admin;
mod client_log;
mod client_settings;
mod config;
mod confirmed;
mod create;
mod error;
mod fetcher;
mod group_source;
pub mod headers;
mod membership;
mod native;
mod outstanding;
mod producer;
mod range;
mod spool;
mod spool_service;
mod topic;
mod topic_group;
mod topic_view;
mod transaction;

pub use admin::Admin;
pub use client_log::{ClientError, last_client_error};
pub use client_settings::ClientSettings;
pub use config::{AckMode, KafkaConfig, SaslSettings};
pub use confirmed::{ConfirmedProducer, Record, Unconfirmed};
pub use create::{TopicCreation, TopicMetadata, TopicSettings};
pub use error::{ClientCause, ClientSetupError, KafkaErrorCode, OpenError};
pub use fetcher::{Fetcher, FetcherSettings, PartitionReader};
pub use group_source::{
    GroupSource, OffsetReset, SourceError, SourceItem, SourceMessage, SourcePosition,
    SourceSettings,
};
pub use membership::{Membership, SHARES, Shares};
pub use native::{AdminError, CommittedOffset, FetchError, Fetched, Message, OffsetSpec};
pub use producer::{
    AckProducer, NotMade, ProducerMetrics, ProducerTopic, SendError, SpoolUse, TopicMaker,
};
pub use range::{RangeError, RangeItem, RangeReader};
pub use spool::{
    QuarantinedTopic, Spool, SpoolError, SpoolMetrics, SpoolOpenError, SpoolSettings, SpoolStatus,
};
pub use spool_service::{
    SpoolBegun, SpoolCommand, SpoolCommandError, SpoolDiscard, SpoolGauges, SpoolWork,
    watch_spool_requests,
};
pub use topic::{
    ALL_TABLES, MAX_TOPIC_NAME, TopicId, TopicMode, TopicNameError, check_length, fnv1a,
    is_topic_part, names_collide, topic_name,
};
pub use topic_group::TopicGroup;
pub use topic_view::{OurTopic, TopicSnapshot, TopicView};
pub use transaction::{RecordParts, TransactionError, TransactionSettings, TransactionalProducer};
