//! How topics stand in Kafka and in their destinations, side by side: what a switch in either direction depends on.

use std::collections::HashMap;

use kafkabase::{Admin, AdminError, OffsetSpec};
use warehouse::LoadError;

use super::{
    counters,
    mark::Group,
    offsets::{Offsets, OffsetsRow},
    retries::OUT_OF_ORDER,
    start::{Decision, Facts, decide},
    target::LoadTarget,
};

/// How one table's topic stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The first offset that is not in the table; `None`: it was not loaded by us yet.
    pub row: Option<i64>,
    /// What the consumer group says.
    pub group: Option<i64>,
    /// The first record that Kafka still has.
    pub low: i64,
    pub end: i64,
    /// The label of why nothing would be loaded.
    pub held: Option<&'static str>,
    /// The label of what a start would report, and how many offsets that is about.
    pub notice: Option<(&'static str, i64)>,
}

impl Standing {
    /// Whether the original would go on where we stopped. A topic that we never touched is the original's anyway.
    pub fn is_handed_over(&self) -> bool {
        let Some(row) = self.row else {
            return true;
        };
        // Kafka forgets the offset of a group that was quiet for long: harmless where nothing is left to read again
        let is_empty = self.group.is_none() && self.low == self.end && row == self.end;
        is_empty || self.group == Some(row)
    }
}

/// The rows of one destination, to look at topics with.
pub struct Standings<'a> {
    admin: &'a Admin,
    rows: HashMap<String, OffsetsRow>,
    ledger: uuid::Uuid,
}

impl<'a> Standings<'a> {
    /// Reads the rows. Makes no table: without one, there are no rows.
    pub async fn read(
        admin: &'a Admin,
        target: &LoadTarget,
        cluster_id: &str,
    ) -> Result<Standings<'a>, LoadError> {
        let rows = counters::read_all(&target.postgres, cluster_id).await?;
        let ledger = match &rows {
            Some(_) => Offsets::open(&target.postgres).await?.ledger(),
            None => uuid::Uuid::nil(),
        };
        let rows = rows.unwrap_or_default().into_iter().filter(|row| row.partition == 0);
        Ok(Standings { admin, rows: rows.map(|row| (row.topic, row.row)).collect(), ledger })
    }

    /// Looks at one table's topic, in the order of a run.
    pub async fn of(&self, topic: &str) -> Result<Standing, AdminError> {
        let row = self.rows.get(topic).cloned();
        let group = self.admin.group_offset(topic, topic, 0).await?;
        let end = self.admin.offset(topic, 0, OffsetSpec::CommittedEnd).await?;
        let topic_id = self.admin.topic_id(topic).await?;
        let low = self.admin.offset(topic, 0, OffsetSpec::Earliest).await?;
        let next_offset = row.as_ref().map(|row| row.next_offset);
        let committed = group.as_ref().map(|group| group.offset);
        let ledger = self.ledger;
        let facts = Facts { row, group: Group::from(group), low, end, topic_id, ledger };
        let (held, notice) = match decide(&facts) {
            Decision::Hold(reason) => (Some(reason.kind()), None),
            Decision::Insert { notice, .. } | Decision::Keep { notice } => (None, notice),
            Decision::Move { notice, .. } => (None, Some(notice)),
        };
        let notice = notice.map(|notice| (notice.kind(), notice.events()));
        Ok(Standing { row: next_offset, group: committed, low, end, held, notice })
    }
}

/// Whether all events of a retry topic that are still needed lie at or behind its group's offset, and no others.
pub async fn is_retry_topic_in_order(admin: &Admin, topic: &str) -> Result<bool, AdminError> {
    let group = admin.group_offset(topic, topic, 0).await?;
    Ok(group.is_none_or(|group| group.metadata != OUT_OF_ORDER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_handed_over_when_its_group_stands_where_its_row_does() {
        let standing =
            |row, group, low| Standing { row, group, low, end: 9, held: None, notice: None };
        assert!(standing(None, None, 0).is_handed_over());
        assert!(standing(None, Some(4), 0).is_handed_over());
        assert!(standing(Some(9), Some(9), 0).is_handed_over());
        assert!(!standing(Some(9), Some(8), 0).is_handed_over());
        assert!(!standing(Some(9), None, 0).is_handed_over());
        assert!(standing(Some(9), None, 9).is_handed_over(), "an empty topic");
        assert!(!standing(Some(8), None, 9).is_handed_over());
    }
}
