//! Producing with an answer: an event is taken only once Kafka has it on all in-sync replicas.
//!
//! Invariants, in durable mode: `send` is `Ok` only after Kafka's acknowledgement; an event that is refused
//! because its topic is blocked was never handed to librdkafka.
//!
//! An event that was handed over has no time-out there (`message.timeout.ms` 0): librdkafka keeps trying until
//! Kafka answers for it. A time-out would not make the outcome known (the record may have been
//! written), it would leave a hole in the idempotent producer's sequence, and it would open the topic to new
//! events while Kafka is still away. So a sender that was told no within the wait may find its event in
//! Kafka later; what never happens is a yes without the event.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntCounterVec};
use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info};

use crate::{
    AckMode, KafkaConfig, TopicId, client_log,
    outstanding::{Outstanding, Ticket},
};

/// The longest linger that a waiting sender is asked to pay for fuller batches.
const DURABLE_LINGER: Duration = Duration::from_millis(1);
/// Bytes of a batch in durable mode at least. A smaller limit does not make a batch leave earlier than its linger
/// ends, it only splits what waits for the same acknowledgement into more requests.
const DURABLE_BATCH: u32 = 1_000_000;
/// Answers that are passed on before other work gets its turn.
const ANSWERS_AT_ONCE: usize = 256;
/// Stands for no limit to the wait.
const FOREVER: Duration = Duration::MAX;

/// Why an event was not taken. Says what the sender should do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No acknowledgement within the wait. The event may still arrive.
    #[error("kafka did not acknowledge the event in time")]
    NotAcknowledged,
    /// Older events of the topic wait for Kafka: this one was not handed over.
    #[error("kafka does not acknowledge events of this topic at the moment")]
    Blocked,
    #[error("too many events wait for kafka")]
    QueueFull,
    #[error("event is larger than kafka takes")]
    TooLarge,
    /// Kafka failed in a way that passes. The event may have been written.
    #[error("kafka failed: {0}")]
    Failed(RDKafkaErrorCode),
    /// Kafka will not take the event however often it is sent.
    #[error("kafka refused the event: {0}")]
    Refused(RDKafkaErrorCode),
}

impl SendError {
    /// Whether the same event, sent again, may be taken.
    pub fn is_retriable(&self) -> bool {
        !matches!(self, SendError::TooLarge | SendError::Refused(_))
    }

    fn of(code: RDKafkaErrorCode) -> SendError {
        match code {
            RDKafkaErrorCode::QueueFull => SendError::QueueFull,
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => {
                SendError::TooLarge
            }
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::UnsupportedCompressionType => SendError::Refused(code),
            code => SendError::Failed(code),
        }
    }

    /// The `errorType` label, as operators chart it.
    fn error_type(&self) -> String {
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
        }
    }
}

/// What the producer counts; registered by the binary under its own names.
#[derive(Clone)]
pub struct ProducerMetrics {
    /// Labels: `topicId`, `destinationId`, `mode`, `tableName`, `status`, `errorType`.
    pub messages: IntCounterVec,
    /// Producers that were replaced after an error which ended them.
    pub rebuilt: IntCounter,
}

/// A topic as the producer knows it. Looked up once, used for each event.
pub struct ProducerTopic {
    name: String,
    id: Option<TopicId>,
    outstanding: Mutex<Outstanding>,
    produced: IntCounter,
    delivered: IntCounter,
    messages: IntCounterVec,
}

impl ProducerTopic {
    pub fn name(&self) -> &str {
        &self.name
    }

    fn new(name: &str, prefix: &str, messages: &IntCounterVec) -> ProducerTopic {
        let id = TopicId::parse(prefix, name);
        let counter = |status| messages.with_label_values(&labels(name, id.as_ref(), status, ""));
        ProducerTopic {
            name: name.to_owned(),
            outstanding: Mutex::default(),
            produced: counter("produced"),
            delivered: counter("delivered"),
            messages: messages.clone(),
            id,
        }
    }

