//! The end of a stream topic: events are loaded as they come.
//!
//! A run brings the topic to its end; from there on its tail is followed, as long as this instance
//! owns the topic. What arrived while the last events were loaded is loaded next, together: so
//! single events are visible at once, and many of them cost few transactions. The tail keeps the
//! rules of a run: the position moves in the transaction that carries the events, the topic is
//! still the same after they were read, and a decision of an operator ends it, also on a topic that
//! is quiet: the position is compared with all others of its destination now and then, and the group
//! is looked at.
//!
//! A tail that cannot keep up gives the topic back to a run, which reads ahead on a thread of its
//! own.

use std::time::{Duration, Instant};

use kafkabase::{PartitionReader, TopicMode};
use tracing::debug;
use warehouse::{Ledger, Position};

use super::{Keeper, TopicRun, batches::Step, error::RunError};
use crate::{
    batch::{
        load::group_plan,
        reader::{ParsedBatch, ReadPlan, read_what_is_there},
    },
    protocol::start::is_another_topic,
};

/// Events of one load. They are parsed between two waits, so they bound how long others wait for
/// the thread.
const EVENTS_AT_ONCE: u64 = 500;
/// Full loads in a row after which a run is faster.
const FULL_LOADS: u32 = 4;
/// Loads that take longer keep nothing of what comes after them in memory: a database that hangs
/// stops the tails of all of its topics at once.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
/// The same while others load: their turns are short, or many tails wait.
const WAIT_BEFORE_PAUSE: Duration = Duration::from_millis(100);
/// How long a tail that was paused may wait, in its turn, for what it had let go of.
const FETCH_AGAIN: Duration = Duration::from_secs(2);
/// How long Kafka may lag behind the position while the topic is quiet.
const COMMIT_AFTER: Duration = Duration::from_secs(5);

/// Why a tail ended that met no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TailEnd {
    /// A run has to look at everything anew.
    Behind,
    /// Without a ledger there is nothing to follow from.
    NoLedger,
    /// The service stops, or the topic is another instance's.
    Stopped,
}

/// The tail of one topic, from where its last run ended.
pub(crate) struct Tail<'a> {
    pub(crate) run: TopicRun<'a>,
}

