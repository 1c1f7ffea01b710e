//! From a partition's records to batches of parsed events, on a thread of its own.
//!
//! Invariant: the batches of one run follow each other without a gap, `first` to `next_offset`, and
//! the last one ends at the run's end. Every record of that range is in its batch: as a row, as a
//! returning event whose state is not known yet, or as an event that cannot be parsed.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kafkabase::{
    FetchError, Fetched, Message, PartitionReader, RangeError, RangeItem, RangeReader, headers,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use warehouse::OptionError;

use super::{
    groups::{GroupPlan, Groups, PushError, RowGroup, Unparsable},
    memory::{HeldMemory, MemoryBudget},
    poison::{BatchLimit, Refusal},
};

/// How long one wait for a record lasts, and so how late a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
/// A read that waits longer for the batches before it keeps nothing of what comes next in memory.
const PAUSE_AFTER: Duration = Duration::from_secs(5);
/// A batch's bytes are looked at once per so many records, or so many bytes that they hold.
const ACCOUNT_EVERY: u64 = 64;
const ACCOUNT_EVERY_BYTES: usize = 256 << 10;
/// Spellings of options among the returning events of one batch: each may be a table of its own in
/// the database while the batch is loaded.
const MOST_SPELLINGS: usize = 32;

/// Records of the first batch of a run, where more are allowed.
const FIRST_BATCH: u64 = 10_000;

/// What one run reads.
#[derive(Debug, Clone)]
pub(crate) struct ReadPlan {
    pub(crate) events: GroupPlan,
    /// First offset to read.
    pub(crate) start: i64,
    /// First offset not to read: the end that the topic had when the run began.
    pub(crate) end: i64,
    /// Records per batch.
    pub(crate) batch_size: u64,
    /// Records per batch while a poison event is looked for; it may change with every batch.
    pub(crate) limit: BatchLimit,
    /// Bytes of Kafka values per batch; 0 is no limit.
    pub(crate) batch_size_bytes: u64,
    /// How long nothing may arrive before the end before the read counts as stuck.
    pub(crate) stall_after: Duration,
}

impl ReadPlan {
    /// Records of the next batch. Batches of a run grow to their size, so that the database begins
    /// early, and shrink before the end, so that little is left to it when all is read: reading and
    /// loading overlap.
    fn size_of_next(&self, batches: u32, next_offset: i64) -> u64 {
        let left = u64::try_from(self.end - next_offset).unwrap_or(0);
        let grown = FIRST_BATCH << batches.min(32);
        let size = self.batch_size.min(grown).min((left / 2).max(FIRST_BATCH));
        size.min(self.limit.get()).max(1)
    }
}

/// Events that are loaded in one transaction.
pub(crate) struct ParsedBatch {
    /// First readings, grouped by their options.
    pub(crate) groups: Vec<RowGroup<()>>,
    /// Events that were refused before and come back.
    pub(crate) returning: Vec<Message>,
    pub(crate) unparsable: Vec<Unparsable>,
    /// The first offset after the batch.
    pub(crate) next_offset: i64,
    /// Records read, tombstones included.
    pub(crate) received: u64,
    /// Bytes of Kafka values.
    pub(crate) bytes: u64,
    pub(crate) last_timestamp_ms: Option<i64>,
    /// All of its events are refused, for this.
    pub(crate) refusal: Option<Refusal>,
    /// Given back when the batch is loaded.
    pub(crate) held: Held,
}

/// What a batch holds as long as it lives: its memory, and its permit, of the two of its run.
pub(crate) struct Held {
    _memory: HeldMemory,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Why a run's reading ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("the options of the table's events do not fit")]
    Options(#[from] OptionError),
}

impl ReadError {
    /// Records are missing, and none came for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self, ReadError::Range(RangeError::Stalled { .. }))
    }
}

