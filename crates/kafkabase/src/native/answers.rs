//! What administrative calls answer, and why they fail.

use rdkafka::error::RDKafkaErrorCode;

use crate::KafkaErrorCode;

/// Why an administrative call failed. The code decides what the caller does; the text is
/// librdkafka's.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{call} failed: {reason}")]
pub struct AdminError {
    /// The request, in Kafka's words.
    pub call: &'static str,
    /// Kafka's or the client's word for it.
    pub code: KafkaErrorCode,
    /// librdkafka's text. Names topics, groups and brokers, no secrets.
    pub reason: String,
}

impl AdminError {
    /// The group has live members: another process reads the topic.
    pub fn is_live_members(&self) -> bool {
        matches!(
            self.code.0,
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::NonEmptyGroup
                | RDKafkaErrorCode::RebalanceInProgress
        )
    }

    /// Kafka said no, and will say no again: rights, names, policies. Too few brokers for the
    /// replicas is none of it: they may be coming back one by one.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.code.0,
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::InvalidConfig
                | RDKafkaErrorCode::PolicyViolation
        )
    }

    /// Kafka has a topic of another name that it holds for the same: dots and underscores are one
    /// in its metrics. The reason names the other topic.
    pub fn is_name_collision(&self) -> bool {
        // the code is that of a name with forbidden characters, too; those we never ask for
        matches!(self.code.0, RDKafkaErrorCode::InvalidTopic) && self.reason.contains("collide")
    }

    /// No broker answered within the time that the call may take.
    pub fn is_timeout(&self) -> bool {
        matches!(self.code.0, RDKafkaErrorCode::OperationTimedOut)
    }

    /// The topic is not (or no longer) there.
    pub fn is_unknown_topic(&self) -> bool {
        matches!(
            self.code.0,
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
        )
    }
}

/// What a consumer group has committed for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// The free text that travels with the offset; empty when the client gave none.
    pub metadata: String,
}

/// Which end of a partition [`Admin::offsets`](crate::Admin::offsets) asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The low watermark: the first offset that is still there.
    Earliest,
    /// The end as a read-committed client sees it (last stable offset).
    CommittedEnd,
}
