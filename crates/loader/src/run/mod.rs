//! A run over one topic: from where the ledger stands to the end that the topic had when the run
//! began.
//!
//! Invariant: the position moves in the transaction that carries the rows of the table, and nowhere
//! else but by a compare-and-set that raises its epoch. What is committed to Kafka's group is a
//! copy of the position and may be late. So a crash, a lost answer or a second loader at any point
//! leads to a fresh start at the position, and every record is in the table exactly once.
//!
//! Where there never was a right to keep a ledger the group's offset is the position; what lies
//! between a load and its commit may be loaded twice. Everything else is the same. A right that is
//! lost holds the topic: what was promised is not weakened in silence.

mod batches;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod group;
pub(crate) mod hand_over;
pub(crate) mod set_start;
mod settle;
pub(crate) mod switchover;
pub(crate) mod tail;

use kafkabase::TopicGroup;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use warehouse::{Ledger, PartitionKey, Position};

use self::{
    context::RunContext,
    error::{RunEnd, RunError},
    group::{LiveFacts, PositionSource},
    settle::Settled,
};
use crate::{
    progress::TopicProgress,
    protocol::{
        facts::Facts,
        mark::{GroupOffset, Mark},
        start::{HoldReason, decide_by_group},
    },
    target::LoadTarget,
    topic::OwnedTopic,
};

/// How often a run starts over in a row before it gives the topic back to the schedule.
const MAX_STARTS: usize = 8;

/// One run over one topic.
#[derive(Clone, Copy)]
pub(crate) struct TopicRun<'a> {
    pub(crate) context: &'a RunContext,
    pub(crate) topic: &'a OwnedTopic,
    pub(crate) progress: &'a TopicProgress,
    pub(crate) target: &'a LoadTarget,
    pub(crate) stop: &'a CancellationToken,
}

/// Where the topic's position is kept.
#[derive(Clone, Copy)]
pub(crate) enum Keeper<'a> {
    Ledger(&'a Ledger),
    /// In Kafka's group alone.
    Group,
}

/// How one attempt of a run ended.
enum Attempt {
    Ended(RunEnd),
    /// Another loader, or an operator, moved the position: look at everything anew.
    StartOver,
    /// A batch failed for what one of its events asks for: look at smaller ones.
    Search,
}

impl TopicRun<'_> {
    /// Runs to the topic's end. Between batches it looks at `stop`. Dropped half way, the batch in
    /// hand is rolled back.
    pub(crate) async fn run(&self) -> Result<RunEnd, RunError> {
        let mut starts = 0;
        while starts < MAX_STARTS {
            match self.attempt().await? {
                Attempt::Ended(end) => return Ok(end),
                Attempt::StartOver => starts += 1,
                Attempt::Search => starts = 0, // it ends by itself: batches get smaller
            }
        }
        Err(RunError::Contended)
    }

    async fn attempt(&self) -> Result<Attempt, RunError> {
        if self.group().members().await? > 0 {
            return Ok(Attempt::Ended(RunEnd::Held(HoldReason::LiveMembers)));
        }
        match self.target.ledger().await? {
            Some(ledger) => self.attempt_by_ledger(&ledger).await,
            None => self.attempt_by_group().await,
        }
    }

    async fn attempt_by_ledger(&self, ledger: &Ledger) -> Result<Attempt, RunError> {
        let key = self.key();
        let source =
            LiveFacts { group: self.group(), position: PositionSource::Ledger(ledger, &key) };
        let Some(facts) = Facts::read(&source, ledger.id()).await? else {
            return Ok(Attempt::StartOver);
        };
        self.progress.set_end(facts.end);
        let position = match self.settle(ledger, &facts).await? {
            Settled::At(position) => position,
            Settled::Idle { next_offset } => {
                if facts.group == GroupOffset::None {
                    self.progress.set_group_offset(next_offset); // there is nothing to commit
                }
                return Ok(Attempt::Ended(RunEnd::At { next_offset }));
            }
            Settled::Held(reason) => return Ok(Attempt::Ended(RunEnd::Held(reason))),
            Settled::Moved => return Ok(Attempt::StartOver),
        };
        let Some(position) = self.step_over_gap(ledger, position, facts.low).await? else {
            return Ok(Attempt::StartOver);
        };
        if let Some(held) = self.claim(ledger, &facts, &position).await {
            return Ok(Attempt::Ended(RunEnd::Held(held)));
        }
        if position.next_offset >= facts.end {
            return Ok(Attempt::Ended(RunEnd::At { next_offset: position.next_offset }));
        }
        self.load_all(Keeper::Ledger(ledger), position, facts.end).await
    }

    /// Commits the start to the group with our mark, where that is needed. The answer: why nothing
    /// may be loaded.
    async fn claim(
        &self,
        ledger: &Ledger,
        facts: &Facts,
        position: &Position,
    ) -> Option<HoldReason> {
        let is_ours =
            matches!(&facts.group, GroupOffset::Marked(mark) if mark.ledger == ledger.id());
        let is_idle = position.next_offset >= facts.end;
        let mark = Mark::of(ledger.id(), position);
        let is_current = facts.group == GroupOffset::Marked(mark.clone());
        // a mark of ours that lags behind the position is a late commit and needs no claim; but the
        // first read of an ownership always proves that the group is free, and what a crash left
        // uncommitted is committed, so that the next clean stop leaves Kafka up to date
        let needs_no_claim = self.progress.memory().is_claimed || (is_idle && is_current);
        if !is_ours || !needs_no_claim {
            if let Err(error) = self.commit_group_offset(&mark).await {
                warn!(topic = self.topic.name, error = %error, "claim of the start failed");
                return Some(match error.is_live_members() {
                    true => HoldReason::LiveMembers,
                    false => HoldReason::ClaimNotAcknowledged,
                });
            }
            self.progress.memory().is_claimed = true;
        }
        if is_current {
            self.progress.set_group_offset(position.next_offset);
        }
        None
    }

    /// Without the right to keep a ledger: the group's offset rules.
    async fn attempt_by_group(&self) -> Result<Attempt, RunError> {
        let group = self.group();
        let committed = group.committed().await?;
        let end = group.end().await?;
        self.progress.set_end(end);
        let low = group.low().await?;
        let next_offset = match decide_by_group(&GroupOffset::from(committed), low, end) {
            Ok(next_offset) => next_offset,
            Err(reason) => return Ok(Attempt::Ended(RunEnd::Held(reason))),
        };
        if next_offset == end {
            return Ok(Attempt::Ended(RunEnd::At { next_offset }));
        }
        let position = Position { next_offset, ..Position::default() };
        self.load_all(Keeper::Group, position, end).await
    }

    /// The topic with its consumer group.
    pub(crate) fn group(&self) -> TopicGroup {
        self.context.admin.topic_group(&self.topic.name, self.topic.partition)
    }

    pub(crate) fn key(&self) -> PartitionKey {
        PartitionKey {
            cluster_id: self.context.cluster_id.clone(),
            topic: self.topic.name.clone(),
            partition: self.topic.partition,
        }
    }
}
