//! Reads a topic of failed events from its first record to its end, for people to look at.
//!
//! Invariants: nothing is committed and no group is joined, so that the loader of the topic does
//! not notice; a reader that is slow holds back the reading instead of filling memory; a reader
//! that got everything got all records that were there when it asked, else its answer breaks off.

use std::{io, sync::Arc, time::Duration};

use appbase::telemetry::chain;
use bytes::Bytes;
use kafkabase::{
    Admin, AdminError, ClientSettings, ClientSetupError, Fetcher, FetcherSettings, Message,
    OpenError, RangeError, RangeItem, RangeReader,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tracing::warn;

/// All topics of failed events have one partition.
const PARTITION: i32 = 0;
/// Topics that are read at a time; more wait.
const AT_A_TIME: usize = 4;
/// Bytes that are handed to the reader together.
const CHUNK: usize = 64 << 10;
/// Chunks that wait for the reader.
const CHUNKS: usize = 2;
/// Bytes that are fetched ahead.
const FETCHED_AHEAD: usize = 4 << 20;
/// How long one wait for a record lasts, and so how late it is noticed that the reader went away.
const POLL: Duration = Duration::from_millis(100);
/// How long the reader may take none of what is there for it.
const READER_PATIENCE: Duration = Duration::from_secs(60);

/// Why a topic's end was not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FailedEventsError {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("no consumer")]
    Consumer(#[from] ClientSetupError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("the reader took nothing for {} s", READER_PATIENCE.as_secs())]
    SlowReader,
    /// The rest is not wanted any more.
    #[error("the reader went away")]
    Closed,
}

/// Reads topics of failed events.
pub struct FailedEvents {
    client: ClientSettings,
    admin: Admin,
    dead_letter_topic: String,
    stall_after: Duration,
    permits: Arc<Semaphore>,
}

impl FailedEvents {
    /// Nothing is connected yet. `client` holds brokers and security; `stall_after` is how long no
    /// record may arrive although there are some.
    pub fn new(
        client: ClientSettings,
        admin: Admin,
        dead_letter_topic: String,
        stall_after: Duration,
    ) -> FailedEvents {
        FailedEvents {
            client,
            admin,
            dead_letter_topic,
            stall_after,
            permits: Arc::new(Semaphore::new(AT_A_TIME)),
        }
    }

    pub(crate) fn dead_letter_topic(&self) -> &str {
        &self.dead_letter_topic
    }

    /// Reads the topic up to the end that it has now; `write` appends what a record has for the
    /// reader. A topic that does not exist is empty. Waits while too many topics are read already;
    /// dropped, it has read nothing. Once the returned lines are dropped, the reading ends.
    pub(crate) async fn read(
        &self,
        topic: &str,
        write: impl FnMut(&Message, &mut Vec<u8>) + Send + 'static,
    ) -> Result<Lines, FailedEventsError> {
        // never closed; without a permit it would be one more reading, no harm
        let permit = self.permits.clone().acquire_owned().await.ok();
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let mut lines = Lines { chunks, is_over: false };
        let Some((start, end)) = self.range(topic).await? else {
            lines.is_over = true;
            return Ok(lines);
        };
        let settings =
            FetcherSettings { queued_bytes: FETCHED_AHEAD, ..FetcherSettings::default() };
        let fetcher = Arc::new(Fetcher::new(&self.client, &settings)?);
        let reading = Reading {
            topic: topic.to_owned(),
            start,
            end,
            stall_after: self.stall_after,
            sender,
            runtime: Handle::current(),
        };
        tokio::task::spawn_blocking(move || reading.run(&fetcher, write, permit));
        Ok(lines)
    }

    /// The topic's first offset, and the first after its end. `None`: there is nothing in between.
    async fn range(&self, topic: &str) -> Result<Option<(i64, i64)>, AdminError> {
        let topic = self.admin.topic_group(topic, PARTITION);
        match topic.topic_id().await {
            Err(error) if error.is_unknown_topic() => return Ok(None),
            found => drop(found?),
        }
        let end = topic.end().await?;
        let start = topic.low().await?;
        Ok((start < end).then_some((start, end)))
    }
}

/// Chunks of lines.
pub(crate) struct Lines {
    /// `None` comes at the topic's end. Without it, the reading was broken off.
    chunks: mpsc::Receiver<Option<Bytes>>,
    is_over: bool,
}

impl Lines {
    /// The next chunk, or an error instead of all that is missing.
    pub(crate) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.is_over {
            return None;
        }
        let chunk = self.chunks.recv().await;
        self.is_over = !matches!(chunk, Some(Some(_)));
        match chunk {
            Some(chunk) => chunk.map(Ok),
            None => Some(Err(io::Error::other("failed events not read to the end"))),
        }
    }
}

/// One topic on its way to one reader.
struct Reading {
    topic: String,
    /// The first offset.
    start: i64,
    /// The first offset that is not wanted.
    end: i64,
    stall_after: Duration,
    sender: mpsc::Sender<Option<Bytes>>,
    runtime: Handle,
}

impl Reading {
    /// Blocks.
    fn run(
        self,
        fetcher: &Arc<Fetcher>,
        write: impl FnMut(&Message, &mut Vec<u8>),
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let read = self.read(fetcher, write).and_then(|()| self.send(None));
        match read {
            Ok(()) | Err(FailedEventsError::Closed) => {}
            Err(error) => {
                warn!(topic = self.topic, error = %chain(&error), "failed events not read to the end");
            }
        }
        drop(permit);
    }

    fn read(
        &self,
        fetcher: &Arc<Fetcher>,
        mut write: impl FnMut(&Message, &mut Vec<u8>),
    ) -> Result<(), FailedEventsError> {
        let reader = fetcher.read(&self.topic, PARTITION, self.start)?;
        let mut range = RangeReader::new(reader, self.end, self.stall_after);
        let mut chunk = Vec::new();
        loop {
            if self.sender.is_closed() {
                return Err(FailedEventsError::Closed);
            }
            match range.next(POLL)? {
                RangeItem::Message(message) => {
                    write(&message, &mut chunk);
                    if chunk.len() >= CHUNK {
                        self.send(Some(std::mem::take(&mut chunk).into()))?;
                        range.resume();
                    }
                }
                RangeItem::Waiting => {}
                RangeItem::End => break,
            }
        }
        if chunk.is_empty() { Ok(()) } else { self.send(Some(chunk.into())) }
    }

    fn send(&self, chunk: Option<Bytes>) -> Result<(), FailedEventsError> {
        match self.runtime.block_on(timeout(READER_PATIENCE, self.sender.send(chunk))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(FailedEventsError::Closed),
            Err(_) => Err(FailedEventsError::SlowReader),
        }
    }
}
