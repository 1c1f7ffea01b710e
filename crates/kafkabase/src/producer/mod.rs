//! Producing with an answer: an event is taken only once it cannot be lost any more.
//!
//! Invariants, in durable mode: `send` is `Ok` only after Kafka's acknowledgement, or after the
//! event was synced into the spool; an event that is refused or spooled because its topic is
//! blocked was never handed to librdkafka.
//!
//! An event that was handed over has no time-out there (`message.timeout.ms` 0): librdkafka keeps
//! trying until Kafka answers for it. A time-out would not make the outcome known (the record may
//! have been written), it would leave a hole in the idempotent producer's sequence, and it would
//! open the topic to new events while Kafka is still away. With a spool, the event has a copy there
//! after the wait, which goes with Kafka's answer. Without one, a sender that was told no within
//! the wait may find its event in Kafka later; what never happens is a yes without the event.

mod client;
mod error;
mod lookup;
mod moment;
mod replay;
mod replayer;
mod replays;
mod reports;
mod size;
mod spooling;
mod topic;

#[cfg(test)]
mod outages;
#[cfg(test)]
mod refusals;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntCounterVec};
use rdkafka::{
    error::RDKafkaErrorCode,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer},
};
use tokio::sync::oneshot;

use self::{
    client::{Client, producer_config},
    moment::Moment,
    replayer::Replayer,
    reports::{Report, Reports},
    size::SizeLimit,
};
pub use self::{
    error::SendError,
    replayer::{NotMade, SpoolUse, TopicMaker},
    topic::ProducerTopic,
};
use crate::{
    AckMode, ClientSetupError, KafkaConfig, Spool,
    error::code_of,
    outstanding::{Admission, Ticket},
    spool::EventParts,
};

/// Stands for no limit to the wait.
const FOREVER: Duration = Duration::MAX;

/// What the producer counts; registered by the binary under its own names.
#[derive(Clone)]
pub struct ProducerMetrics {
    /// Labels: `topicId`, `destinationId`, `mode`, `tableName`, `status`, `errorType`.
    pub messages: IntCounterVec,
    /// Producers that were replaced after an error which ended them.
    pub rebuilt: IntCounter,
}

/// Produces events and waits until Kafka has them. Cheap to clone.
#[derive(Clone)]
pub struct AckProducer {
    shared: Arc<Shared>,
}

struct Shared {
    client: Arc<Client>,
    topics: RwLock<HashMap<String, Arc<ProducerTopic>>>,
    prefix: String,
    mode: AckMode,
    largest: SizeLimit,
    wait: Duration,
    metrics: ProducerMetrics,
    /// What needs the spool; `None` without one.
    replayer: Option<Replayer>,
}

/// An event that librdkafka has.
struct Handed {
    ticket: Ticket,
    since: Moment,
    answer: oneshot::Receiver<Result<(), SendError>>,
}

/// What became of an event that was to be handed over.
enum Enqueued {
    Handed(Handed),
    Diverted,
    Held(Instant),
}

