//! Why an event was not taken, by what the sender should do.

use rdkafka::error::RDKafkaErrorCode;

use crate::{KafkaErrorCode, SpoolError};

/// Why an event was not taken. Says what the sender should do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No acknowledgement within the wait. The event may still arrive.
    #[error("kafka did not acknowledge the event in time")]
    NotAcknowledged,
    /// Older events of the topic wait for Kafka: this one was not handed over.
    #[error("kafka does not acknowledge events of this topic at the moment")]
    Blocked,
    /// The client's queue is full: the event was not handed over.
    #[error("too many events wait for kafka")]
    QueueFull,
    /// Larger than `KAFKA_MESSAGE_MAX_BYTES`, or than the brokers take.
    #[error("event is larger than kafka takes")]
    TooLarge,
    /// Kafka failed in a way that passes. The event may have been written.
    #[error("kafka failed: {0}")]
    Failed(KafkaErrorCode),
    /// Kafka will not take the event however often it is sent.
    #[error("kafka refused the event: {0}")]
    Refused(KafkaErrorCode),
    /// Kafka did not take the event in time, and neither did the spool. The event may still arrive.
    #[error("kafka does not acknowledge the event, and {0}")]
    NotSpooled(#[from] SpoolError),
}

impl SendError {
    /// Whether the same event, sent again, may be taken.
    pub fn is_retriable(&self) -> bool {
        !matches!(self, SendError::TooLarge | SendError::Refused(_))
    }

    /// Whether other events of the same request may be what was refused.
    pub(super) fn is_of_batch(&self) -> bool {
        const INVALID: KafkaErrorCode = KafkaErrorCode(RDKafkaErrorCode::InvalidRecord);
        matches!(self, SendError::TooLarge | SendError::Refused(INVALID))
    }

    /// The time that a record bears, and a name that Kafka takes for another topic's, are no fault
    /// of the event: the clocks, the topic's settings or the other topic may change.
    pub(super) fn of(code: RDKafkaErrorCode) -> SendError {
        match code {
            RDKafkaErrorCode::QueueFull => SendError::QueueFull,
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => {
                SendError::TooLarge
            }
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::UnsupportedCompressionType => SendError::Refused(code.into()),
            code => SendError::Failed(code.into()),
        }
    }

    /// The `errorType` label, as operators chart it.
    pub(super) fn error_type(&self) -> String {
        match self {
            SendError::NotAcknowledged => "sync_delivery_timeout".to_owned(),
            SendError::Blocked => "blocked".to_owned(),
            SendError::QueueFull => {
                format!("kafka retriable error: {}", RDKafkaErrorCode::QueueFull)
            }
            SendError::TooLarge => {
                format!("kafka error: {}", RDKafkaErrorCode::MessageSizeTooLarge)
            }
            SendError::Failed(code) => format!("kafka retriable error: {code}"),
            SendError::Refused(code) => format!("kafka error: {code}"),
            SendError::NotSpooled(error) => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_another_attempt_makes_sense() {
        let passes = [
            RDKafkaErrorCode::QueueFull,
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::NotEnoughReplicas,
            RDKafkaErrorCode::Fatal,
            RDKafkaErrorCode::PurgeInflight,
            RDKafkaErrorCode::InvalidTimestamp,
            RDKafkaErrorCode::InvalidTopic,
            RDKafkaErrorCode::InvalidDifferentRecord,
        ];
        for code in passes {
            assert!(SendError::of(code).is_retriable(), "{code}");
        }
        for code in [
            RDKafkaErrorCode::MessageSizeTooLarge,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::InvalidRecord,
        ] {
            assert!(!SendError::of(code).is_retriable(), "{code}");
        }
        assert!(SendError::NotSpooled(SpoolError::Full).is_retriable());
    }
}
