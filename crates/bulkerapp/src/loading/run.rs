//! A run over one topic: from where the database stands to the end that the topic had when the run began.
//!
//! Invariant: the offsets row moves in the transaction that carries the rows of the table, and nowhere
//! else but by a compare-and-set that raises its epoch. Everything told to Kafka is a copy of the row and
//! may be late. So a crash, a lost answer or a second loader at any point leads to a fresh start at the
//! row, and every record is in the table exactly once.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kafkabase::{Admin, AdminError, Fetcher, OffsetSpec, OpenError, Unconfirmed};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use warehouse::LoadError;

use super::{
    batch_load::{BatchLoad, group_plan},
    mark::{Group, Mark},
    memory::MemoryBudget,
    metrics,
    offsets::{Offsets, OffsetsRow, RowKey},
    parking::{ParkError, Parking},
    pauses::Pauses,
    reader::{ParsedBatch, ReadError, ReadPlan, read_batches},
    reporter::Reporter,
    start::{Decision, Facts, HoldReason, Notice, decide, is_another_topic},
    target::{LoadTarget, OwnedTopic, Suspicion},
};

/// How often a run starts over in a row before it gives the topic back to the schedule.
pub(super) const MAX_STARTS: usize = 8;

/// What all runs share.
#[derive(Clone)]
pub(super) struct RunContext {
    pub(super) admin: Admin,
    /// Reads topics up to the end that they had.
    pub(super) fetcher: Arc<Fetcher>,
    /// Reads what is appended to stream topics.
    pub(super) tail_fetcher: Arc<Fetcher>,
    pub(super) cluster_id: String,
    pub(super) memory: MemoryBudget,
    /// The way out for refused events.
    pub(super) parking: Arc<Parking>,
    pub(super) reporter: Arc<Reporter>,
    /// How often a long run repeats its claim.
    pub(super) claim_every: Duration,
    /// How long nothing may arrive before a read counts as stuck.
    pub(super) stall_after: Duration,
    /// Records of a retry topic that are moved at a time.
    pub(super) retry_batch_size: usize,
    pub(super) topic_prefix: String,
    pub(super) pauses: Arc<Pauses>,
}

/// Where a run left its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// Loaded up to this offset, the first that is not loaded yet.
    At { next_offset: i64 },
    /// Nothing was loaded, and why.
    Held(HoldReason),
}

