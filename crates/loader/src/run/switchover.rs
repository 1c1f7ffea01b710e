//! How topics stand in Kafka and in their destinations, side by side: what a switch in either
//! direction depends on.

use std::collections::HashMap;

use kafkabase::{Admin, AdminError};
use uuid::Uuid;
use warehouse::{LoadError, Position};

use super::group::{FactError, LiveFacts, PositionSource};
use crate::{
    protocol::{
        facts::Facts,
        start::{Decision, decide},
    },
    retry::mover::OUT_OF_ORDER,
    target::LoadTarget,
    topic::PARTITION,
};

/// How one table's topic stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchoverStatus {
    /// The first offset that is not in the table; `None`: it was not loaded by us yet.
    pub position: Option<i64>,
    /// What the consumer group says.
    pub group: Option<i64>,
    /// The first record that Kafka still has.
    pub low: i64,
    /// The end as a read-committed client sees it.
    pub end: i64,
    /// The label of why nothing would be loaded.
    pub held: Option<&'static str>,
    /// The label of what a start would report, and how many offsets that is about.
    pub notice: Option<(&'static str, i64)>,
}

impl SwitchoverStatus {
    /// Whether the original would go on where we stopped. A topic that we never touched is the
    /// original's anyway.
    pub fn is_handed_over(&self) -> bool {
        let Some(position) = self.position else {
            return true;
        };
        // Kafka forgets the offset of a group that was quiet for long: harmless where nothing is
        // left to read again
        let is_empty = self.group.is_none() && self.low == self.end && position == self.end;
        is_empty || self.group == Some(position)
    }
}

/// The positions of one destination, to look at topics with.
pub struct SwitchoverStatuses<'a> {
    admin: &'a Admin,
    positions: HashMap<String, Position>,
    ledger: Uuid,
}

impl<'a> SwitchoverStatuses<'a> {
    /// Reads the positions. Makes no ledger: without one, there are no positions.
    pub async fn read(
        admin: &'a Admin,
        target: &LoadTarget,
        cluster_id: &str,
    ) -> Result<SwitchoverStatuses<'a>, LoadError> {
        let found = target.warehouse.positions(cluster_id).await?;
        let ledger = match &found {
            Some(_) => target.warehouse.ledger().await?.id(),
            None => Uuid::nil(),
        };
        let of_first_partition =
            found.unwrap_or_default().into_iter().filter(|found| found.partition == PARTITION);
        let positions = of_first_partition.map(|found| (found.topic, found.position)).collect();
        Ok(SwitchoverStatuses { admin, positions, ledger })
    }

    /// Looks at one table's topic, as a run would.
    pub async fn of(&self, topic: &str) -> Result<SwitchoverStatus, FactError> {
        let position = self.positions.get(topic).cloned();
        let source = LiveFacts {
            group: self.admin.topic_group(topic, PARTITION),
            position: PositionSource::Known(position),
        };
        let facts = loop {
            // a topic that is made anew at this very moment is asked for again
            if let Some(facts) = Facts::read(&source, self.ledger).await? {
                break facts;
            }
        };
        let (held, notice) = match decide(&facts) {
            Decision::Hold(reason) => (Some(reason.kind()), None),
            Decision::Insert { notice, .. } | Decision::Keep { notice } => (None, notice),
            Decision::Move { notice, .. } => (None, Some(notice)),
        };
        Ok(SwitchoverStatus {
            position: facts.position.map(|position| position.next_offset),
            group: facts.group.offset(),
            low: facts.low,
            end: facts.end,
            held,
            notice: notice.map(|notice| (notice.kind(), notice.events())),
        })
    }
}

/// Whether all events of a retry topic that are still needed lie at or behind its group's offset,
/// and no others.
pub async fn is_retry_topic_in_order(admin: &Admin, topic: &str) -> Result<bool, AdminError> {
    let group = admin.topic_group(topic, PARTITION).committed().await?;
    Ok(group.is_none_or(|group| group.metadata != OUT_OF_ORDER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_handed_over_when_its_group_stands_where_its_position_does() {
        let standing = |position, group, low| SwitchoverStatus {
            position,
            group,
            low,
            end: 9,
            held: None,
            notice: None,
        };
        assert!(standing(None, None, 0).is_handed_over());
        assert!(standing(None, Some(4), 0).is_handed_over());
        assert!(standing(Some(9), Some(9), 0).is_handed_over());
        assert!(!standing(Some(9), Some(8), 0).is_handed_over());
        assert!(!standing(Some(9), None, 0).is_handed_over());
        assert!(standing(Some(9), None, 9).is_handed_over(), "an empty topic");
        assert!(!standing(Some(8), None, 9).is_handed_over());
    }
}
