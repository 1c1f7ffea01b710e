//! A producer whose records, and the offsets of what they were made from, are committed together.
//!
//! Invariant: after [`TransactionalProducer::commit_with`] a read-committed reader sees all records
//! of the transaction, and the source's group has its offsets; after an abort, a crash, or a
//! fencing it sees none of them. At most one producer with a transactional id is at work: the next
//! one that calls [`TransactionalProducer::init`] ends the transaction of the former, and fences
//! it.
//!
//! Calls of librdkafka that wait for brokers run on a thread of the producer's own, one after the
//! other. One of them may wait without an end while a coordinator is away, whatever its time-out
//! (<https://github.com/confluentinc/librdkafka/issues/5456>): we stop waiting, and the producer is
//! of no more use. A thread of our own, for such a call must not hold up the end of the runtime.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rdkafka::{
    ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
    util::Timeout,
};
use tokio::sync::oneshot;
use tracing::debug;

use crate::{
    ClientSetupError, KafkaConfig, SourcePosition, client_log, error::ClientCause, error::code_of,
};

/// Pause before a full queue is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// How many times the transaction's time-out a call may take. librdkafka gives `init` twice that.
const CALL_TIMEOUTS: u32 = 3;

/// How a transactional producer works; fields, so that a test can make them small.
#[derive(Debug, Clone)]
pub struct TransactionSettings {
    /// Names the owner of the transactions; of two producers with the same one, the later fences
    /// the earlier. A process that restarts keeps its id, so that it ends what it left open.
    pub transactional_id: String,
    /// How long a transaction may be open before the brokers abort it; not above their
    /// `transaction.max.timeout.ms`. Readers of the topics wait for an open transaction.
    pub timeout: Duration,
}

/// Why a step of a transaction failed, by what the caller does next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransactionError {
    /// The same call, made again, may succeed; the transaction is as it was.
    #[error("kafka did not answer {call} in time")]
    Retriable {
        /// The call.
        call: &'static str,
        /// The library's words.
        source: ClientCause,
    },
    /// The transaction cannot be committed: [`TransactionalProducer::abort`], go back to where the
    /// source was ([`GroupSource::rewind`](crate::GroupSource::rewind)), and begin again.
    #[error("the transaction failed at {call} and has to be aborted")]
    Abort {
        /// The call.
        call: &'static str,
        /// The library's words.
        source: ClientCause,
    },
    /// Another producer has the transactional id now: this owner ends, and does not come back by
    /// itself, or the two would fence each other for ever.
    #[error("another producer took over the transactional id, noticed at {call}")]
    Fenced {
        /// The call.
        call: &'static str,
        /// The library's words.
        source: ClientCause,
    },
    /// This producer is of no more use: drop it, make a new one, and go back to where the source
    /// was. Whether the last transaction was committed is known once the new one is initialized.
    #[error("the transactional producer ended at {call}")]
    Fatal {
        /// The call.
        call: &'static str,
        /// The library's words.
        source: ClientCause,
    },
    /// Kafka would not take this record, however often it is sent: too large, or its topic is not
    /// there. The transaction goes on without it.
    #[error("kafka does not take the record")]
    Refused {
        /// The library's words.
        source: ClientCause,
    },
}

/// A record on its way into a transaction; borrowed, for the client copies it.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecordParts<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// `None`: chosen by the key, or at random without one.
    pub partition: Option<i32>,
    /// `None`: without a key.
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names and values, in their order.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

type Client = ThreadedProducer<TransactionContext>;
type Job = Box<dyn FnOnce(&Client) + Send>;

/// Produces in transactions. Idempotent, acknowledged by all in-sync replicas.
///
/// The order of calls: `init` once, then `begin`, `send` as often as wanted, and `commit_with` or
/// `abort`. A dropped call goes on by itself and ends before the next one begins; its outcome is
/// not known, so a caller that dropped `commit_with` makes a new producer. A dropped producer
/// leaves its transaction open until the next one with the id, or the time-out, aborts it.
pub struct TransactionalProducer {
    // before `jobs`: the thread ends once `jobs` is gone, and is the last to let go of the client,
    // which may wait for a moment
    client: Arc<Client>,
    jobs: mpsc::Sender<Job>,
    limit: Duration,
    /// The source's offsets are part of the open transaction.
    has_offsets: Arc<AtomicBool>,
}

