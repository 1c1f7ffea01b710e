//! Sets where a topic is read from next: an operator's decision, safe at any time.
//!
//! The offsets row is moved by a compare-and-set that raises its epoch, so a load that is in progress fails its checkpoint,
//! is rolled back, and starts over from the new place. Kafka's own tools cannot promise that.
//!
//! Invariant: a decision that waits in the consumer group (an offset that nobody of ours committed) is obeyed first, as a
//! run would, so that it cannot be obeyed after this one and undo it.

use kafkabase::{Admin, AdminError, GroupOffset, OffsetSpec};
use warehouse::LoadError;

use super::{
    mark::{Group, Mark},
    offsets::{Offsets, OffsetsRow, RowKey},
    run::epoch_after,
    target::LoadTarget,
};

/// How often it is tried while loads move the row.
const MAX_ATTEMPTS: usize = 20;

/// Where to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
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
    pub to: i64,
    /// An offset that somebody else had committed, and that was obeyed first.
    pub obeyed: Option<i64>,
    /// Whether Kafka's group has the offset, too; if not, it gets it with the next load.
    pub told_kafka: bool,
}

/// Why nothing was set.
#[derive(Debug, thiserror::Error)]
pub enum SetStartError {
    #[error("the consumer group has {0} live members: stop the other loader first")]
    LiveMembers(usize),
    #[error("offset {offset} is not in the topic: it has {low} to {end}")]
    OutOfRange { offset: i64, low: i64, end: i64 },
    #[error(
        "the destination keeps no offsets rows (no right to make its tables), so the consumer group rules: use \
         kafka-consumer-groups --reset-offsets while nothing is loaded"
    )]
    NoRows,
    #[error(
        "loads moved the row {MAX_ATTEMPTS} times meanwhile: try again, or pause the destination first"
    )]
    Contended,
    #[error("Kafka did not answer")]
    Kafka(#[from] AdminError),
    #[error("the destination did not answer")]
    Destination(#[from] LoadError),
}

/// Sets the start of partition 0 of a table's topic.
pub async fn set_start(
    admin: &Admin,
    target: &LoadTarget,
    topic: &str,
    at: StartAt,
) -> Result<StartSet, SetStartError> {
    let members = admin.group_members(topic).await?;
    if members > 0 {
        return Err(SetStartError::LiveMembers(members));
    }
    let offsets = target.offsets().await?.ok_or(SetStartError::NoRows)?;
    let key =
        RowKey { cluster_id: admin.cluster_id().await?, topic: topic.to_owned(), partition: 0 };
    let setting = Setting { admin, offsets: &offsets, key: &key };
    let mut obeyed = None;
    for _ in 0..MAX_ATTEMPTS {
        let row = offsets.read(&key).await?;
        // as a run asks: without a row nothing says which topic an offset of the group is of
        let earlier_id = match row {
            None => admin.topic_id(topic).await?,
            Some(_) => None,
        };
        let group = Group::from(admin.group_offset(topic, topic, 0).await?);
        let end = admin.offset(topic, 0, OffsetSpec::CommittedEnd).await?;
        let topic_id = admin.topic_id(topic).await?;
        if row.is_none() && earlier_id != topic_id {
            continue;
        }
        let low = admin.offset(topic, 0, OffsetSpec::Earliest).await?;
        let to = match at {
            StartAt::Offset(offset) if offset < low || offset > end => {
                return Err(SetStartError::OutOfRange { offset, low, end });
            }
            StartAt::Offset(offset) => offset,
            StartAt::Earliest => low,
            StartAt::Latest => end,
        };
        let moved = |to| OffsetsRow {
            next_offset: to,
            epoch: epoch_after(row.as_ref().map_or(0, |row| row.epoch)),
            began: row.as_ref().map_or(to, |row| row.began.min(to)),
            topic_id: topic_id.or(row.as_ref().and_then(|row| row.topic_id)),
        };
        if let Group::Unmarked(offset) = group {
            let row = setting.put(row.as_ref(), moved(offset)).await?;
            if let Some(row) = row {
                setting.mark(&row).await?; // not obeyed again
                obeyed = Some(offset);
            }
            continue;
        }
        if let Some(set) = setting.put(row.as_ref(), moved(to)).await? {
            let told_kafka = setting.mark(&set).await.is_ok();
            return Ok(StartSet { from: row.map(|row| row.next_offset), to, obeyed, told_kafka });
        }
    }
    Err(SetStartError::Contended)
}

struct Setting<'a> {
    admin: &'a Admin,
    offsets: &'a Offsets,
    key: &'a RowKey,
}

impl Setting<'_> {
    /// Moves the row, or makes the first one. `None`: it is not what was read any more.
    async fn put(
        &self,
        from: Option<&OffsetsRow>,
        to: OffsetsRow,
    ) -> Result<Option<OffsetsRow>, LoadError> {
        let is_put = match from {
            Some(from) => self.offsets.move_row(self.key, from, &to, true).await?,
            None => self.offsets.insert(self.key, &to).await?,
        };
        Ok(is_put.then_some(to))
    }

    /// Copies the row to Kafka's group.
    async fn mark(&self, row: &OffsetsRow) -> Result<(), AdminError> {
        let mark = Mark {
            ledger: self.offsets.ledger(),
            epoch: row.epoch,
            offset: row.next_offset,
            began: row.began,
        };
        let (topic, marked): (_, GroupOffset) = (&self.key.topic, mark.to_group_offset());
        self.admin.set_group_offset(topic, topic, self.key.partition, marked).await
    }
}
