//! What is known about a topic when a run begins, and the order in which it has to be asked.
//!
//! Another order holds for ever (an end that is older than the position looks like a truncation) or
//! applies one reset twice. So the order stands once, in [`Facts::read`]: runs, `set-start` and
//! `preflight` ask by it, and the model takes it from there.

use uuid::Uuid;
use warehouse::Position;

use super::mark::GroupOffset;

/// What is known about one topic when a run begins.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// `None`: the ledger has none yet.
    pub(crate) position: Option<Position>,
    pub(crate) group: GroupOffset,
    /// The first offset that Kafka still has.
    pub(crate) low: i64,
    /// The end as a read-committed client sees it.
    pub(crate) end: i64,
    /// Kafka's id of the topic; `None` on brokers that have none.
    pub(crate) topic_id: Option<Uuid>,
    /// The id of the ledger that the destination has today.
    pub(crate) ledger: Uuid,
}

/// Answers the questions, each at the time when it is asked.
pub(crate) trait FactSource {
    type Error;
    /// The ledger's position of the topic.
    async fn position(&self) -> Result<Option<Position>, Self::Error>;
    /// The offset of the topic's consumer group.
    async fn group_offset(&self) -> Result<GroupOffset, Self::Error>;
    /// Kafka's id of the topic.
    async fn topic_id(&self) -> Result<Option<Uuid>, Self::Error>;
    /// The topic's end as a read-committed client sees it.
    async fn end(&self) -> Result<i64, Self::Error>;
    /// The first offset that Kafka still has.
    async fn low(&self) -> Result<i64, Self::Error>;
}

impl Facts {
    /// Asks for all of them, in the order that the protocol wants. `None`: the topic was made anew
    /// meanwhile, so that the answers belong to two topics; ask again.
    pub(crate) async fn read<S: FactSource>(
        source: &S,
        ledger: Uuid,
    ) -> Result<Option<Facts>, S::Error> {
        let position = source.position().await?;
        // without a position nothing says which topic an offset of the group is of, so the topic
        // must be the same after it
        let earlier_id = match position {
            None => source.topic_id().await?,
            Some(_) => None,
        };
        let group = source.group_offset().await?;
        let end = source.end().await?;
        let topic_id = source.topic_id().await?;
        if position.is_none() && earlier_id != topic_id {
            return Ok(None);
        }
        let low = source.low().await?;
        Ok(Some(Facts { position, group, low, end, topic_id, ledger }))
    }
}
