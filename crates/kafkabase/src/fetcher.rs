//! Reading partitions without joining a group and without a client per topic.
//!
//! One consumer is assigned to whatever is being read at the moment; each partition has a queue of
//! its own (see `native::partition_queue`), bounded by not reading it, so a topic with a backlog
//! does not stop its neighbours. A partition that was read to its end is given back: assigned and
//! idle, it would take part in every fetch request.
//!
//! Invariant: a reader hands out every record of its partition from its start on, in order, or an
//! error. `auto.offset.reset=error` keeps a gap from passing in silence;
//! `isolation.level=read_committed` keeps aborted records out.
//!
//! What is fetched ahead is memory that no caller sees: [`FetcherSettings::most_ahead`] bounds it
//! for each reader, and a reader whose caller is busy for long is paused and holds nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio::sync::Notify;
use tracing::{debug, error, warn};

use crate::{
    ClientSettings, ClientSetupError, OpenError,
    client_log::LogContext,
    error::code_of,
    native::{FetchError, Fetched, PartitionQueue},
};

/// A group for clients that have to name one: nothing is ever committed or joined with it.
pub(crate) const NO_GROUP: &str = "bulkerapp-fetcher";

/// How long a broker may take to tell where a topic is.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// What a tail has in its queue while it is fetched; see [`FetcherSettings::queued_bytes`].
const TAIL_QUEUE: usize = 64 << 10;
/// What a tail gets in one answer of a broker, most often.
const TAIL_FETCH: usize = 256 << 10;

/// How a fetcher reads; fields, so that a test can make them small.
#[derive(Debug, Clone)]
pub struct FetcherSettings {
    /// How long a broker may hold a fetch request that finds nothing. It is also how late the end
    /// of a partition is noticed.
    pub fetch_wait_max: Duration,
    /// Bytes of one partition that are fetched ahead: with less in its queue, it is fetched.
    pub queued_bytes: usize,
    /// Bytes of one partition in one answer of a broker; a batch that is larger comes all the same.
    pub fetch_message_max_bytes: usize,
}

impl FetcherSettings {
    /// For partitions that are read at their end, many at a time: as good as nothing is fetched
    /// ahead, and brokers may hold a request for `fetch_wait_max`, which they answer as soon as
    /// something is there.
    pub fn of_tails(&self, fetch_wait_max: Duration) -> FetcherSettings {
        FetcherSettings {
            fetch_wait_max,
            queued_bytes: TAIL_QUEUE,
            fetch_message_max_bytes: self.fetch_message_max_bytes.min(TAIL_FETCH),
        }
    }

    /// Bytes that one reader holds at most of records that it did not hand out, where no batch of
    /// records is larger than one answer: a queue, one more answer, and both again as they are
    /// taken out of librdkafka's queue in one go, which then is filled anew.
    pub fn most_ahead(&self) -> usize {
        2 * (self.queued_bytes + self.fetch_message_max_bytes)
    }
}

impl Default for FetcherSettings {
    fn default() -> Self {
        FetcherSettings {
            fetch_wait_max: Duration::from_millis(20),
            queued_bytes: 4 << 20,
            fetch_message_max_bytes: 1 << 20,
        }
    }
}

/// A shared consumer that reads partitions by assignment.
pub struct Fetcher {
    consumer: Arc<BaseConsumer<LogContext>>,
    most_ahead: usize,
    /// Readers that are not paused.
    fetching: AtomicUsize,
    stopped: Arc<AtomicBool>,
}

impl Fetcher {
    /// Makes the consumer and the thread that serves its events. Kafka need not be there.
    pub fn new(
        client: &ClientSettings,
        settings: &FetcherSettings,
    ) -> Result<Fetcher, ClientSetupError> {
        Fetcher::make(client, settings).map_err(ClientSetupError::of("consumer"))
    }

    fn make(client: &ClientSettings, settings: &FetcherSettings) -> Result<Fetcher, KafkaError> {
        let kilobytes = (settings.queued_bytes >> 10).max(1);
        let mut config = client.to_config();
        config
            .set("group.id", NO_GROUP) // librdkafka wants a group before it assigns
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false")
            .set("fetch.wait.max.ms", settings.fetch_wait_max.as_millis().to_string())
            .set("fetch.message.max.bytes", settings.fetch_message_max_bytes.to_string())
            .set("queued.max.messages.kbytes", kilobytes.to_string())
            // a full queue is looked at again after this; the default of a second stalls a fast
            // reader
            .set("fetch.queue.backoff.ms", "5");
        let consumer: Arc<BaseConsumer<LogContext>> =
            Arc::new(config.create_with_context(LogContext)?);
        let stopped = Arc::new(AtomicBool::new(false));
        let (polled, stop) = (consumer.clone(), stopped.clone());
        thread::Builder::new()
            .name("kafka-fetcher".to_owned())
            .spawn(move || serve_events(&polled, &stop))
            .map_err(|_| {
                KafkaError::ClientCreation("no thread for the fetcher's events".to_owned())
            })?;
        let (most_ahead, fetching) = (settings.most_ahead(), AtomicUsize::new(0));
        Ok(Fetcher { consumer, most_ahead, fetching, stopped })
    }

