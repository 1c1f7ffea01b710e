//! From a partition's records to batches of parsed events, on a thread of its own.
//!
//! Invariant: the batches of one run follow each other without a gap, `first` to `next_offset`, and the
//! last one ends at the run's end. Every record of that range is in its batch: as a row, as a returning copy
//! whose fate is not known yet, or as an event that nobody can parse.

use std::{
    ffi::CStr,
    sync::Arc,
    time::{Duration, Instant},
};

use kafkabase::{FetchError, Fetched, Message, PartitionReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use warehouse::OptionError;

use super::{
    groups::{Group, GroupPlan, Groups, PushError, Unparsable},
    memory::{HeldMemory, MemoryBudget},
};

/// As [`super::envelope::ORIGIN`].
const ORIGIN: &CStr = c"bulker_origin";
/// How long one wait for a record lasts, and so how late a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
/// A batch's bytes are looked at once per so many records.
const ACCOUNT_EVERY: u64 = 64;

/// What one run reads.
#[derive(Debug, Clone)]
pub(super) struct ReadPlan {
    pub(super) events: GroupPlan,
    /// First offset to read.
    pub(super) start: i64,
    /// First offset not to read: the end that the topic had when the run began.
    pub(super) end: i64,
    /// Records per batch.
    pub(super) batch_size: u64,
    /// Bytes of Kafka values per batch; 0 is no limit.
    pub(super) batch_size_bytes: u64,
    /// How long nothing may arrive before the end before the read counts as stuck.
    pub(super) stall_after: Duration,
}

/// Events that are loaded in one transaction.
pub(super) struct ParsedBatch {
    /// First readings, grouped by their options.
    pub(super) groups: Vec<Group<()>>,
    /// Events that were refused before and come back.
    pub(super) copies: Vec<Message>,
    pub(super) unparsable: Vec<Unparsable>,
    /// The first offset after the batch.
    pub(super) next_offset: i64,
    /// Records read, tombstones included.
    pub(super) received: u64,
    /// Bytes of Kafka values.
    pub(super) bytes: u64,
    pub(super) last_timestamp_ms: Option<i64>,
    /// Held until the batch is loaded: its memory, and its place among the two of its run.
    pub(super) held: HeldMemory,
    _place: Option<OwnedSemaphorePermit>,
}

impl ParsedBatch {
    /// All of its events are refused, for this reason.
    pub(super) fn refuse(&mut self, reason: &str) {
        for group in self.groups.drain(..) {
            let refused = |message| Unparsable { message, reason: reason.to_owned() };
            self.unparsable.extend(group.messages.into_iter().map(refused));
        }
    }
}

/// Why a run's reading ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("no record arrived for {} s although there are some", after.as_secs())]
    Stalled { after: Duration },
    #[error("the options of the table's events do not fit")]
    Options(#[from] OptionError),
}

/// Reads until the plan's end and sends batches; at most two of a run exist at a time. Ends early when the
/// receiver is gone or `stop` says so, with whatever was sent by then. Blocks; runs on its own thread.
pub(super) fn read_batches(
    mut reader: PartitionReader,
    plan: &ReadPlan,
    budget: &MemoryBudget,
    stop: &CancellationToken,
    sender: &mpsc::Sender<Result<ParsedBatch, ReadError>>,
    runtime: &tokio::runtime::Handle,
) {
    let places = Arc::new(Semaphore::new(2));
    let mut next = plan.start;
    let mut left_over = None;
    while next < plan.end {
        let Ok(place) = runtime.block_on(places.clone().acquire_owned()) else {
            return;
        };
        let mut open = OpenBatch::new(plan, next, budget.batch());
        let end = open.fill(&mut reader, &mut left_over, stop);
        if stop.is_cancelled() {
            return;
        }
        next = open.next_offset;
        if next > open.first_offset && sender.blocking_send(Ok(open.close(Some(place)))).is_err() {
            return;
        }
        if let Err(error) = end {
            // the receiver being gone means that nobody waits for the reason either
            let _ = sender.blocking_send(Err(error));
            return;
        }
    }
}

/// What is there to be read at this moment, up to the plan's size of a batch. `None`: nothing. Does not wait.
pub(super) fn read_what_is_there(
    reader: &mut PartitionReader,
    plan: &ReadPlan,
    budget: &MemoryBudget,
    from: i64,
) -> Result<Option<ParsedBatch>, ReadError> {
    let mut open = OpenBatch::new(plan, from, budget.batch());
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
    first_offset: i64,
    next_offset: i64,
    received: u64,
    bytes: u64,
    largest: u64,
    last_timestamp_ms: Option<i64>,
    groups: Groups<'a, ()>,
    copies: Vec<Message>,
    copied_bytes: usize,
    unparsable: Vec<Unparsable>,
    held: HeldMemory,
}

impl<'a> OpenBatch<'a> {
    fn new(plan: &'a ReadPlan, first_offset: i64, held: HeldMemory) -> OpenBatch<'a> {
        OpenBatch {
            plan,
            first_offset,
            next_offset: first_offset,
            received: 0,
            bytes: 0,
            largest: 0,
            last_timestamp_ms: None,
            groups: Groups::new(&plan.events),
            copies: Vec::new(),
            copied_bytes: 0,
            unparsable: Vec::new(),
            held,
        }
    }

    /// Takes records until the batch is full or the plan's end is reached.
    fn fill(
        &mut self,
        reader: &mut PartitionReader,
        left_over: &mut Option<Message>,
        stop: &CancellationToken,
    ) -> Result<(), ReadError> {
        let mut heard = Instant::now();
        while self.next_offset < self.plan.end && !self.is_full() {
            let fetched = match left_over.take() {
                Some(message) => Fetched::Message(message),
                None => reader.next(POLL)?,
            };
            match fetched {
                Fetched::Message(message) if message.offset() >= self.plan.end => {
                    self.next_offset = self.plan.end;
                }
                Fetched::Message(message) => {
                    if self.would_exceed() {
                        *left_over = Some(message);
                        return Ok(());
                    }
                    self.take(message)?;
                    heard = Instant::now();
                }
                // a lagging leader reports an end too early; it counts only at or beyond ours. What lies
                // between was transaction markers, which are never delivered.
                Fetched::End { offset } if offset >= self.plan.end => {
                    self.next_offset = self.plan.end;
                }
                Fetched::End { .. } | Fetched::Nothing => {
                    if stop.is_cancelled() {
                        return Ok(());
                    }
                    if heard.elapsed() >= self.plan.stall_after {
                        return Err(ReadError::Stalled { after: self.plan.stall_after });
                    }
                }
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
        if message.header(ORIGIN).is_some() {
            self.copied_bytes += message.payload().len();
            self.copies.push(message);
            return Ok(());
        }
        match self.groups.push(message, ()) {
            Ok(()) => Ok(()),
            Err(PushError::Event(unparsable, ())) => {
                self.copied_bytes += unparsable.message.payload().len();
                self.unparsable.push(unparsable);
                Ok(())
            }
            Err(PushError::Destination(error)) => Err(error.into()),
        }
    }

    fn byte_size(&self) -> usize {
        self.groups.byte_size() + self.copied_bytes
    }

    fn is_full(&mut self) -> bool {
        if self.received >= self.plan.batch_size || self.groups.is_full() {
            return true;
        }
        if self.received == 0 || !self.received.is_multiple_of(ACCOUNT_EVERY) {
            return false;
        }
        let bytes = self.byte_size();
        self.held.set(bytes)
    }

    /// Whether one more record as large as the largest so far could pass the limit in bytes. At least one is
    /// always taken.
    fn would_exceed(&self) -> bool {
        let limit = self.plan.batch_size_bytes;
        limit > 0 && self.received > 0 && self.bytes + self.largest >= limit
    }

    fn close(mut self, place: Option<OwnedSemaphorePermit>) -> ParsedBatch {
        let bytes = self.byte_size();
        self.held.set(bytes);
        ParsedBatch {
            groups: self.groups.into_groups(),
            copies: self.copies,
            unparsable: self.unparsable,
            next_offset: self.next_offset,
            received: self.received,
            bytes: self.bytes,
            last_timestamp_ms: self.last_timestamp_ms,
            held: self.held,
            _place: place,
        }
    }
}