    /// Short critical sections without I/O: the lock is never held across an await or a call to Kafka.
    fn outstanding(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, error: &SendError) {
        let error_type = error.error_type();
        let labels = labels(&self.name, self.id.as_ref(), "error", &error_type);
        self.messages.with_label_values(&labels).inc();
    }
}

fn labels<'a>(
    name: &'a str,
    id: Option<&'a TopicId>,
    status: &'a str,
    error_type: &'a str,
) -> [&'a str; 6] {
    let (destination_id, mode, table) =
        id.map_or(("", "", ""), |id| (&id.destination_id, id.mode.as_str(), &id.table));
    [name, destination_id, mode, table, status, error_type]
}

/// Produces events and waits until Kafka has them. Cheap to clone.
#[derive(Clone)]
pub struct AckProducer {
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    reports: Reports,
    client: ArcSwap<ThreadedProducer<Reports>>,
    rebuilding: Mutex<()>,
    topics: RwLock<HashMap<String, Arc<ProducerTopic>>>,
    prefix: String,
    mode: AckMode,
    wait: Duration,
    metrics: ProducerMetrics,
}

impl AckProducer {
    /// Needs a runtime: a task of its own passes Kafka's answers on.
    pub fn new(
        config: &KafkaConfig,
        client_id: &str,
        metrics: ProducerMetrics,
    ) -> Result<AckProducer, KafkaError> {
        let client_config = producer_config(config, client_id);
        let reports = Reports::start();
        let client = ThreadedProducer::from_config_and_context(&client_config, reports.clone())?;
        let wait = match config.ack_mode {
            AckMode::Durable => config.producer_wait_for_delivery_ms,
            AckMode::Async => FOREVER,
        };
        let shared = Shared {
            config: client_config,
            reports,
            client: ArcSwap::from_pointee(client),
            rebuilding: Mutex::default(),
            topics: RwLock::default(),
            prefix: config.kafka_topic_prefix.clone(),
            mode: config.ack_mode,
            wait,
            metrics,
        };
        Ok(AckProducer { shared: Arc::new(shared) })
    }