impl Tail<'_> {
    /// Loads what comes after `from`, the first offset that is not loaded.
    pub(crate) async fn follow(&self, from: i64) -> Result<TailEnd, RunError> {
        let TopicRun { context, topic, progress, target, stop } = self.run;
        debug_assert_eq!(topic.mode, TopicMode::Stream);
        let Some(ledger) = target.ledger().await? else {
            return Ok(TailEnd::NoLedger);
        };
        let mut position = ledger.read(&self.run.key()).await?;
        if position.as_ref().is_some_and(|position| position.next_offset != from) {
            return Ok(TailEnd::Behind);
        }
        let plan = self.plan(from);
        let mut reader = context.tail_fetcher.open(&topic.name, topic.partition, from).await?;
        let arrived = reader.arrived();
        let mut next = from;
        let (mut committed_at, mut committed, mut full_loads) = (Instant::now(), from, 0);
        let mut looked_at = Instant::now();
        progress.set_epoch(position.as_ref().map(|position| position.epoch));
        loop {
            // before anything is read: what waits for its turn lies in Kafka and not in memory
            let (permit, was_paused) = tokio::select! {
                () = stop.cancelled() => return Ok(TailEnd::Stopped),
                waited = paused_meanwhile(&mut reader, WAIT_BEFORE_PAUSE, target.tail_permit()) => waited,
            };
            let mut batch = read_what_is_there(&mut reader, &plan, &context.memory, next)?;
            // what was let go of is on its way again: whoever comes next waits in Kafka, too
            let deadline = tokio::time::Instant::now() + FETCH_AGAIN;
            while was_paused && batch.is_none() && tokio::time::Instant::now() < deadline {
                let arrived = arrived.notified();
                let _ = tokio::time::timeout_at(deadline, arrived).await; // there may be nothing
                batch = read_what_is_there(&mut reader, &plan, &context.memory, next)?;
            }
            let Some(batch) = batch else {
                drop(permit);
                full_loads = 0;
                tokio::select! {
                    () = stop.cancelled() => return Ok(TailEnd::Stopped),
                    () = arrived.notified() => {}
                    () = progress.moved_elsewhere().notified() => return Ok(TailEnd::Behind),
                    () = tokio::time::sleep(COMMIT_AFTER) => {
                        if looked_at.elapsed() >= context.claim_every {
                            if self.run.is_to_start_over().await? {
                                return Ok(TailEnd::Behind);
                            }
                            looked_at = Instant::now();
                        }
                        let ahead = |position: &&Position| position.next_offset > committed;
                        if let Some(position) = position.as_ref().filter(ahead) {
                            self.run.copy_to_group(&ledger, position).await;
                            (committed_at, committed) = (Instant::now(), position.next_offset);
                        }
                    }
                }
                continue;
            };
            if stop.is_cancelled() {
                return Ok(TailEnd::Stopped);
            }
            // the first event of a topic: a run makes its position
            let Some(known) = &mut position else {
                return Ok(TailEnd::Behind);
            };
            if committed_at.elapsed() >= context.claim_every {
                if self.run.is_to_start_over().await? {
                    return Ok(TailEnd::Behind);
                }
                looked_at = Instant::now();
                self.run.copy_to_group(&ledger, known).await;
                (committed_at, committed) = (Instant::now(), known.next_offset);
            }
            let is_full = batch.received >= EVENTS_AT_ONCE;
            let load = self.load(&ledger, known, batch);
            let (loaded, _) = paused_meanwhile(&mut reader, PAUSE_AFTER, load).await;
            let Some(loaded) = loaded? else {
                return Ok(TailEnd::Behind);
            };
            drop(permit);
            (next, known.next_offset) = (loaded, loaded);
            progress.set_loaded_to(loaded);
            full_loads = if is_full { full_loads + 1 } else { 0 };
            if full_loads >= FULL_LOADS {
                debug!(topic = topic.name, "tail is behind; a run takes over");
                return Ok(TailEnd::Behind);
            }
        }
    }

    /// `None`: the position is not what it was, or the topic is another one.
    async fn load(
        &self,
        ledger: &Ledger,
        position: &Position,
        batch: ParsedBatch,
    ) -> Result<Option<i64>, RunError> {
        // the records may be those of a new topic of this name; so this is asked after they were
        // read
        if is_another_topic(position, self.run.group().topic_id().await?) {
            return Ok(None);
        }
        match self.run.load(Keeper::Ledger(ledger), position, batch).await? {
            Step::Loaded { next_offset } => Ok(Some(next_offset)),
            Step::Moved | Step::Search => Ok(None),
        }
    }

    fn plan(&self, from: i64) -> ReadPlan {
        ReadPlan {
            events: group_plan(self.run.topic, self.run.target),
            start: from,
            end: i64::MAX,
            batch_size: EVENTS_AT_ONCE,
            limit: self.run.progress.memory().poison.limit(),
            batch_size_bytes: 0,
            stall_after: self.run.context.stall_after,
        }
    }
}

/// Waits, and keeps nothing in memory of what comes next if that takes longer than `patience`. The
/// answer, and whether it did.
async fn paused_meanwhile<T>(
    reader: &mut PartitionReader,
    patience: Duration,
    work: impl Future<Output = T>,
) -> (T, bool) {
    tokio::pin!(work);
    let mut was_paused = false;
    loop {
        tokio::select! {
            done = &mut work => return (done, was_paused),
            // again and again: an answer may have been on its way
            () = tokio::time::sleep(patience) => {
                reader.pause();
                was_paused = true;
            }
        }
    }
}