impl AckProducer {
    /// Needs a runtime: tasks of its own pass Kafka's answers on and replay what is in the spool. A
    /// spool is for durable mode only. `client_id` is how the brokers see it; Kafka need not be
    /// there.
    pub fn new(
        config: &KafkaConfig,
        client_id: &str,
        metrics: ProducerMetrics,
        spool: Option<SpoolUse>,
    ) -> Result<AckProducer, ClientSetupError> {
        let spool = spool.filter(|_| config.ack_mode == AckMode::Durable);
        let reports = Reports::start(spool.as_ref().map(|using| using.spool.clone()));
        let client_config = producer_config(config, client_id);
        let client = Client::new(client_config, reports, metrics.rebuilt.clone())
            .map_err(ClientSetupError::of("producer"))?;
        let client = Arc::new(client);
        tokio::spawn(Client::watch(Arc::downgrade(&client)));
        let wait = match config.ack_mode {
            AckMode::Durable => config.producer_wait_for_delivery_ms,
            AckMode::Async => FOREVER,
        };
        let shared = Shared {
            client,
            topics: RwLock::default(),
            prefix: config.kafka_topic_prefix.clone(),
            mode: config.ack_mode,
            largest: SizeLimit(config.producer_message_max_bytes()),
            wait,
            metrics,
            replayer: spool.map(|using| Replayer::new(using, config.client_config(client_id))),
        };
        let producer = AckProducer { shared: Arc::new(shared) };
        producer.replay_what_is_there();
        Ok(producer)
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

    /// Sends one event. In durable mode `Ok` means that Kafka acknowledged it, or that it is synced
    /// into the spool. The key is the event's own: it is looked for by it. Dropped, it leaves an
    /// event that may be written, and that no spool has.
    pub async fn send(
        &self,
        topic: &Arc<ProducerTopic>,
        key: &[u8],
        value: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Result<(), SendError> {
        let event = EventParts { topic: topic.name(), key, headers, value };
        self.send_parts(topic, event).await.inspect_err(|error| topic.count(error))
    }

    /// Sends a record without a value and headers, perhaps without a key. `Ok` means that Kafka
    /// acknowledged it (in durable mode). It never goes to the spool: its key is not its own, so it
    /// could not be looked for. Dropped, it leaves a record that may be written.
    pub async fn send_key(
        &self,
        topic: &Arc<ProducerTopic>,
        key: Option<&[u8]>,
    ) -> Result<(), SendError> {
        let answer = match self.enqueue(topic, key, None, None) {
            Ok(Enqueued::Handed(_)) if self.shared.mode == AckMode::Async => Ok(()),
            Ok(Enqueued::Handed(handed)) => {
                match tokio::time::timeout(self.shared.wait, handed.answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) | Err(_) => Err(SendError::NotAcknowledged),
                }
            }
            Ok(Enqueued::Diverted | Enqueued::Held(_)) => Err(SendError::Blocked),
            Err(error) => Err(error),
        };
        answer.inspect_err(|error| topic.count(error))
    }

    /// How many topics send no events to Kafka because it does not acknowledge, or because older
    /// ones are in the spool.
    pub fn blocked_topics(&self) -> usize {
        let now = Instant::now();
        let topics = self.shared.topics.read().unwrap_or_else(PoisonError::into_inner);
        let is_blocked = |topic: &&Arc<ProducerTopic>| {
            let outstanding = topic.outstanding();
            outstanding.is_diverted() || outstanding.is_blocked(now, self.shared.wait)
        };
        topics.values().filter(is_blocked).count()
    }

    /// Events in the client's queue or on their way.
    pub fn queue_length(&self) -> usize {
        usize::try_from(self.shared.client.current().in_flight_count()).unwrap_or_default()
    }

    /// What events wait for.
    pub fn mode(&self) -> AckMode {
        self.shared.mode
    }

    /// Where events go that Kafka does not take in time.
    pub fn spool(&self) -> Option<&Spool> {
        Some(self.shared.replayer.as_ref()?.spool())
    }

    /// Waits until nothing is queued, at most for `within`. Returns how many events were left.
    /// Dropped, it goes on in the background.
    pub async fn flush(&self, within: Duration) -> usize {
        let client = self.shared.client.current();
        let flushed = tokio::task::spawn_blocking(move || client.flush(within).is_ok()).await;
        match flushed {
            Ok(true) => 0,
            _ => self.queue_length(),
        }
    }

    async fn send_parts(
        &self,
        topic: &Arc<ProducerTopic>,
        event: EventParts<'_>,
    ) -> Result<(), SendError> {
        self.shared.largest.check(event)?;
        let (key, value) = (Some(event.key), Some(event.value));
        let mut enqueued = self.enqueue(topic, key, value, Some(owned(event.headers)));
        if let Ok(Enqueued::Held(until)) = enqueued {
            Box::pin(self.wait_for_release(topic, until)).await;
            enqueued = self.enqueue(topic, key, value, Some(owned(event.headers)));
        }
        match enqueued {
            // the report is only counted
            Ok(Enqueued::Handed(_)) if self.shared.mode == AckMode::Async => Ok(()),
            Ok(Enqueued::Handed(handed)) => self.wait_for(topic, event, handed).await,
            Ok(Enqueued::Diverted | Enqueued::Held(_)) => {
                Box::pin(self.spool_only(topic, event, SendError::Blocked)).await
            }
            Err(error) if error.is_retriable() => {
                Box::pin(self.spool_only(topic, event, error)).await
            }
            Err(error) => Err(error),
        }
    }

    /// Hands one event to the client, unless older ones of its topic wait. Its answer is Kafka's.
    fn enqueue(
        &self,
        topic: &Arc<ProducerTopic>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> Result<Enqueued, SendError> {
        let since = Moment::now();
        let ticket = match topic.outstanding().admit(since.monotonic, self.shared.wait) {
            Admission::Direct(ticket) => ticket,
            Admission::Diverted => return Ok(Enqueued::Diverted),
            Admission::Held(until) => return Ok(Enqueued::Held(until)),
        };
        let (sender, answer) = oneshot::channel();
        let report = Box::new(Report::Sent { topic: topic.clone(), ticket, answer: sender });
        let mut record = BaseRecord::with_opaque_to(topic.name(), report);
        (record.key, record.payload, record.headers) = (key, value, headers);
        if let Err(error) = self.shared.client.send(record) {
            topic.outstanding().settle(ticket);
            let code = code_of(&error);
            if code == RDKafkaErrorCode::Fatal {
                self.shared.client.rebuild();
            }
            return Err(SendError::of(code));
        }
        topic.count_produced();
        Ok(Enqueued::Handed(Handed { ticket, since, answer }))
    }

    /// Waits for Kafka, then for the spool.
    async fn wait_for(
        &self,
        topic: &Arc<ProducerTopic>,
        event: EventParts<'_>,
        mut handed: Handed,
    ) -> Result<(), SendError> {
        let answer = tokio::time::timeout(self.shared.wait, &mut handed.answer).await;
        match answer {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) if !error.is_retriable() => Err(error),
            // reports are not lost while the client lives; if one is, nothing is known of the
            // event. The rest is rare, and boxed so that the future of every request stays small
            Ok(Ok(Err(error))) => {
                Box::pin(self.spool_failed(topic, event, handed.since, error)).await
            }
            Ok(Err(_)) => {
                let error = SendError::NotAcknowledged;
                Box::pin(self.spool_failed(topic, event, handed.since, error)).await
            }
            Err(_) => Box::pin(self.spool_copy(topic, event, handed)).await,
        }
    }
}

fn owned(headers: &[(&str, &[u8])]) -> OwnedHeaders {
    let owned = OwnedHeaders::new_with_capacity(headers.len());
    let add = |owned: OwnedHeaders, (key, value): &(&str, &[u8])| {
        owned.insert(Header { key, value: Some(*value) })
    };
    headers.iter().fold(owned, add)
}