impl TransactionalProducer {
    /// Makes the client; nothing is asked of Kafka before [`TransactionalProducer::init`].
    /// `client_id` is how the brokers see it.
    pub fn new(
        kafka: &KafkaConfig,
        client_id: &str,
        settings: &TransactionSettings,
    ) -> Result<TransactionalProducer, ClientSetupError> {
        TransactionalProducer::make(kafka, client_id, settings)
            .map_err(ClientSetupError::of("transactional producer"))
    }

    fn make(
        kafka: &KafkaConfig,
        client_id: &str,
        settings: &TransactionSettings,
    ) -> Result<TransactionalProducer, KafkaError> {
        let mut config = kafka.client_config(client_id);
        config
            .set("transactional.id", &settings.transactional_id)
            // the time-outs of records and sockets follow from it
            .set("transaction.timeout.ms", settings.timeout.as_millis().to_string())
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("compression.type", &kafka.kafka_topic_compression)
            .set("message.max.bytes", kafka.kafka_message_max_bytes.to_string());
        let client = ThreadedProducer::from_config_and_context(&config, TransactionContext)?;
        let client = Arc::new(client);
        let (jobs, waiting) = mpsc::channel::<Job>();
        let working = client.clone();
        thread::Builder::new()
            .name("kafka-transactions".to_owned())
            .spawn(move || {
                for job in waiting {
                    job(&working);
                }
            })
            .map_err(|_| KafkaError::ClientCreation("no thread for transactions".to_owned()))?;
        let has_offsets = Arc::new(AtomicBool::new(false));
        Ok(TransactionalProducer {
            client,
            jobs,
            limit: settings.timeout * CALL_TIMEOUTS,
            has_offsets,
        })
    }

    /// Ends the transaction that a former producer with the id left open, and fences it. To be
    /// called once, before all else, and again where it is retriable.
    pub async fn init(&self) -> Result<(), TransactionError> {
        self.call("init_transactions", |client| client.init_transactions(Timeout::Never)).await
    }

    /// Begins a transaction.
    pub async fn begin(&self) -> Result<(), TransactionError> {
        let has_offsets = self.has_offsets.clone();
        self.call("begin_transaction", move |client| {
            has_offsets.store(false, Ordering::Relaxed);
            client.begin_transaction()
        })
        .await
    }

    /// Hands a record to the client and does not wait for Kafka: what becomes of it is known with
    /// the commit. Waits while the client's queue is full; dropped then, the record was not sent.
    pub async fn send(&self, record: RecordParts<'_>) -> Result<(), TransactionError> {
        loop {
            let Err(error) = self.client.send(to_base_record(&record)).map_err(|(e, _)| e) else {
                return Ok(());
            };
            match code_of(&error) {
                RDKafkaErrorCode::QueueFull => tokio::time::sleep(QUEUE_PAUSE).await,
                RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessageSize
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition => {
                    return Err(TransactionError::Refused { source: ClientCause::new(error) });
                }
                _ => return Err(classify("send", error, &self.client)),
            }
        }
    }

    /// Commits the records together with the source's position. Returns once Kafka has both, or has
    /// neither. An empty position commits the records alone.
    pub async fn commit_with(&self, position: &SourcePosition) -> Result<(), TransactionError> {
        let (position, has_offsets) = (position.clone(), self.has_offsets.clone());
        self.call("commit_transaction", move |client| {
            // a commit that is made again has sent them: it may be half way through
            if !position.is_empty() && !has_offsets.load(Ordering::Relaxed) {
                let (offsets, group) = position.parts();
                client.send_offsets_to_transaction(offsets, group, Timeout::Never)?;
                has_offsets.store(true, Ordering::Relaxed);
            }
            client.commit_transaction(Timeout::Never)
        })
        .await
    }

    /// Gives the transaction up. Records that are still queued here are not sent.
    pub async fn abort(&self) -> Result<(), TransactionError> {
        self.call("abort_transaction", |client| client.abort_transaction(Timeout::Never)).await
    }