/// Why a run ended early. What it loaded before stays loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("Kafka did not answer")]
    Kafka(#[from] AdminError),
    #[error("Kafka refused to hand out the partition")]
    Assign(#[from] OpenError),
    #[error("reading the topic failed")]
    Read(#[from] ReadError),
    #[error("the warehouse did not take the batch")]
    Load(#[from] LoadError),
    #[error("refused events cannot be moved")]
    Move(#[from] Unconfirmed),
    #[error("refused events cannot be parked")]
    Park(#[from] ParkError),
    #[error("the run did not move for too long and was ended where it stood")]
    Aborted,
    #[error("the run panicked")]
    Panicked,
    #[error("the reading thread ended before its end")]
    ReaderDied,
    #[error("the offsets row kept moving: another loader is at work")]
    Contended,
}

impl RunError {
    /// The label of the error in `bulkerapp_consumer_error`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            RunError::Kafka(_) => "kafka error",
            RunError::Assign(_) => "assignment_error",
            RunError::Read(error) if error.is_stalled() => "stalled",
            RunError::Read(_) | RunError::ReaderDied => "consumer_error",
            RunError::Move(_) | RunError::Park(_) => "retry_topic_error",
            RunError::Load(LoadError::Tls { .. }) => "warehouse_tls",
            RunError::Load(error) if error.is_permission_denied() => "warehouse_permission_denied",
            RunError::Load(error) if error.is_retriable() => "warehouse_unavailable",
            RunError::Load(LoadError::Config(_)) => "warehouse_misconfigured",
            RunError::Load(_) => "bulker_stream_error",
            RunError::Contended => "contended",
            RunError::Aborted => "aborted",
            RunError::Panicked => "panic",
        }
    }
}

/// How one attempt of a run ended.
enum Attempt {
    Ended(RunEnd),
    /// Somebody moved the row: look at everything anew.
    StartOver,
}

/// One run over one topic.
pub(super) struct TopicRun<'a> {
    pub(super) context: &'a RunContext,
    pub(super) topic: &'a Arc<OwnedTopic>,
    pub(super) target: &'a LoadTarget,
    pub(super) stop: &'a CancellationToken,
}

impl TopicRun<'_> {
    /// Runs to the topic's end. Between batches it looks at `stop`.
    pub(super) async fn run(&self) -> Result<RunEnd, RunError> {
        for _ in 0..MAX_STARTS {
            if let Attempt::Ended(end) = self.attempt().await? {
                return Ok(end);
            }
        }
        Err(RunError::Contended)
    }

    async fn attempt(&self) -> Result<Attempt, RunError> {
        let (admin, topic) = (&self.context.admin, self.topic.name.as_str());
        if admin.group_members(topic).await? > 0 {
            return Ok(Attempt::Ended(RunEnd::Held(HoldReason::LiveMembers)));
        }
        let Some(offsets) = self.target.offsets().await? else {
            return self.run_at_least_once().await;
        };
        let key = self.key();
        // the order of these reads is part of the protocol; see `start`
        let row = offsets.read(&key).await?;
        // without a row nothing says which topic an offset of the group is of, so the topic must be the same afterwards
        let earlier_id = match row {
            None => admin.topic_id(topic).await?,
            Some(_) => None,
        };
        let group = Group::from(admin.group_offset(topic, topic, self.topic.partition).await?);
        let end = admin.offset(topic, self.topic.partition, OffsetSpec::CommittedEnd).await?;
        self.topic.set_end(end);
        let topic_id = admin.topic_id(topic).await?;
        if row.is_none() && earlier_id != topic_id {
            return Ok(Attempt::StartOver);
        }
        let low = admin.offset(topic, self.topic.partition, OffsetSpec::Earliest).await?;
        let ledger = offsets.ledger();
        let facts = Facts { row, group, low, end, topic_id, ledger };

        let Some(row) = self.settle_row(&offsets, &facts).await? else {
            return Ok(Attempt::StartOver);
        };
        let row = match row {
            Settled::Row(row) => row,
            Settled::Idle { next_offset } => {
                if facts.group == Group::None {
                    self.topic.set_told(next_offset); // there is nothing to tell
                }
                return Ok(Attempt::Ended(RunEnd::At { next_offset }));
            }
            Settled::Held(reason) => return Ok(Attempt::Ended(RunEnd::Held(reason))),
        };
        let Some(row) = self.step_over_gap(&offsets, row, low).await? else {
            return Ok(Attempt::StartOver);
        };
        let is_ours = matches!(&facts.group, Group::Marked(mark) if mark.ledger == ledger);
        let is_idle = row.next_offset >= end;
        let is_told = facts.group == Group::Marked(self.mark(&offsets, &row));
        // a mark of ours that lags behind the row is a late commit and needs no claim; but the first read of
        // an ownership always proves that the group is free, and what a crash left untold is told, so that the
        // next clean stop leaves Kafka up to date
        let needs_no_claim = self.topic.is_claimed() || (is_idle && is_told);
        if !is_ours || !needs_no_claim {
            if let Err(error) = self.commit_mark(&offsets, &row).await {
                warn!(topic, error = %error, "claim of the start failed");
                return Ok(Attempt::Ended(RunEnd::Held(match error.is_live_members() {
                    true => HoldReason::LiveMembers,
                    false => HoldReason::ClaimNotAcknowledged,
                })));
            }
            self.topic.set_claimed();
        }
        if is_told {
            self.topic.set_told(row.next_offset);
        }
        if is_idle {
            return Ok(Attempt::Ended(RunEnd::At { next_offset: row.next_offset }));
        }
        self.load_all(&offsets, row, end).await
    }

    /// Retention may have cut records that were not loaded yet: counts them once and goes on at what is
    /// left. `None`: somebody else moved the row.
    async fn step_over_gap(
        &self,
        offsets: &Offsets,
        row: OffsetsRow,
        low: i64,
    ) -> Result<Option<OffsetsRow>, LoadError> {
        if low <= row.next_offset {
            return Ok(Some(row));
        }
        let moved = OffsetsRow { next_offset: low, epoch: epoch_after(row.epoch), ..row.clone() };
        if !offsets.move_row(&self.key(), &row, &moved, false).await? {
            return Ok(None);
        }
        self.report(Some(Notice::Expired { events: low - row.next_offset }));
        Ok(Some(moved))
    }

    /// Brings the row to where the facts say that it belongs. `None`: somebody else was faster.
    async fn settle_row(
        &self,
        offsets: &Offsets,
        facts: &Facts,
    ) -> Result<Option<Settled>, LoadError> {
        let key = self.key();
        match (decide(facts), &facts.row) {
            (Decision::Hold(reason), _) => Ok(Some(Settled::Held(reason))),
            (Decision::Keep { notice }, Some(row)) => {
                self.report(notice);
                Ok(Some(Settled::Row(row.clone())))
            }
            (Decision::Move { to, forget_origins, notice }, Some(row)) => {
                let moved = OffsetsRow {
                    next_offset: to,
                    epoch: epoch_after(row.epoch),
                    began: row.began.min(to),
                    topic_id: facts.topic_id.or(row.topic_id),
                };
                if !offsets.move_row(&key, row, &moved, forget_origins).await? {
                    return Ok(None);
                }
                self.report(Some(notice));
                Ok(Some(Settled::Row(moved)))
            }
            (Decision::Insert { at, notice }, None) => {
                if at.max(facts.low) >= facts.end {
                    return Ok(Some(Settled::Idle { next_offset: at }));
                }
                let row = OffsetsRow {
                    next_offset: at,
                    epoch: epoch_after(0),
                    began: at,
                    topic_id: facts.topic_id,
                };
                if !offsets.insert(&key, &row).await? {
                    return Ok(None);
                }
                self.report(notice);
                Ok(Some(Settled::Row(row)))
            }
            (Decision::Keep { .. } | Decision::Move { .. }, None)
            | (Decision::Insert { .. }, Some(_)) => {
                unreachable!("`decide` inserts where there is no row and only there")
            }
        }
    }

    /// Loads batch after batch, from the row to `end`.
    async fn load_all(
        &self,
        offsets: &Offsets,
        mut row: OffsetsRow,
        end: i64,
    ) -> Result<Attempt, RunError> {
        let mut batches = self.read(row.next_offset, end).await?;
        let mut claimed_at = Instant::now();
        while let Some(batch) = batches.recv().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    self.tell_kafka(offsets, &row).await;
                    return Err(error.into());
                }
            };
            if self.stop.is_cancelled() {
                break; // between batches: nothing is half done
            }
            let topic_id = self.context.admin.topic_id(&self.topic.name).await?;
            if is_another_topic(&row, topic_id) {
                return Ok(Attempt::StartOver); // the records may be those of the new topic
            }
            if claimed_at.elapsed() >= self.context.claim_every {
                if self.is_unmarked().await? {
                    return Ok(Attempt::StartOver); // somebody decided on an offset
                }
                self.tell_kafka(offsets, &row).await;
                claimed_at = Instant::now();
            }
            match self.load(offsets, &row, batch).await? {
                Some(next_offset) => {
                    row.next_offset = next_offset;
                    self.topic.set_loaded_to(next_offset);
                }
                None => return Ok(Attempt::StartOver),
            }
        }
        self.tell_kafka(offsets, &row).await;
        if row.next_offset < end && !self.stop.is_cancelled() {
            return Err(RunError::ReaderDied);
        }
        self.suspicion().batch_size = None; // whatever it was, it is gone
        Ok(Attempt::Ended(RunEnd::At { next_offset: row.next_offset }))
    }

    /// Loads one batch under its checkpoint. `None`: the row is not what it was, or may not be.
    pub(super) async fn load(
        &self,
        offsets: &Offsets,
        row: &OffsetsRow,
        mut batch: ParsedBatch,
    ) -> Result<Option<i64>, LoadError> {
        let (next_offset, received) = (batch.next_offset, batch.received);
        if let Some(reason) = self.suspicion().take(row.next_offset, received) {
            batch.refuse(&reason);
        }
        let key = self.key();
        match self.batch_load(&key).load(offsets, row, batch).await {
            Ok(_) => {
                debug!(
                    topic = self.topic.name,
                    next_offset, received, "batch loaded, row moved with it"
                );
                Ok(Some(next_offset))
            }
            Err(LoadError::CheckpointMoved) => {
                self.topic.set_overtaken();
                warn!(
                    topic = self.topic.name,
                    "offsets row moved by another loader; starting over. Again and again: two instances have the \
                     same INSTANCE_INDEX"
                );
                Ok(None)
            }
            Err(error @ LoadError::CommitUnknown { .. }) => {
                warn!(
                    topic = self.topic.name,
                    error = %appbase::telemetry::chain(&error),
                    "answer to COMMIT lost; asking the offsets row"
                );
                let settled = offsets.read_settled(&key).await?;
                let committed = settled.is_some_and(|settled| settled.next_offset == next_offset);
                info!(topic = self.topic.name, committed, "offsets row read after a lost COMMIT");
                Ok(None)
            }
            Err(error) if error.may_be_one_events_fault() => {
                let reason = appbase::telemetry::chain(&error).to_string();
                info!(
                    topic = self.topic.name,
                    received,
                    error = reason,
                    "table cannot be changed as the batch asks for; looking for the event that does"
                );
                self.suspicion().failed(row.next_offset, received, reason);
                Ok(None)
            }
            Err(error) => {
                metrics::count_failed_batch(self.topic, received);
                self.context.reporter.failed(self.topic, received, &error);
                Err(error)
            }
        }
    }

    /// Starts the reading thread. Dropping the receiver ends it.
    async fn read(
        &self,
        start: i64,
        end: i64,
    ) -> Result<mpsc::Receiver<Result<ParsedBatch, ReadError>>, RunError> {
        let reader =
            self.context.fetcher.open(&self.topic.name, self.topic.partition, start).await?;
        let plan = ReadPlan {
            events: group_plan(self.topic, self.target),
            start,
            end,
            batch_size: self.suspicion().batch_size.unwrap_or(self.target.batch_size),
            batch_size_bytes: self.target.batch_size_bytes,
            stall_after: self.context.stall_after,
        };
        let (sender, receiver) = mpsc::channel(1);
        let (memory, stop) = (self.context.memory.clone(), self.stop.clone());
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            read_batches(reader, &plan, &memory, &stop, &sender, &runtime);
        });
        Ok(receiver)
    }

    /// Without the right to keep offsets rows: the group's offset rules, and what lies between a load and its
    /// commit may be loaded twice.
    async fn run_at_least_once(&self) -> Result<Attempt, RunError> {
        let (admin, topic) = (&self.context.admin, self.topic.name.as_str());
        let partition = self.topic.partition;
        let committed = admin.group_offset(topic, topic, partition).await?;
        let end = admin.offset(topic, partition, OffsetSpec::CommittedEnd).await?;
        self.topic.set_end(end);
        let low = admin.offset(topic, partition, OffsetSpec::Earliest).await?;
        let mut next = committed.map_or(low, |committed| committed.offset.max(low));
        if next > end {
            return Ok(Attempt::Ended(RunEnd::Held(HoldReason::Truncated)));
        }
        if next == end {
            return Ok(Attempt::Ended(RunEnd::At { next_offset: next }));
        }
        let mut batches = self.read(next, end).await?;
        while let Some(batch) = batches.recv().await {
            let batch = batch?;
            if self.stop.is_cancelled() {
                break;
            }
            let next_offset = batch.next_offset;
            self.batch_load(&self.key()).load_at_least_once(batch).await?;
            let loaded = kafkabase::GroupOffset { offset: next_offset, metadata: String::new() };
            admin.set_group_offset(topic, topic, partition, loaded).await?;
            next = next_offset;
        }
        Ok(Attempt::Ended(RunEnd::At { next_offset: next }))
    }

    /// Copies the row to Kafka unless somebody decided otherwise there. May fail: the row rules.
    pub(super) async fn tell_kafka(&self, offsets: &Offsets, row: &OffsetsRow) {
        let told = match self.is_unmarked().await {
            Ok(true) => return, // a decision for the next run
            Ok(false) => self.commit_mark(offsets, row).await,
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            info!(topic = self.topic.name, error = %error, "offset not told to Kafka; the row rules");
        }
    }

    pub(super) async fn is_unmarked(&self) -> Result<bool, AdminError> {
        let topic = self.topic.name.as_str();
        let committed = self.context.admin.group_offset(topic, topic, self.topic.partition).await?;
        Ok(matches!(Group::from(committed), Group::Unmarked(_)))
    }

    async fn commit_mark(&self, offsets: &Offsets, row: &OffsetsRow) -> Result<(), AdminError> {
        self.commit(&self.mark(offsets, row)).await?;
        self.topic.set_told(row.next_offset);
        Ok(())
    }

    pub(super) async fn commit(&self, mark: &Mark) -> Result<(), AdminError> {
        let (topic, partition) = (self.topic.name.as_str(), self.topic.partition);
        self.context.admin.set_group_offset(topic, topic, partition, mark.to_group_offset()).await
    }

    pub(super) fn mark(&self, offsets: &Offsets, row: &OffsetsRow) -> Mark {
        Mark {
            ledger: offsets.ledger(),
            epoch: row.epoch,
            offset: row.next_offset,
            began: row.began,
        }
    }

    fn suspicion(&self) -> MutexGuard<'_, Suspicion> {
        self.topic.suspicion.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn batch_load<'b>(&'b self, key: &'b RowKey) -> BatchLoad<'b> {
        let RunContext { parking, reporter, .. } = self.context;
        BatchLoad { topic: self.topic, target: self.target, parking, reporter, key }
    }

    pub(super) fn key(&self) -> RowKey {
        RowKey {
            cluster_id: self.context.cluster_id.clone(),
            topic: self.topic.name.clone(),
            partition: self.topic.partition,
        }
    }

    fn report(&self, notice: Option<Notice>) {
        let Some(notice) = notice else {
            return;
        };
        metrics::count_notice(self.topic, notice);
        warn!(
            topic = self.topic.name,
            notice = notice.kind(),
            events = notice.events(),
            "start of the topic decided from outside"
        );
    }
}

/// An epoch that no row of this topic ever had: a database may be restored from before a move, and an epoch that came
/// again would make two different decisions look like one.
pub(super) fn epoch_after(epoch: i64) -> i64 {
    let micros = jiff::Timestamp::now().as_microsecond();
    micros.max(epoch + 1)
}

/// The row once the facts have been obeyed.
enum Settled {
    Row(OffsetsRow),
    /// No row yet, and nothing to load: an idle topic is not touched.
    Idle {
        next_offset: i64,
    },
    Held(HoldReason),
}
