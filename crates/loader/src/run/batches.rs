//! The batches of a run: read ahead on a thread of their own, loaded one after another.

use std::time::Instant;

use appbase::telemetry::chain;
use kafkabase::CommittedOffset;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use warehouse::{Fault, LoadError, Position};

use super::{
    Attempt, Keeper, TopicRun,
    error::{RunEnd, RunError},
};
use crate::{
    batch::{
        load::{BatchError, BatchLoad, group_plan},
        poison::{Blame, NextStep, Refusal},
        reader::{ParsedBatch, ReadError, ReadPlan, read_batches},
    },
    observe::metrics,
    protocol::start::is_another_topic,
};

/// What became of a batch.
pub(super) enum Step {
    Loaded {
        next_offset: i64,
    },
    /// The position is not what it was, or may not be.
    Moved,
    /// A poison event is looked for, by starting over with a smaller batch.
    Search,
}

impl TopicRun<'_> {
    /// Loads batch after batch, from the position to `end`.
    pub(super) async fn load_all(
        &self,
        keeper: Keeper<'_>,
        mut position: Position,
        end: i64,
    ) -> Result<Attempt, RunError> {
        let mut batches = self.read(position.next_offset, end).await?;
        let mut claimed_at = Instant::now();
        while let Some(batch) = batches.recv().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    self.end_of_batches(keeper, &position).await;
                    return Err(error.into());
                }
            };
            if self.stop.is_cancelled() {
                break; // between batches: nothing is half done
            }
            let topic_id = self.group().topic_id().await?;
            if is_another_topic(&position, topic_id) {
                return Ok(Attempt::StartOver); // the records may be those of the new topic
            }
            if let Keeper::Ledger(ledger) = keeper
                && claimed_at.elapsed() >= self.context.claim_every
            {
                if self.is_to_start_over().await? {
                    return Ok(Attempt::StartOver);
                }
                self.copy_to_group(ledger, &position).await;
                claimed_at = Instant::now();
            }
            let next_offset = match self.load(keeper, &position, batch).await? {
                Step::Loaded { next_offset } => next_offset,
                Step::Moved => return Ok(Attempt::StartOver),
                Step::Search => return Ok(Attempt::Search),
            };
            position.next_offset = next_offset;
            self.progress.set_loaded_to(next_offset);
            if let Keeper::Group = keeper {
                self.commit_plainly(next_offset).await?;
            }
        }
        self.end_of_batches(keeper, &position).await;
        if position.next_offset < end && !self.stop.is_cancelled() {
            return Err(RunError::ReaderDied);
        }
        self.progress.memory().poison.end();
        Ok(Attempt::Ended(RunEnd::At { next_offset: position.next_offset }))
    }

    /// Loads one batch.
    pub(super) async fn load(
        &self,
        keeper: Keeper<'_>,
        position: &Position,
        mut batch: ParsedBatch,
    ) -> Result<Step, BatchError> {
        let (next_offset, received) = (batch.next_offset, batch.received);
        batch.refusal = self.progress.memory().poison.take(position.next_offset, received);
        let ledger = match keeper {
            Keeper::Ledger(ledger) => Some(ledger),
            Keeper::Group => None,
        };
        let key = self.key();
        let load = BatchLoad {
            topic: self.topic,
            progress: self.progress,
            target: self.target,
            refused: &self.context.refused,
            reporter: &self.context.reporter,
            key: &key,
            ledger,
            position,
        };
        match load.load(batch).await {
            Ok(loaded) => {
                let rows = loaded.report.counts.loaded;
                self.progress.memory().poison.loaded(received, rows);
                debug!(
                    topic = self.topic.name,
                    next_offset, received, "batch loaded, row moved with it"
                );
                Ok(Step::Loaded { next_offset })
            }
            Err(BatchError::Warehouse(LoadError::Fenced)) => {
                self.progress.set_fenced();
                metrics::count_fenced(self.topic);
                warn!(
                    topic = self.topic.name,
                    "offsets row moved by another loader; starting over. Again and again: two instances have the \
                     same INSTANCE_INDEX"
                );
                Ok(Step::Moved)
            }
            Err(BatchError::Warehouse(error @ LoadError::CommitUnknown { .. })) => {
                let Some(ledger) = ledger else {
                    return Err(self.failed(received, error.into()));
                };
                warn!(
                    topic = self.topic.name,
                    error = %chain(&error),
                    "answer to COMMIT lost; asking the offsets row"
                );
                let settled = ledger.read_settled(&key).await?;
                let committed = settled.is_some_and(|settled| settled.next_offset == next_offset);
                info!(topic = self.topic.name, committed, "offsets row read after a lost COMMIT");
                Ok(Step::Moved)
            }
            Err(BatchError::Warehouse(error)) => {
                self.search(position.next_offset, received, error).map(|()| Step::Search)
            }
            Err(error) => Err(self.failed(received, error)),
        }
    }

    /// Looks for the event that a failed batch is to be blamed on; the error, where none is.
    fn search(&self, from: i64, received: u64, error: LoadError) -> Result<(), BatchError> {
        let Some(blame) = blame(&error) else {
            return Err(self.failed(received, error.into()));
        };
        let reason = chain(&error).to_string();
        let code = error.server_error().map_or("refused", |error| &error.sqlstate).to_owned();
        let refusal = Refusal { code, reason };
        match self.progress.memory().poison.failed(from, received, blame, refusal) {
            NextStep::Fail => {}
            NextStep::StartOver => {
                info!(
                    topic = self.topic.name,
                    from,
                    received,
                    error = %error,
                    "batch not taken; looking for the event that it is to be blamed on"
                );
                return Ok(());
            }
        }
        Err(self.failed(received, error.into()))
    }

    /// Takes note of a batch that is to be tried again.
    fn failed(&self, received: u64, error: BatchError) -> BatchError {
        metrics::count_failed_batch(self.topic, received);
        self.context.reporter.failed(self.topic, self.progress, received, error.reason());
        error
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
            batch_size: self.target.batch_size,
            limit: self.progress.memory().poison.limit(),
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

    /// No batch follows: Kafka is brought to the position, which it may lag behind.
    async fn end_of_batches(&self, keeper: Keeper<'_>, position: &Position) {
        if let Keeper::Ledger(ledger) = keeper {
            self.copy_to_group(ledger, position).await;
        }
    }

    /// Without a ledger the group's offset is the position, and has to be committed. It carries no
    /// mark.
    async fn commit_plainly(&self, next_offset: i64) -> Result<(), RunError> {
        let offset = CommittedOffset { offset: next_offset, metadata: String::new() };
        self.group().commit(offset).await?;
        Ok(())
    }
}

/// What a failure says of the batch; `None`: nothing, it is the environment's.
fn blame(error: &LoadError) -> Option<Blame> {
    match error.fault() {
        _ if error.is_too_slow() => Some(Blame::Size),
        Fault::Event => Some(Blame::Event),
        Fault::Unknown => Some(Blame::Unknown),
        Fault::Environment => None,
    }
}