    /// The handle for a topic, made at first use.
    pub fn topic(&self, name: &str) -> Arc<ProducerTopic> {
        let known = &self.shared.topics;
        if let Some(topic) = known.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return topic.clone();
        }
        let mut topics = known.write().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let messages = &self.shared.metrics.messages;
            Arc::new(ProducerTopic::new(name, &self.shared.prefix, messages))
        };
        topics.entry(name.to_owned()).or_insert_with(make).clone()
    }

    /// Sends one event. In durable mode `Ok` means that Kafka acknowledged it.
    pub async fn send(
        &self,
        topic: &Arc<ProducerTopic>,
        key: &[u8],
        value: &[u8],
        headers: OwnedHeaders,
    ) -> Result<(), SendError> {
        self.deliver(topic, Some(key), Some(value), Some(headers)).await
    }

    /// Sends a record without a value and headers, perhaps without a key. `Ok` means the same.
    pub async fn send_key(
        &self,
        topic: &Arc<ProducerTopic>,
        key: Option<&[u8]>,
    ) -> Result<(), SendError> {
        self.deliver(topic, key, None, None).await
    }

    async fn deliver(
        &self,
        topic: &Arc<ProducerTopic>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> Result<(), SendError> {
        let result = match self.enqueue(topic, key, value, headers) {
            Ok(acknowledged) if self.shared.mode == AckMode::Durable => {
                self.wait_for(acknowledged).await
            }
            // the report is only counted
            Ok(_) => return Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            topic.count(error);
            if *error == SendError::Failed(RDKafkaErrorCode::Fatal) {
                self.rebuild();
            }
        }
        result
    }

    /// How many topics take no events because Kafka does not acknowledge.
    pub fn blocked_topics(&self) -> usize {
        let now = Instant::now();
        let topics = self.shared.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics
            .values()
            .filter(|topic| topic.outstanding().is_blocked(now, self.shared.wait))
            .count()
    }

    /// Events in the client's queue or on their way.
    pub fn queue_length(&self) -> usize {
        usize::try_from(self.shared.client.load().in_flight_count()).unwrap_or_default()
    }

    /// What events wait for.
    pub fn mode(&self) -> AckMode {
        self.shared.mode
    }

    /// Waits until nothing is queued, at most for `within`. Returns how many events were left.
    pub async fn flush(&self, within: Duration) -> usize {
        let client = self.shared.client.load_full();
        let flushed = tokio::task::spawn_blocking(move || client.flush(within).is_ok()).await;
        match flushed {
            Ok(true) => 0,
            _ => self.queue_length(),
        }
    }

    /// Hands one event to the client. The receiver gets Kafka's answer.
    fn enqueue(
        &self,
        topic: &Arc<ProducerTopic>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> Result<oneshot::Receiver<Result<(), SendError>>, SendError> {
        let admitted = topic.outstanding().admit(Instant::now(), self.shared.wait);
        let ticket = admitted.ok_or(SendError::Blocked)?;
        let (answer, acknowledged) = oneshot::channel();
        let report = Box::new(Report { topic: topic.clone(), ticket, answer });
        let mut record = BaseRecord::with_opaque_to(topic.name.as_str(), report);
        (record.key, record.payload, record.headers) = (key, value, headers);
        if let Err((error, record)) = self.shared.client.load().send(record) {
            topic.outstanding().settle(record.delivery_opaque.ticket);
            return Err(SendError::of(
                error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
            ));
        }
        topic.produced.inc();
        Ok(acknowledged)
    }

    async fn wait_for(
        &self,
        acknowledged: impl Future<Output = Result<Result<(), SendError>, oneshot::error::RecvError>>,
    ) -> Result<(), SendError> {
        match tokio::time::timeout(self.shared.wait, acknowledged).await {
            Ok(Ok(answer)) => answer,
            // reports are not lost while the client lives; if one is, nothing is known of the event
            Ok(Err(_)) | Err(_) => Err(SendError::NotAcknowledged),
        }
    }

    /// Replaces a client that an error has ended: it takes nothing any more.
    fn rebuild(&self) {
        let shared = self.shared.clone();
        // ends the old client, which blocks for a moment
        tokio::task::spawn_blocking(move || {
            let Ok(_rebuilding) = shared.rebuilding.try_lock() else {
                return; // somebody else does
            };
            let Some((code, reason)) = shared.client.load().client().fatal_error() else {
                return; // somebody else did
            };
            error!(%code, reason, "kafka producer ended by an error; making a new one");
            match ThreadedProducer::from_config_and_context(&shared.config, shared.reports.clone())
            {
                Ok(client) => {
                    shared.metrics.rebuilt.inc();
                    drop(shared.client.swap(Arc::new(client)));
                }
                Err(error) => error!(error = %error, "no new kafka producer"),
            }
        });
    }
}

/// Settings of the client: acknowledged by all in-sync replicas, never doubled by its own retries.
fn producer_config(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = config.client_config(client_id);
    let (linger, batch) = match config.ack_mode {
        AckMode::Durable => (
            config.producer_linger_ms.min(DURABLE_LINGER),
            config.producer_batch_size.max(DURABLE_BATCH),
        ),
        AckMode::Async => (config.producer_linger_ms, config.producer_batch_size),
    };
    if (linger, batch) != (config.producer_linger_ms, config.producer_batch_size) {
        info!(
            linger_ms = linger.as_millis(),
            batch_bytes = batch,
            "PRODUCER_LINGER_MS is capped and PRODUCER_BATCH_SIZE raised: requests wait for the acknowledgement"
        );
    }
    client
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", linger.as_millis().to_string())
        .set("batch.size", batch.to_string())
        .set("compression.type", &config.kafka_topic_compression)
        .set("message.max.bytes", config.kafka_message_max_bytes.to_string())
        .set("queue.buffering.max.messages", config.producer_queue_size.to_string())
        // a broker that vanished without a word is given up after this, not after a minute
        .set("socket.timeout.ms", "10000");
    if config.ack_mode == AckMode::Durable {
        client.set("message.timeout.ms", "0");
    }
    client
}

/// What librdkafka carries along with an event and gives back with Kafka's answer.
struct Report {
    topic: Arc<ProducerTopic>,
    ticket: Ticket,
    answer: oneshot::Sender<Result<(), SendError>>,
}

/// Takes librdkafka's reports, on its thread, and passes the answers on.
///
/// A sender that is woken from a foreign thread costs the runtime a lock and often a system call. So one task gets the
/// answers of a whole batch and wakes their senders from inside.
#[derive(Clone)]
struct Reports(mpsc::UnboundedSender<Answered>);

/// An answer and who waits for it.
struct Answered {
    topic: Arc<ProducerTopic>,
    result: Result<(), SendError>,
    to: oneshot::Sender<Result<(), SendError>>,
}

impl Reports {
    /// Ends with the last client that has a clone. Not more waits here than the client's queue holds.
    fn start() -> Reports {
        let (sender, mut answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(ANSWERS_AT_ONCE);
            while answers.recv_many(&mut batch, ANSWERS_AT_ONCE).await > 0 {
                batch.drain(..).for_each(Answered::pass_on);
            }
        });
        Reports(sender)
    }
}

