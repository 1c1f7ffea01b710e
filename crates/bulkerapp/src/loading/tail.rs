//! The end of a stream topic: events are loaded as they come.
//!
//! A run brings the topic to its end; from there on its tail is followed, as long as this instance owns the topic. What
//! arrived while the last events were loaded is loaded next, together: so single events are visible at once, and
//! many of them cost few transactions. The tail keeps the rules of a run: the row moves in the transaction that
//! carries the events, the topic is still the same after they were read, and a decision of somebody else ends it.
//!
//! A tail that cannot keep up gives the topic back to a run, which reads ahead on a thread of its own.

use std::time::{Duration, Instant};

use kafkabase::TopicMode;
use tracing::debug;

use super::{
    batch_load::group_plan,
    offsets::OffsetsRow,
    reader::{ReadPlan, read_what_is_there},
    run::{RunError, TopicRun},
    start::is_another_topic,
};

/// Events of one load. They are parsed between two waits, so they bound how long others wait for the thread.
const EVENTS_AT_ONCE: u64 = 500;
/// Full loads in a row after which a run is faster.
const FULL_LOADS: u32 = 4;
/// How long Kafka may lag behind the row while the topic is quiet.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Why a tail ended that met no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TailEnd {
    /// A run has to look at everything anew.
    Behind,
    /// Without offsets rows there is nothing to follow from.
    NoRows,
    /// The service stops, or the topic is somebody else's.
    Stopped,
}

/// The tail of one topic, from where its last run ended.
pub(super) struct Tail<'a> {
    pub(super) run: TopicRun<'a>,
}

impl Tail<'_> {
    /// Loads what comes after `from`, the first offset that is not loaded.
    pub(super) async fn follow(&self, from: i64) -> Result<TailEnd, RunError> {
        let TopicRun { context, topic, target, stop } = &self.run;
        debug_assert_eq!(topic.mode, TopicMode::Stream);
        let Some(offsets) = target.offsets().await? else {
            return Ok(TailEnd::NoRows);
        };
        let row = offsets.read(&self.run.key()).await?;
        if row.as_ref().is_some_and(|row| row.next_offset != from) {
            return Ok(TailEnd::Behind);
        }
        let plan = self.plan(from);
        let mut reader = context.tail_fetcher.open(&topic.name, topic.partition, from).await?;
        let arrived = reader.arrived();
        let mut next = from;
        let mut row = row;
        let (mut told_at, mut told, mut full_loads) = (Instant::now(), from, 0);
        loop {
            let Some(batch) = read_what_is_there(&mut reader, &plan, &context.memory, next)? else {
                full_loads = 0;
                tokio::select! {
                    () = stop.cancelled() => return Ok(TailEnd::Stopped),
                    () = arrived.notified() => {}
                    () = tokio::time::sleep(TELL_AFTER) => {
                        if let Some(row) = row.as_ref().filter(|row| row.next_offset > told) {
                            self.run.tell_kafka(&offsets, row).await;
                            (told_at, told) = (Instant::now(), row.next_offset);
                        }
                    }
                }
                continue;
            };
            if stop.is_cancelled() {
                return Ok(TailEnd::Stopped);
            }
            // the first event of a topic: a run makes its row
            let Some(known) = &mut row else {
                return Ok(TailEnd::Behind);
            };
            if told_at.elapsed() >= context.claim_every {
                if self.run.is_unmarked().await? {
                    return Ok(TailEnd::Behind); // somebody decided on an offset
                }
                self.run.tell_kafka(&offsets, known).await;
                (told_at, told) = (Instant::now(), known.next_offset);
            }
            let is_full = batch.received >= EVENTS_AT_ONCE;
            let Some(loaded) = self.load(&offsets, known, batch).await? else {
                return Ok(TailEnd::Behind);
            };
            (next, known.next_offset) = (loaded, loaded);
            topic.set_loaded_to(loaded);
            full_loads = if is_full { full_loads + 1 } else { 0 };
            if full_loads >= FULL_LOADS {
                debug!(topic = topic.name, "tail is behind; a run takes over");
                return Ok(TailEnd::Behind);
            }
        }
    }

    /// `None`: the row is not what it was, or the topic is another one.
    async fn load(
        &self,
        offsets: &super::offsets::Offsets,
        row: &OffsetsRow,
        batch: super::reader::ParsedBatch,
    ) -> Result<Option<i64>, RunError> {
        let TopicRun { context, topic, target, .. } = &self.run;
        // the records may be those of a new topic of this name; so this is asked after they were read
        if is_another_topic(row, context.admin.topic_id(&topic.name).await?) {
            return Ok(None);
        }
        let _slot = target.load_slot().await;
        Ok(self.run.load(offsets, row, batch).await?)
    }

    fn plan(&self, from: i64) -> ReadPlan {
        ReadPlan {
            events: group_plan(self.run.topic, self.run.target),
            start: from,
            end: i64::MAX,
            batch_size: EVENTS_AT_ONCE,
            batch_size_bytes: 0,
            stall_after: self.run.context.stall_after,
        }
    }
}