/// Reads until the plan's end and sends batches; at most two of a run exist at a time. Ends early
/// when the receiver is gone or `stop` says so, with whatever was sent by then. Blocks; runs on its
/// own thread.
pub(crate) fn read_batches(
    reader: PartitionReader,
    plan: &ReadPlan,
    budget: &MemoryBudget,
    stop: &CancellationToken,
    sender: &mpsc::Sender<Result<ParsedBatch, ReadError>>,
    runtime: &tokio::runtime::Handle,
) {
    let permits = Arc::new(Semaphore::new(2));
    let mut next = plan.start;
    let mut range = RangeReader::new(reader, plan.end, plan.stall_after);
    let mut batches = 0;
    while next < plan.end {
        let permit = runtime.block_on(async {
            let permit = permits.clone().acquire_owned();
            tokio::pin!(permit);
            loop {
                match tokio::time::timeout(PAUSE_AFTER, &mut permit).await {
                    Ok(permit) => return permit,
                    Err(_) => range.pause(), // again and again: an answer may be on its way
                }
            }
        });
        let Ok(permit) = permit else {
            return;
        };
        let size = plan.size_of_next(batches, next);
        batches += 1;
        let mut open = OpenBatch::new(plan, next, size, budget.batch());
        let end = open.fill(&mut range, stop);
        if stop.is_cancelled() {
            return;
        }
        next = open.next_offset;
        if next > open.first_offset && sender.blocking_send(Ok(open.close(Some(permit)))).is_err() {
            return;
        }
        if let Err(error) = end {
            // with the receiver gone the reason is not waited for either
            let _ = sender.blocking_send(Err(error));
            return;
        }
    }
}

/// What is there to be read at this moment, up to the plan's size of a batch. `None`: nothing. Does
/// not wait.
pub(crate) fn read_what_is_there(
    reader: &mut PartitionReader,
    plan: &ReadPlan,
    budget: &MemoryBudget,
    from: i64,
) -> Result<Option<ParsedBatch>, ReadError> {
    let size = plan.batch_size.min(plan.limit.get()).max(1);
    let mut open = OpenBatch::new(plan, from, size, budget.batch());
    while !open.is_full() {
        match reader.try_next()? {
            Fetched::Message(message) => open.take(message)?,
            Fetched::End { .. } => {}
            Fetched::Nothing => break,
        }
    }
    Ok((open.received > 0).then(|| open.close(None)))
}

/// A batch that is being filled.
struct OpenBatch<'a> {
    plan: &'a ReadPlan,
    /// Records that it takes at most.
    size: u64,
    first_offset: i64,
    next_offset: i64,
    received: u64,
    bytes: u64,
    largest: u64,
    last_timestamp_ms: Option<i64>,
    groups: Groups<'a, ()>,
    returning: Vec<Message>,
    /// Options of the returning events.
    returning_options: HashSet<Box<[u8]>>,
    /// What returning events and those that are no rows hold.
    other_bytes: usize,
    /// What was taken since the bytes were looked at.
    unaccounted_bytes: usize,
    unparsable: Vec<Unparsable>,
    held: HeldMemory,
}