impl Answered {
    fn pass_on(self) {
        // nobody listens: the sender was told no already, or did not want to know
        if let Err(Err(error)) = self.to.send(self.result) {
            self.topic.count(&error);
            debug!(topic = self.topic.name, error = %error, "event not delivered");
        }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client_log::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client_log::log_error(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Box<Report>) {
        let Report { topic, ticket, answer } = *report;
        topic.outstanding().settle(ticket);
        let result = match result {
            Ok(_) => {
                topic.delivered.inc();
                Ok(())
            }
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                Err(SendError::of(code))
            }
        };
        // without a runtime nobody waits any more
        let _ = self.0.send(Answered { topic, result, to: answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::samples::kafka_config;

    fn config(variables: &[(&str, &str)]) -> ClientConfig {
        producer_config(&kafka_config(variables), "bulkerapp")
    }

    #[test]
    fn a_durable_producer_is_idempotent_lingers_a_millisecond_and_never_gives_up() {
        let client = config(&[]);
        let expected = [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("linger.ms", "1"),
            ("message.timeout.ms", "0"),
            ("message.max.bytes", "1000000"),
            ("queue.buffering.max.messages", "100000"),
            ("batch.size", "1000000"),
            ("compression.type", "snappy"),
        ];
        for (key, value) in expected {
            assert_eq!(client.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn a_shorter_linger_is_kept() {
        let client = config(&[("BULKER_PRODUCER_LINGER_MS", "0")]);
        assert_eq!(client.get("linger.ms"), Some("0"));
    }

    #[test]
    fn an_asynchronous_producer_lingers_as_told_and_gives_up_as_the_original_does() {
        let client = config(&[("BULKER_ACK_MODE", "async")]);
        assert_eq!(client.get("linger.ms"), Some("1000"));
        assert_eq!(client.get("batch.size"), Some("65535"));
        assert_eq!(client.get("message.timeout.ms"), None);
    }

    #[test]
    fn errors_say_whether_another_attempt_makes_sense() {
        let passes = [
            RDKafkaErrorCode::QueueFull,
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::NotEnoughReplicas,
            RDKafkaErrorCode::Fatal,
            RDKafkaErrorCode::PurgeInflight,
        ];
        for code in passes {
            assert!(SendError::of(code).is_retriable(), "{code}");
        }
        for code in [
            RDKafkaErrorCode::MessageSizeTooLarge,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::InvalidTopic,
        ] {
            assert!(!SendError::of(code).is_retriable(), "{code}");
        }
    }
}
