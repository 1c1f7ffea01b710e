//! Errors of the client library, without its types: callers see what to do, and what it said.

use std::fmt;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Why a Kafka client was not made: it does not take its settings, or the process has no room for
/// it. Kafka being away is none of it, clients are made all the same. The source is the library's
/// own words, which name settings and files, and no secrets.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "no {what}; look at KAFKA_BOOTSTRAP_SERVERS, KAFKA_SECURITY_PROTOCOL, and the settings that \
     start with KAFKA_SSL and KAFKA_SASL"
)]
pub struct ClientSetupError {
    what: &'static str,
    source: KafkaError,
}

impl ClientSetupError {
    /// `what`: the client that was to be made, as in `consumer`.
    pub(crate) fn of(what: &'static str) -> impl FnOnce(KafkaError) -> ClientSetupError {
        move |source| ClientSetupError { what, source }
    }
}

/// Why a partition is not read: no broker told where it is in time, or the client did not take it.
/// The same call, made later, may succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("partition {partition} of topic {topic} cannot be opened")]
pub struct OpenError {
    topic: String,
    partition: i32,
    source: KafkaError,
}

impl OpenError {
    pub(crate) fn of(topic: &str, partition: i32) -> impl FnOnce(KafkaError) -> OpenError + use<> {
        let topic = topic.to_owned();
        move |source| OpenError { topic, partition, source }
    }
}

/// Kafka's, or its client's, word for an error. Shown as operators know it from labels and logs;
/// what to do about it is said by the methods of the error that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KafkaErrorCode(pub(crate) RDKafkaErrorCode);

impl fmt::Display for KafkaErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<RDKafkaErrorCode> for KafkaErrorCode {
    fn from(code: RDKafkaErrorCode) -> KafkaErrorCode {
        KafkaErrorCode(code)
    }
}

/// The library's own words for an error, as the source of ours. They name topics, groups, brokers
/// and settings, no secrets.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct ClientCause(KafkaError);

impl ClientCause {
    pub(crate) fn new(error: KafkaError) -> ClientCause {
        ClientCause(error)
    }
}

/// The code of the library's error; `Fail` where it has none.
pub(crate) fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}