impl<'a> OpenBatch<'a> {
    fn new(plan: &'a ReadPlan, first_offset: i64, size: u64, held: HeldMemory) -> OpenBatch<'a> {
        OpenBatch {
            plan,
            size,
            first_offset,
            next_offset: first_offset,
            received: 0,
            bytes: 0,
            largest: 0,
            last_timestamp_ms: None,
            groups: Groups::new(&plan.events),
            returning: Vec::new(),
            returning_options: HashSet::new(),
            other_bytes: 0,
            unaccounted_bytes: 0,
            unparsable: Vec::new(),
            held,
        }
    }

    /// Takes records until the batch is full or the plan's end is reached.
    fn fill(&mut self, range: &mut RangeReader, stop: &CancellationToken) -> Result<(), ReadError> {
        range.resume(); // until now the batch before waited for its permit
        while self.next_offset < self.plan.end && !self.is_full() {
            match range.next(POLL)? {
                RangeItem::Message(message) if self.would_exceed() => {
                    range.put_back(message);
                    break;
                }
                RangeItem::Message(message) => self.take(message)?,
                RangeItem::End => self.next_offset = self.plan.end,
                RangeItem::Waiting if stop.is_cancelled() => break,
                RangeItem::Waiting => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), ReadError> {
        let size = message.payload().len() as u64;
        self.bytes += size;
        self.largest = self.largest.max(size);
        self.received += 1;
        self.next_offset = message.offset() + 1;
        self.last_timestamp_ms = message.timestamp_ms();
        self.unaccounted_bytes += message.held_bytes();
        if message.header(headers::ORIGIN).is_some() {
            let options = message.header(headers::STREAM_OPTIONS).unwrap_or_default();
            if !self.returning_options.contains(options) {
                self.other_bytes += options.len();
                self.returning_options.insert(options.into());
            }
            self.other_bytes += message.held_bytes();
            self.returning.push(message);
            return Ok(());
        }
        match self.groups.push(message, ()) {
            Ok(()) => Ok(()),
            Err(PushError::Event(unparsable, ())) => {
                self.other_bytes += unparsable.message.held_bytes();
                self.unparsable.push(unparsable);
                Ok(())
            }
            Err(PushError::Destination(error)) => Err(error.into()),
        }
    }

    fn byte_size(&self) -> usize {
        self.groups.byte_size() + self.other_bytes
    }

    fn is_full(&mut self) -> bool {
        let has_many_options = self.returning_options.len() >= MOST_SPELLINGS;
        if self.received >= self.size || self.groups.is_full() || has_many_options {
            return true;
        }
        let is_time_to_look = self.received.is_multiple_of(ACCOUNT_EVERY)
            || self.unaccounted_bytes >= ACCOUNT_EVERY_BYTES;
        if self.received == 0 || !is_time_to_look {
            return false;
        }
        self.unaccounted_bytes = 0;
        let bytes = self.byte_size();
        self.held.set(bytes)
    }

    /// Whether one more record as large as the largest so far could pass the limit in bytes. At
    /// least one is always taken.
    fn would_exceed(&self) -> bool {
        let limit = self.plan.batch_size_bytes;
        limit > 0 && self.received > 0 && self.bytes + self.largest >= limit
    }

    fn close(mut self, permit: Option<OwnedSemaphorePermit>) -> ParsedBatch {
        let bytes = self.byte_size();
        self.held.set(bytes);
        ParsedBatch {
            groups: self.groups.into_groups(),
            returning: self.returning,
            unparsable: self.unparsable,
            next_offset: self.next_offset,
            received: self.received,
            bytes: self.bytes,
            last_timestamp_ms: self.last_timestamp_ms,
            refusal: None,
            held: Held { _memory: self.held, _permit: permit },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use warehouse::{RowsOf, StreamOptions};

    use super::*;

    fn sizes(batch_size: u64, records: i64) -> Vec<i64> {
        let events = GroupPlan {
            topic: "t".to_owned(),
            table: "t".to_owned(),
            options: Arc::new(StreamOptions::default()),
            rows: RowsOf::Batch,
        };
        let stall_after = Duration::from_secs(1);
        let plan = ReadPlan {
            events,
            start: 0,
            end: records,
            batch_size,
            limit: BatchLimit::default(),
            batch_size_bytes: 0,
            stall_after,
        };
        let (mut next, mut sizes) = (0, Vec::new());
        while next < plan.end {
            let size = i64::try_from(plan.size_of_next(u32::try_from(sizes.len()).unwrap(), next));
            let size = size.unwrap().min(plan.end - next);
            sizes.push(size);
            next += size;
        }
        sizes
    }

    #[test]
    fn large_batches_grow_at_the_beginning_of_a_run_and_shrink_before_its_end() {
        assert_eq!(
            sizes(50_000, 200_000),
            [10_000, 20_000, 40_000, 50_000, 40_000, 20_000, 10_000, 10_000]
        );
    }

    #[test]
    fn small_batches_have_the_size_that_they_may_have() {
        assert_eq!(sizes(10_000, 25_000), [10_000, 10_000, 5_000]);
        assert_eq!(sizes(3, 7), [3, 3, 1]);
    }
}
