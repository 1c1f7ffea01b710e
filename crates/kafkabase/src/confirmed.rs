//! Moving records between topics: a batch is handed over, and each record's fate is known
//! afterwards.
//!
//! Invariant: `Ok` for a record means that all in-sync replicas have it. An error means that
//! nothing is known: the record may be there, or may still come. So a caller that moves records has
//! to be able to bear a repeated one.
//!
//! Unlike the intake's producer, records have a time-out in the client: a mover starts over from
//! what it knows, instead of waiting for ever with what it hands over.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer, future_producer::DeliveryFuture},
};
use tracing::{error, info};

use crate::{
    ClientSetupError, KafkaConfig, KafkaErrorCode, client_log::LogContext, error::code_of,
};

/// Pause before a full queue is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// Bytes that a moved record may have beyond the largest event: headers that say why and when.
const HEADER_ROOM: u32 = 65_536;

/// A record to be sent. Owned, for it may be made from memory that is given back before it is on
/// its way.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The topic's name.
    pub topic: String,
    /// `None`: without a key.
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values, in their order; `None` is a header without a value.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Why a record is not known to be in Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("kafka did not confirm the record: {0}")]
pub struct Unconfirmed(pub KafkaErrorCode);

impl Unconfirmed {
    /// Whether the same record would be refused again.
    pub fn is_refusal(self) -> bool {
        matches!(
            self.0.0,
            RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessageSize
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::PolicyViolation
        )
    }

    /// The record is larger than the client or the topic takes: the same one is refused again, a
    /// smaller one may be taken.
    pub fn is_too_large(self) -> bool {
        matches!(
            self.0.0,
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize
        )
    }

    /// The topic does not take a record like this: a compacted one wants a key. Brokers before 2.4
    /// say it of all records that came with such a one.
    pub fn is_invalid_record(self) -> bool {
        self.0.0 == RDKafkaErrorCode::InvalidRecord
    }

    /// The topic does not take the time that the record bears: its own for
    /// `message.timestamp.before.max.ms` and the like. Not the record's fault: all that are sent
    /// get the time of their sending.
    pub fn is_invalid_timestamp(self) -> bool {
        self.0.0 == RDKafkaErrorCode::InvalidTimestamp
    }

    /// The topic is not there.
    pub fn is_unknown_topic(self) -> bool {
        matches!(
            self.0.0,
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
        )
    }
}

type Client = FutureProducer<LogContext>;

/// A producer whose callers wait for each record's confirmation; cheap to clone.
#[derive(Clone)]
pub struct ConfirmedProducer {
    config: ClientConfig,
    client: Arc<ArcSwap<Client>>,
}

impl ConfirmedProducer {
    /// `client_id`: how the brokers see it. `timeout`: how long a record may take. Kafka need not
    /// be there.
    pub fn new(
        kafka: &KafkaConfig,
        client_id: &str,
        timeout: Duration,
    ) -> Result<ConfirmedProducer, ClientSetupError> {
        let mut config = kafka.client_config(client_id);
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("compression.type", &kafka.kafka_topic_compression)
            .set("message.max.bytes", (kafka.kafka_message_max_bytes + HEADER_ROOM).to_string())
            .set("message.timeout.ms", timeout.as_millis().to_string())
            // a topic that is not there is an answer, and soon
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("socket.timeout.ms", "10000");
        let client = make(&config).map_err(ClientSetupError::of("producer of moved records"))?;
        let client = Arc::new(ArcSwap::from_pointee(client));
        Ok(ConfirmedProducer { config, client })
    }

    /// Sends all records and waits for what becomes of each, in their order. Dropped, it leaves
    /// records on their way: each may be written or not.
    pub async fn send_all(&self, records: &[Record]) -> Vec<Result<(), Unconfirmed>> {
        let client = self.client.load_full();
        let mut on_their_way = Vec::with_capacity(records.len());
        for record in records {
            on_their_way.push(enqueue(&client, record).await);
        }
        let results = join_all(on_their_way.into_iter().map(confirm)).await;
        if results.contains(&Err(Unconfirmed(RDKafkaErrorCode::Fatal.into()))) {
            self.rebuild(&client);
        }
        results
    }

    /// Replaces a client that an error has ended.
    fn rebuild(&self, old: &Arc<Client>) {
        if !Arc::ptr_eq(old, &self.client.load()) {
            return; // another call did
        }
        match make(&self.config) {
            Ok(client) => {
                self.client.compare_and_swap(old, Arc::new(client));
                info!("kafka producer of moved records ended by an error; a new one took over");
            }
            Err(error) => error!(error = %error, "no new kafka producer"),
        }
    }
}

fn make(config: &ClientConfig) -> Result<Client, KafkaError> {
    FutureProducer::from_config_and_context(config, LogContext)
}

async fn enqueue(client: &Client, record: &Record) -> Result<DeliveryFuture, Unconfirmed> {
    loop {
        let headers = record.headers.iter().fold(
            OwnedHeaders::new_with_capacity(record.headers.len()),
            |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }),
        );
        let mut sent = FutureRecord::<[u8], [u8]>::to(&record.topic).headers(headers);
        if let Some(key) = &record.key {
            sent = sent.key(key);
        }
        if let Some(value) = &record.value {
            sent = sent.payload(value);
        }
        match client.send_result(sent) {
            Ok(delivery) => return Ok(delivery),
            Err((error, _)) => match code_of(&error) {
                RDKafkaErrorCode::QueueFull => tokio::time::sleep(QUEUE_PAUSE).await,
                _ if client.client().fatal_error().is_some() => {
                    return Err(Unconfirmed(RDKafkaErrorCode::Fatal.into()));
                }
                code => return Err(Unconfirmed(code.into())),
            },
        }
    }
}

async fn confirm(enqueued: Result<DeliveryFuture, Unconfirmed>) -> Result<(), Unconfirmed> {
    match enqueued?.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(Unconfirmed(code_of(&error).into())),
        // the client was ended while the record was on its way
        Err(_) => Err(Unconfirmed(RDKafkaErrorCode::PurgeInflight.into())),
    }
}