    /// Bytes that all readers together hold at most of records that they did not hand out. Those
    /// that read to their end hold far less.
    pub fn most_ahead(&self) -> usize {
        self.most_ahead * self.fetching.load(Ordering::Relaxed)
    }

    /// As [`Fetcher::read`], on a thread that may block. Dropped, it gives the partition back once
    /// it has it.
    pub async fn open(
        self: &Arc<Self>,
        topic: &str,
        partition: i32,
        start: i64,
    ) -> Result<PartitionReader, OpenError> {
        let (fetcher, name) = (self.clone(), topic.to_owned());
        let opened = tokio::task::spawn_blocking(move || fetcher.read(&name, partition, start));
        opened.await.unwrap_or_else(|_| {
            let died = KafkaError::Subscription(format!("no reader for topic {topic}"));
            Err(OpenError::of(topic, partition)(died))
        })
    }

    /// Starts to read `topic`/`partition` at `start`. At most one reader of a partition at a time.
    /// Blocks for a round trip.
    pub fn read(
        self: &Arc<Self>,
        topic: &str,
        partition: i32,
        start: i64,
    ) -> Result<PartitionReader, OpenError> {
        self.assign(topic, partition, start).map_err(OpenError::of(topic, partition))
    }

    fn assign(
        self: &Arc<Self>,
        topic: &str,
        partition: i32,
        start: i64,
    ) -> Result<PartitionReader, KafkaError> {
        let queue = PartitionQueue::take(&self.consumer, topic, partition)
            .ok_or_else(|| KafkaError::Subscription(format!("no queue for topic {topic}")))?;
        // the leader of a topic that the client does not know is looked for once a second only,
        // unless we ask
        self.consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT)?;
        let mut reader = PartitionReader {
            queue,
            fetcher: self.clone(),
            topic: topic.to_owned(),
            partition,
            start,
            next: start,
            is_fetched: false,
        };
        reader.fetch()?;
        Ok(reader)
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Reads one partition in order. Gives the partition back when dropped. Its calls block.
pub struct PartitionReader {
    queue: PartitionQueue<LogContext>,
    fetcher: Arc<Fetcher>,
    topic: String,
    partition: i32,
    start: i64,
    /// The first offset that was not handed out.
    next: i64,
    /// Assigned, that is.
    is_fetched: bool,
}

impl PartitionReader {
    /// The offset that the reader was opened at.
    pub fn start(&self) -> i64 {
        self.start
    }

    /// The next record or the partition's end, if it is there already.
    pub fn try_next(&mut self) -> Result<Fetched, FetchError> {
        self.next(Duration::ZERO)
    }

    /// What tells that something arrived after [`PartitionReader::try_next`] had found nothing.
    pub fn arrived(&mut self) -> Arc<Notify> {
        self.queue.arrived()
    }

    /// The next record or the partition's end; waits at most `timeout`.
    pub fn next(&mut self, timeout: Duration) -> Result<Fetched, FetchError> {
        if !self.is_fetched {
            self.fetch().map_err(|error| FetchError {
                code: code_of(&error).into(),
                reason: error.to_string(),
            })?;
        }
        loop {
            match self.queue.next(timeout)? {
                // left over from an earlier reader of the same partition
                Fetched::Message(message) if message.offset() < self.next => {}
                Fetched::Message(message) => {
                    self.next = message.offset() + 1;
                    return Ok(Fetched::Message(message));
                }
                fetched => return Ok(fetched),
            }
        }
    }

    /// Lets go of all records that were not handed out, and fetches none until the next one is
    /// asked for: for a caller that is busy for long. One answer of a broker may be on its way and
    /// is kept, unread, until the next call, which may be this one again. Nothing is lost.
    pub fn pause(&mut self) {
        if self.is_fetched {
            self.give_back();
        }
        self.queue.clear();
    }

    /// Records that are here and were not handed out.
    pub fn records_ahead(&self) -> usize {
        self.queue.len()
    }

    /// Has the partition fetched from the first record on that was not handed out. Once this
    /// returns, librdkafka drops what an earlier assignment still brings.
    fn fetch(&mut self) -> Result<(), KafkaError> {
        let mut assigned = TopicPartitionList::with_capacity(1);
        assigned.add_partition_offset(&self.topic, self.partition, Offset::Offset(self.next))?;
        self.fetcher.consumer.incremental_assign(&assigned)?;
        self.is_fetched = true;
        self.fetcher.fetching.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&mut self) {
        let mut assigned = TopicPartitionList::with_capacity(1);
        assigned.add_partition(&self.topic, self.partition);
        if let Err(error) = self.fetcher.consumer.incremental_unassign(&assigned) {
            warn!(topic = self.topic, error = %error, "partition could not be given back");
        }
        self.is_fetched = false;
        self.fetcher.fetching.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for PartitionReader {
    fn drop(&mut self) {
        if self.is_fetched {
            self.give_back();
        }
    }
}

/// Serves what is not a record: errors of brokers and of the client. Ends with its fetcher.
fn serve_events(consumer: &BaseConsumer<LogContext>, stopped: &AtomicBool) {
    while !stopped.load(Ordering::Relaxed) {
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(_)) => error!("a record bypassed its partition's queue"),
            Some(Err(error)) => debug!(error = %error, "fetcher event"),
        }
    }
}