    /// Runs a call on the producer's thread, behind those before it.
    async fn call(
        &self,
        name: &'static str,
        call: impl FnOnce(&Client) -> Result<(), KafkaError> + Send + 'static,
    ) -> Result<(), TransactionError> {
        let (answer, answered) = oneshot::channel();
        let job = move |client: &Client| {
            let result = call(client).map_err(|error| classify(name, error, client));
            let _ = answer.send(result); // the caller may have dropped the call
        };
        let is_taken = self.jobs.send(Box::new(job)).is_ok();
        match tokio::time::timeout(self.limit, answered).await {
            Ok(Ok(result)) if is_taken => result,
            _ => Err(TransactionError::Fatal {
                call: name,
                source: ClientCause::new(KafkaError::Canceled),
            }),
        }
    }
}

fn to_base_record<'a>(record: &RecordParts<'a>) -> BaseRecord<'a, [u8], [u8]> {
    let headers =
        record.headers.iter().fold(
            OwnedHeaders::new_with_capacity(record.headers.len()),
            |headers, (key, value)| headers.insert(Header { key, value: *value }),
        );
    let mut sent = BaseRecord::to(record.topic).headers(headers);
    (sent.partition, sent.key, sent.payload) = (record.partition, record.key, record.value);
    sent
}

/// What the caller of a step is to do.
fn classify(call: &'static str, error: KafkaError, client: &Client) -> TransactionError {
    let ended_by = client.client().fatal_error().map(|(code, _)| code);
    let reaction = react(&error, ended_by);
    let source = ClientCause::new(error);
    match reaction {
        Reaction::Retry => TransactionError::Retriable { call, source },
        Reaction::Abort => TransactionError::Abort { call, source },
        Reaction::End => TransactionError::Fenced { call, source },
        Reaction::Rebuild => TransactionError::Fatal { call, source },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    Retry,
    Abort,
    End,
    Rebuild,
}

/// `ended_by`: the error that ended the client, if one did.
fn react(error: &KafkaError, ended_by: Option<RDKafkaErrorCode>) -> Reaction {
    use RDKafkaErrorCode::{Fenced, OperationTimedOut, ProducerFenced, State};
    let code = ended_by.unwrap_or_else(|| code_of(error));
    if matches!(code, Fenced | ProducerFenced) {
        return Reaction::End;
    }
    if ended_by.is_some() {
        return Reaction::Rebuild;
    }
    match error {
        KafkaError::Transaction(error) if error.txn_requires_abort() => Reaction::Abort,
        KafkaError::Transaction(error) if error.is_retriable() => Reaction::Retry,
        KafkaError::Flush(OperationTimedOut) => Reaction::Retry,
        // no record is taken behind one that failed: the transaction has to be aborted
        KafkaError::MessageProduction(State) => Reaction::Abort,
        _ => Reaction::Rebuild,
    }
}

/// The client's log lines; and records that were not delivered, which the commit answers for.
#[derive(Clone)]
struct TransactionContext;

impl ClientContext for TransactionContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client_log::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client_log::log_error(&error, reason);
    }
}

impl ProducerContext for TransactionContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            debug!(error = %error, "record of a transaction not delivered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do_next() {
        use RDKafkaErrorCode as Code;
        let timed_out = KafkaError::Flush(Code::OperationTimedOut);
        let cases = [
            (timed_out.clone(), None, Reaction::Retry),
            (timed_out, Some(Code::Fenced), Reaction::End),
            (KafkaError::MessageProduction(Code::State), None, Reaction::Abort),
            (KafkaError::MessageProduction(Code::Fatal), Some(Code::Fenced), Reaction::End),
            (
                KafkaError::MessageProduction(Code::Fatal),
                Some(Code::OutOfOrderSequenceNumber),
                Reaction::Rebuild,
            ),
            (KafkaError::Canceled, None, Reaction::Rebuild),
        ];
        for (error, ended_by, expected) in cases {
            assert_eq!(react(&error, ended_by), expected, "{error} {ended_by:?}");
        }
    }
}
