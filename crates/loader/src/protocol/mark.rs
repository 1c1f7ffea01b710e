//! The mark that tells our commits to a consumer group from all others.
//!
//! It travels in the metadata of the committed offset. Kafka's own tools, the original and
//! operators leave no mark, or keep one whose offset is not the committed one: both count as
//! *unmarked*, that is, as a decision that has to be applied.

use std::fmt;

use kafkabase::CommittedOffset;
use uuid::Uuid;
use warehouse::Position;

const PRODUCT: &str = "bulker-rust/1";

/// What our commit says about the position that it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The ledger that the position lies in.
    pub(crate) ledger: Uuid,
    pub(crate) epoch: i64,
    /// The committed offset, once more: a tool that moves the offset may keep the metadata.
    pub(crate) offset: i64,
    /// The lowest offset that the position ever started from.
    pub(crate) began: i64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mark { ledger, epoch, offset, began } = self;
        write!(f, "{PRODUCT} ledger={ledger} epoch={epoch} offset={offset} began={began}")
    }
}

impl Mark {
    /// The mark of a position in this ledger.
    pub(crate) fn of(ledger: Uuid, position: &Position) -> Mark {
        Mark { ledger, epoch: position.epoch, offset: position.next_offset, began: position.began }
    }

    /// The offset to commit, with this mark.
    pub(crate) fn to_group_offset(&self) -> CommittedOffset {
        CommittedOffset { offset: self.offset, metadata: self.to_string() }
    }

    fn parse(metadata: &str) -> Option<Mark> {
        let mut words = metadata.split(' ');
        if words.next() != Some(PRODUCT) {
            return None;
        }
        let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let ledger = field("ledger")?.parse().ok()?;
        let epoch = field("epoch")?.parse().ok()?;
        let offset = field("offset")?.parse().ok()?;
        let began = field("began")?.parse().ok()?;
        Some(Mark { ledger, epoch, offset, began })
    }
}

/// What a topic's consumer group says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GroupOffset {
    /// Nothing is committed.
    None,
    /// The original, an operator or a tool decided on this offset.
    Unmarked(i64),
    /// We did, from some offsets table.
    Marked(Mark),
}

impl GroupOffset {
    /// The offset, ours or not; `None`: nothing is committed.
    pub(crate) fn offset(&self) -> Option<i64> {
        match self {
            GroupOffset::None => None,
            GroupOffset::Unmarked(offset) => Some(*offset),
            GroupOffset::Marked(mark) => Some(mark.offset),
        }
    }
}

impl From<Option<CommittedOffset>> for GroupOffset {
    fn from(committed: Option<CommittedOffset>) -> GroupOffset {
        let Some(committed) = committed else {
            return GroupOffset::None;
        };
        match Mark::parse(&committed.metadata) {
            Some(mark) if mark.offset == committed.offset => GroupOffset::Marked(mark),
            _ => GroupOffset::Unmarked(committed.offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark { ledger: Uuid::from_u128(7), epoch: 3, offset: 42, began: 10 }
    }

    #[test]
    fn a_mark_survives_its_way_through_kafka() {
        let committed = mark().to_group_offset();
        assert_eq!(GroupOffset::from(Some(committed)), GroupOffset::Marked(mark()));
    }

    #[test]
    fn a_mark_kept_by_a_tool_that_moved_the_offset_counts_as_none() {
        let moved = CommittedOffset { offset: 5, ..mark().to_group_offset() };
        assert_eq!(GroupOffset::from(Some(moved)), GroupOffset::Unmarked(5));
    }

    #[test]
    fn foreign_or_broken_metadata_is_no_mark() {
        for metadata in ["", "x", "bulker-rust/2 ledger=a", "bulker-rust/1 ledger=zz epoch=1"] {
            let committed = CommittedOffset { offset: 5, metadata: metadata.to_owned() };
            assert_eq!(
                GroupOffset::from(Some(committed)),
                GroupOffset::Unmarked(5),
                "{metadata:?}"
            );
        }
    }

    #[test]
    fn nothing_committed_is_neither() {
        assert_eq!(GroupOffset::from(None), GroupOffset::None);
    }
}
