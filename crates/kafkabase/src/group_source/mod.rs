//! A topic that the members of a group share, as the source of transactions.
//!
//! Invariants: [`GroupSource::position`] names what was handed out and nothing else, so that a
//! transaction that carries it has each message of its range. Where a partition with messages in
//! hand went to another member, there is no position: that member begins where the last committed
//! transaction ended, and what was made from those messages must not be committed by us. The
//! broker says so as well, by the group's generation (KIP-447), to a member that does not know yet.
//!
//! Rebalances are cooperative: partitions that stay with a member go on being read meanwhile. A new
//! owner waits for the offsets of transactions that are open (`read_committed`).

mod hand;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, Rebalance},
    error::{KafkaError, RDKafkaErrorCode},
};
use tracing::debug;

use self::hand::Hand;
pub use self::hand::{SourceItem, SourceMessage};
use crate::{ClientSetupError, KafkaConfig, client_log, error::ClientCause, error::code_of};

/// Messages, and bytes of their values, that are taken from the client before some are handed out.
const AT_ONCE: usize = 512;
const BYTES_AT_ONCE: usize = 4 << 20;
/// Kilobytes of one partition that the client fetches ahead.
const FETCHED_AHEAD_KB: &str = "16384";
/// How long going back may take.
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a group begins that has committed nothing for a partition, or lost it to retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the first message that is still there.
    Earliest,
    /// At the end.
    Latest,
    /// Nowhere: [`GroupSource::next`] is an error.
    Error,
}

impl OffsetReset {
    fn as_str(self) -> &'static str {
        match self {
            OffsetReset::Earliest => "earliest",
            OffsetReset::Latest => "latest",
            OffsetReset::Error => "error",
        }
    }
}

/// Which topic a source reads, and as which group.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// The topic; it has to exist.
    pub topic: String,
    /// The group whose members share the topic's partitions.
    pub group: String,
    /// Where the group begins.
    pub offset_reset: OffsetReset,
}

/// Why a source does not go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The call failed; a later one may succeed.
    #[error("the source cannot be read")]
    Read {
        /// The library's words.
        source: ClientCause,
    },
    /// This source is of no more use: make a new one.
    #[error("the source ended")]
    Fatal {
        /// The library's words.
        source: ClientCause,
    },
    /// A partition with messages in hand is another member's: abort, then
    /// [`GroupSource::rewind`].
    #[error("messages in hand belong to another member of the group")]
    Revoked,
}

/// How far the messages of a transaction reach, and the group that commits it. Cheap to clone.
#[derive(Clone)]
pub struct SourcePosition {
    parts: Arc<(TopicPartitionList, ConsumerGroupMetadata)>,
}

impl SourcePosition {
    /// No message is in hand.
    pub fn is_empty(&self) -> bool {
        self.parts.0.count() == 0
    }

    /// By partition, the first offset that is not part of it.
    pub fn offsets(&self) -> BTreeMap<i32, i64> {
        let elements = self.parts.0.elements();
        let offset = |offset: Offset| offset.to_raw().unwrap_or_default();
        elements.iter().map(|element| (element.partition(), offset(element.offset()))).collect()
    }

    pub(crate) fn parts(&self) -> (&TopicPartitionList, &ConsumerGroupMetadata) {
        (&self.parts.0, &self.parts.1)
    }
}

/// A member of a group over one topic. Messages that are handed out are *in hand* until
/// [`GroupSource::mark_committed`] or [`GroupSource::rewind`].
///
/// The group wants to hear from [`GroupSource::next`] within `KAFKA_MAX_POLL_INTERVAL_MS`, or gives
/// the partitions away. Dropped, it leaves the group, which may block for a moment;
/// [`GroupSource::leave`] does so on a thread that may.
pub struct GroupSource {
    inner: Arc<Inner>,
}

struct Inner {
    consumer: BaseConsumer<SourceContext>,
    topic: String,
    /// Held while the client is polled, so that messages of a dropped call keep their order.
    polling: Mutex<()>,
}

impl GroupSource {
    /// Joins the group; partitions come with [`GroupSource::next`]. `client_id` is how the brokers
    /// see the member.
    pub fn join(
        kafka: &KafkaConfig,
        client_id: &str,
        settings: &SourceSettings,
    ) -> Result<GroupSource, ClientSetupError> {
        GroupSource::make(kafka, client_id, settings)
            .map_err(ClientSetupError::of("consumer of a group"))
    }

