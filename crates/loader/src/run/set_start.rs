//! Sets where a topic is read from next: an operator's decision, safe at any time.
//!
//! The position is moved by a compare-and-set that raises its epoch, so a load that is in progress
//! is fenced, rolled back, and starts over from the new place. Kafka's own tools cannot promise
//! that.
//!
//! Invariant: a decision that waits in the consumer group (an offset that no loader of ours
//! committed) is applied first, as a run would, so that it cannot be applied after this one and
//! undo it.

use kafkabase::{Admin, AdminError, TopicGroup};
use warehouse::{Ledger, LoadError, PartitionKey, Position};

use super::{
    group::{FactError, LiveFacts, PositionSource},
    settle::epoch_after,
};
use crate::{
    protocol::{
        facts::Facts,
        mark::{GroupOffset, Mark},
    },
    target::LoadTarget,
    topic::PARTITION,
};

/// How often it is tried while loads move the position.
const MAX_ATTEMPTS: usize = 20;

/// Where to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// This offset.
    Offset(i64),
    /// The first record that Kafka still has.
    Earliest,
    /// The topic's end, as a client sees it that reads committed records only.
    Latest,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartSet {
    /// `None`: the topic was not loaded before.
    pub from: Option<i64>,
    /// The offset that is read next.
    pub to: i64,
    /// An offset that an operator, or the original, had committed, and that was applied first.
    pub applied: Option<i64>,
    /// Whether Kafka's group has the offset, too; if not, it gets it with the next load.
    pub is_committed: bool,
}

/// Why nothing was set.
#[derive(Debug, thiserror::Error)]
pub enum SetStartError {
    /// So many; the original reads the topic, or stopped less than 45 s ago.
    #[error("the consumer group has {0} live members: stop the other loader first")]
    LiveMembers(usize),
    /// Nothing lies there that could be read.
    #[error("offset {offset} is not in the topic: it has {low} to {end}")]
    OutOfRange {
        /// What was asked for.
        offset: i64,
        /// The first offset that Kafka still has.
        low: i64,
        /// The end as a read-committed client sees it.
        end: i64,
    },
    /// There is no position that could be moved.
    #[error(
        "the destination keeps no offsets rows (no right to make its tables), so the consumer group rules: use \
         kafka-consumer-groups --reset-offsets while nothing is loaded"
    )]
    NoLedger,
    /// Each attempt found the position moved.
    #[error(
        "loads moved the row {MAX_ATTEMPTS} times meanwhile: try again, or pause the destination first"
    )]
    Contended,
    /// Nothing was set, or only the position is.
    #[error("Kafka did not answer")]
    Kafka(#[from] AdminError),
    /// The position may have been moved if the answer was lost.
    #[error("the destination did not answer")]
    Destination(#[from] LoadError),
}

impl From<FactError> for SetStartError {
    fn from(error: FactError) -> SetStartError {
        match error {
            FactError::Kafka(error) => SetStartError::Kafka(error),
            FactError::Ledger(error) => SetStartError::Destination(error),
        }
    }
}

/// Sets the start of partition 0 of a table's topic. Dropped half way, the position may be moved
/// already.
pub async fn set_start(
    admin: &Admin,
    target: &LoadTarget,
    topic: &str,
    at: StartAt,
) -> Result<StartSet, SetStartError> {
    let group = admin.topic_group(topic, PARTITION);
    let members = group.members().await?;
    if members > 0 {
        return Err(SetStartError::LiveMembers(members));
    }
    let ledger = target.ledger().await?.ok_or(SetStartError::NoLedger)?;
    let cluster_id = admin.cluster_id().await?;
    let key = PartitionKey { cluster_id, topic: topic.to_owned(), partition: PARTITION };
    let setting = Setting { group: &group, ledger: &ledger, key: &key };
    let mut applied = None;
    for _ in 0..MAX_ATTEMPTS {
        let position = PositionSource::Ledger(&ledger, &key);
        let source = LiveFacts { group: group.clone(), position };
        let Some(facts) = Facts::read(&source, ledger.id()).await? else {
            continue;
        };
        let to = at.offset_in(&facts)?;
        let position = facts.position.as_ref();
        if let GroupOffset::Unmarked(offset) = facts.group {
            if let Some(moved) = setting.put(&facts, offset).await? {
                setting.commit_mark(&moved).await?; // not applied again
                applied = Some(offset);
            }
            continue;
        }
        if let Some(moved) = setting.put(&facts, to).await? {
            let is_committed = setting.commit_mark(&moved).await.is_ok();
            let from = position.map(|position| position.next_offset);
            return Ok(StartSet { from, to, applied, is_committed });
        }
    }
    Err(SetStartError::Contended)
}

impl StartAt {
    fn offset_in(self, facts: &Facts) -> Result<i64, SetStartError> {
        let (low, end) = (facts.low, facts.end);
        match self {
            StartAt::Offset(offset) if offset < low || offset > end => {
                Err(SetStartError::OutOfRange { offset, low, end })
            }
            StartAt::Offset(offset) => Ok(offset),
            StartAt::Earliest => Ok(low),
            StartAt::Latest => Ok(end),
        }
    }
}

struct Setting<'a> {
    group: &'a TopicGroup,
    ledger: &'a Ledger,
    key: &'a PartitionKey,
}

impl Setting<'_> {
    /// Moves the position, or makes the first one. `None`: it is not what was read any more.
    async fn put(&self, facts: &Facts, to: i64) -> Result<Option<Position>, LoadError> {
        let from = facts.position.as_ref();
        let moved = Position {
            next_offset: to,
            epoch: epoch_after(from.map_or(0, |from| from.epoch)),
            began: from.map_or(to, |from| from.began.min(to)),
            topic_id: facts.topic_id.or(from.and_then(|from| from.topic_id)),
        };
        let is_put = match from {
            Some(from) => self.ledger.move_position(self.key, from, &moved, true).await?,
            None => self.ledger.insert(self.key, &moved).await?,
        };
        Ok(is_put.then_some(moved))
    }

    /// Copies the position to Kafka's group.
    async fn commit_mark(&self, position: &Position) -> Result<(), AdminError> {
        let mark = Mark::of(self.ledger.id(), position);
        self.group.commit(mark.to_group_offset()).await
    }
}