    fn make(
        kafka: &KafkaConfig,
        client_id: &str,
        settings: &SourceSettings,
    ) -> Result<GroupSource, KafkaError> {
        let millis = |time: Duration| time.as_millis().to_string();
        let mut config = kafka.client_config(client_id);
        config
            .set("group.id", &settings.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", settings.offset_reset.as_str())
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", millis(kafka.kafka_session_timeout_ms))
            .set("max.poll.interval.ms", millis(kafka.kafka_max_poll_interval_ms))
            .set("queued.max.messages.kbytes", FETCHED_AHEAD_KB)
            .set("fetch.message.max.bytes", kafka.kafka_fetch_message_max_bytes.to_string());
        let context = SourceContext { hand: Arc::default() };
        let consumer = BaseConsumer::from_config_and_context(&config, context)?;
        consumer.subscribe(&[&settings.topic])?;
        let topic = settings.topic.clone();
        Ok(GroupSource { inner: Arc::new(Inner { consumer, topic, polling: Mutex::default() }) })
    }

    /// What comes next; waits at most `wait` for it. A dropped call loses nothing: what it found
    /// is handed out by the next one.
    pub async fn next(&mut self, wait: Duration) -> Result<SourceItem, SourceError> {
        if let Some(item) = self.hand().take_next() {
            return Ok(item);
        }
        self.blocking(move |inner| inner.fill(wait)).await?;
        Ok(self.hand().take_next().unwrap_or(SourceItem::Nothing))
    }

    /// The position behind all messages in hand, for the transaction that carries them.
    /// [`SourceError::Revoked`]: some of them are another member's.
    pub fn position(&self) -> Result<SourcePosition, SourceError> {
        let group = self.inner.consumer.group_metadata();
        let group = group.ok_or(KafkaError::Canceled).map_err(read_error)?;
        let hand = self.hand();
        if hand.is_interrupted {
            return Err(SourceError::Revoked);
        }
        let mut offsets = TopicPartitionList::with_capacity(hand.in_hand.len());
        for (partition, range) in &hand.in_hand {
            let next = Offset::Offset(range.next);
            offsets
                .add_partition_offset(&self.inner.topic, *partition, next)
                .map_err(read_error)?;
        }
        Ok(SourcePosition { parts: Arc::new((offsets, group)) })
    }

    /// The transaction that carried `position` was committed: what lies before it is not in hand
    /// any more. What was handed out since stays.
    pub fn mark_committed(&mut self, position: &SourcePosition) {
        self.hand().settle(&position.offsets());
    }

    /// Goes back to the first message in hand of each partition that is still ours: its transaction
    /// was aborted. After an error, and after a dropped call, some may have gone back: the call is
    /// made again before any other.
    pub async fn rewind(&mut self) -> Result<(), SourceError> {
        self.blocking(Inner::rewind).await
    }

    /// Leaves the group. What is in hand and not committed is read again by the others.
    /// Dropped, it leaves all the same.
    pub async fn leave(self) {
        // a panic of the client's thread was reported by its hook
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.inner.hand()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = inner.polling.lock().unwrap_or_else(PoisonError::into_inner);
            work(&inner)
        });
        done.await.unwrap_or_else(|_| Err(read_error(KafkaError::Canceled)))
    }
}

impl Inner {
    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.consumer.context().hand()
    }

    /// Takes what is there, after waiting for the first of it.
    fn fill(&self, wait: Duration) -> Result<(), SourceError> {
        let (until, mut bytes) = (Instant::now() + wait, 0);
        while bytes < BYTES_AT_ONCE {
            // a dropped call may have found something meanwhile
            let waiting = self.hand().waiting.len();
            let left = match waiting {
                0 => until.saturating_duration_since(Instant::now()),
                AT_ONCE.. => return Ok(()),
                _ => Duration::ZERO,
            };
            match self.consumer.poll(left) {
                None => return Ok(()),
                Some(Ok(message)) => {
                    let message = SourceMessage::of(&message);
                    bytes += message.value.as_ref().map_or(0, Vec::len);
                    self.hand().waiting.push_back(SourceItem::Message(message));
                }
                Some(Err(error)) if is_passing(&error) => {
                    debug!(error = %error, "event of a group's source");
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    return Err(SourceError::Fatal { source: ClientCause::new(error) });
                }
                Some(Err(error)) => return Err(read_error(error)),
            }
        }
        Ok(())
    }

    fn rewind(&self) -> Result<(), SourceError> {
        let first = self.hand().first_in_hand();
        let mut wanted = TopicPartitionList::with_capacity(first.len());
        for (partition, offset) in &first {
            let offset = Offset::Offset(*offset);
            wanted.add_partition_offset(&self.topic, *partition, offset).map_err(read_error)?;
        }
        if wanted.count() > 0 {
            let sought = self.consumer.seek_partitions(wanted, SEEK_TIMEOUT).map_err(read_error)?;
            sought.elements().iter().try_for_each(|element| element.error()).map_err(read_error)?;
        }
        self.hand().let_go();
        Ok(())
    }
}

fn read_error(error: KafkaError) -> SourceError {
    SourceError::Read { source: ClientCause::new(error) }
}

/// Of one broker's connection, or told by a rebalance as well.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        AllBrokersDown, BrokerTransportFailure, OperationTimedOut, PollExceeded, Resolve,
    };
    matches!(
        code_of(error),
        AllBrokersDown | BrokerTransportFailure | OperationTimedOut | PollExceeded | Resolve
    )
}

/// Hears of rebalances, inside the poll.
#[derive(Clone)]
struct SourceContext {
    hand: Arc<Mutex<Hand>>,
}

impl SourceContext {
    /// Short critical sections: never held across a call of the client.
    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for SourceContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client_log::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client_log::log_error(&error, reason);
    }
}

impl ConsumerContext for SourceContext {
    fn pre_rebalance(&self, _: &BaseConsumer<SourceContext>, rebalance: &Rebalance<'_>) {
        let partitions = |list: &TopicPartitionList| -> Vec<i32> {
            list.elements().iter().map(|element| element.partition()).collect()
        };
        match rebalance {
            Rebalance::Assign(list) => self.hand().assign(partitions(list)),
            Rebalance::Revoke(list) => self.hand().revoke(partitions(list)),
            Rebalance::Error(error) => debug!(error = %error, "rebalance failed"),
        }
    }
}
