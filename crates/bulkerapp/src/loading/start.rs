//! Where a run over a topic starts: the decision, without any I/O.
//!
//! The facts must have been read in this order: offsets row, group offset, end of the topic, topic id.
//! Another order holds for ever (an end older than the row looks like a truncation) or obeys one reset
//! twice. The decision keeps one invariant: what the row covers is never loaded again unless somebody
//! *decided* so, and nothing past it is skipped without a report.

use uuid::Uuid;

use super::{
    mark::{Group, Mark},
    offsets::OffsetsRow,
};

/// What is known about one topic when a run begins.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) row: Option<OffsetsRow>,
    pub(super) group: Group,
    /// The first offset that Kafka still has.
    pub(super) low: i64,
    /// The end as a read-committed client sees it.
    pub(super) end: i64,
    /// Kafka's id of the topic; `None` on brokers that have none.
    pub(super) topic_id: Option<Uuid>,
    /// The id of the offsets table that the destination has today.
    pub(super) ledger: Uuid,
}

/// What the run does first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// The topic has no row here yet: insert one at this offset.
    Insert { at: i64, notice: Option<Notice> },
    /// The row moves outside a load: compare-and-set, with the epoch raised.
    Move { to: i64, forget_origins: bool, notice: Notice },
    /// The row stands.
    Keep { notice: Option<Notice> },
    /// Load nothing until somebody looked.
    Hold(HoldReason),
}

/// Something an operator should know; each is counted and logged once when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// No row, but our mark from this very table: the database was restored from before the row.
    RestoredFromBeforeTheRow,
    /// No row, but our mark from another table: the destination points to another database now.
    OtherDatabase,
    /// The group is ahead of the row by our own mark: a restored database reloads what it lost.
    MarkAhead,
    /// Somebody set the group back; these records are loaded again on purpose.
    ResetBackward { events: i64 },
    /// Somebody set the group forward; these offsets are skipped on purpose.
    ResetForward { events: i64 },
    /// Somebody else committed exactly where we stand.
    ResetInPlace,
    /// The topic was deleted and made anew: it is read from its beginning.
    Recreated,
    /// Retention cut these offsets before they were loaded.
    Expired { events: i64 },
}

impl Notice {
    /// The label of the notice in metrics and logs.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Notice::RestoredFromBeforeTheRow => "restored_from_before_the_row",
            Notice::OtherDatabase => "other_database",
            Notice::MarkAhead => "mark_ahead",
            Notice::ResetBackward { .. } => "reset_backward",
            Notice::ResetForward { .. } => "reset_forward",
            Notice::ResetInPlace => "reset_in_place",
            Notice::Recreated => "topic_recreated",
            Notice::Expired { .. } => "expired_before_loading",
        }
    }

    /// How many offsets the notice is about; 0 where it is not about a number.
    pub(super) fn events(self) -> i64 {
        match self {
            Notice::ResetBackward { events }
            | Notice::ResetForward { events }
            | Notice::Expired { events } => events,
            _ => 0,
        }
    }
}

/// Why a topic is not loaded although it has something to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HoldReason {
    /// The topic's consumer group has live members: another loader reads it.
    LiveMembers,
    /// The start lies beyond the topic's end although it is the same topic: records were lost in Kafka.
    Truncated,
    /// Kafka did not take our commit of the start.
    ClaimNotAcknowledged,
    /// Somebody paused the destination.
    Paused,
}

impl HoldReason {
    /// The label of the reason in metrics, logs and `/health`.
    pub(super) fn kind(self) -> &'static str {
        match self {
            HoldReason::LiveMembers => "live_group_members",
            HoldReason::Truncated => "topic_truncated",
            HoldReason::ClaimNotAcknowledged => "claim_not_acknowledged",
            HoldReason::Paused => "paused",
        }
    }
}

/// Decides where the run starts.
pub(super) fn decide(facts: &Facts) -> Decision {
    let Some(row) = &facts.row else {
        return decide_first_start(facts);
    };
    if is_another_topic(row, facts.topic_id) {
        // whatever the offsets say: they belong to a topic that is gone
        return Decision::Move { to: facts.low, forget_origins: false, notice: Notice::Recreated };
    }
    let (start, decision) = match &facts.group {
        Group::Unmarked(offset) => {
            let notice = match offset - row.next_offset {
                0 => Notice::ResetInPlace,
                events if events > 0 => Notice::ResetForward { events },
                events => Notice::ResetBackward { events: -events },
            };
            (*offset, Decision::Move { to: *offset, forget_origins: true, notice })
        }
        Group::Marked(mark) if is_ahead(mark, row, facts.ledger) => {
            (row.next_offset, Decision::Keep { notice: Some(Notice::MarkAhead) })
        }
        Group::None | Group::Marked(_) => (row.next_offset, Decision::Keep { notice: None }),
    };
    if start > facts.end { Decision::Hold(HoldReason::Truncated) } else { decision }
}

fn decide_first_start(facts: &Facts) -> Decision {
    let (at, notice) = match &facts.group {
        Group::None => (facts.low, None),
        Group::Unmarked(offset) => (*offset, None),
        Group::Marked(mark) if mark.ledger == facts.ledger => {
            (mark.began, Some(Notice::RestoredFromBeforeTheRow))
        }
        Group::Marked(mark) => (mark.offset, Some(Notice::OtherDatabase)),
    };
    if at > facts.end {
        return Decision::Hold(HoldReason::Truncated);
    }
    Decision::Insert { at, notice }
}

/// Whether the topic is another one than the row's, of the same name. Ids that are not known prove nothing.
pub(super) fn is_another_topic(row: &OffsetsRow, topic_id: Option<Uuid>) -> bool {
    matches!((row.topic_id, topic_id), (Some(then), Some(now)) if then != now)
}

fn is_ahead(mark: &Mark, row: &OffsetsRow, ledger: Uuid) -> bool {
    mark.ledger == ledger && (mark.epoch, mark.offset) > (row.epoch, row.next_offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEDGER: Uuid = Uuid::from_u128(1);
    const TOPIC: Uuid = Uuid::from_u128(2);

    fn row(next_offset: i64) -> OffsetsRow {
        OffsetsRow { next_offset, epoch: 4, began: 10, topic_id: Some(TOPIC) }
    }

    fn facts(row: Option<OffsetsRow>, group: Group) -> Facts {
        Facts { row, group, low: 5, end: 100, topic_id: Some(TOPIC), ledger: LEDGER }
    }

    fn marked(ledger: Uuid, epoch: i64, offset: i64) -> Group {
        Group::Marked(Mark { ledger, epoch, offset, began: 10 })
    }

    #[test]
    fn without_a_row_the_group_decides_where_to_start() {
        let other = Uuid::from_u128(9);
        let cases = [
            (Group::None, 5, None),
            (Group::Unmarked(50), 50, None),
            (marked(LEDGER, 4, 70), 10, Some(Notice::RestoredFromBeforeTheRow)),
            (marked(other, 4, 70), 70, Some(Notice::OtherDatabase)),
        ];
        for (group, at, notice) in cases {
            let decision = decide(&facts(None, group.clone()));
            assert_eq!(decision, Decision::Insert { at, notice }, "{group:?}");
        }
    }

    #[test]
    fn with_a_row_only_an_unmarked_offset_moves_it() {
        let moved = |to, notice| Decision::Move { to, forget_origins: true, notice };
        let cases = [
            (Group::None, Decision::Keep { notice: None }),
            (marked(LEDGER, 4, 40), Decision::Keep { notice: None }),
            (marked(LEDGER, 4, 50), Decision::Keep { notice: None }),
            (marked(Uuid::from_u128(9), 9, 90), Decision::Keep { notice: None }),
            (marked(LEDGER, 4, 60), Decision::Keep { notice: Some(Notice::MarkAhead) }),
            (marked(LEDGER, 5, 40), Decision::Keep { notice: Some(Notice::MarkAhead) }),
            (Group::Unmarked(20), moved(20, Notice::ResetBackward { events: 30 })),
            (Group::Unmarked(80), moved(80, Notice::ResetForward { events: 30 })),
            (Group::Unmarked(50), moved(50, Notice::ResetInPlace)),
        ];
        for (group, expected) in cases {
            assert_eq!(decide(&facts(Some(row(50)), group.clone())), expected, "{group:?}");
        }
    }

    #[test]
    fn a_topic_made_anew_is_read_from_its_low_watermark_whatever_the_offsets_say() {
        for group in [Group::None, Group::Unmarked(20), marked(LEDGER, 4, 50)] {
            let facts = Facts { topic_id: Some(Uuid::from_u128(3)), ..facts(Some(row(50)), group) };
            let expected =
                Decision::Move { to: 5, forget_origins: false, notice: Notice::Recreated };
            assert_eq!(decide(&facts), expected);
        }
    }

    #[test]
    fn a_broker_without_topic_ids_proves_no_recreation() {
        let facts = Facts { topic_id: None, ..facts(Some(row(50)), Group::None) };
        assert_eq!(decide(&facts), Decision::Keep { notice: None });
    }

    #[test]
    fn a_start_beyond_the_end_of_the_same_topic_holds() {
        let held = Decision::Hold(HoldReason::Truncated);
        assert_eq!(decide(&facts(Some(row(101)), Group::None)), held);
        assert_eq!(decide(&facts(Some(row(50)), Group::Unmarked(101))), held);
        assert_eq!(decide(&facts(None, Group::Unmarked(101))), held);
        assert_eq!(
            decide(&facts(Some(row(100)), Group::None)),
            Decision::Keep { notice: None },
            "the end itself is where a finished topic stands"
        );
    }
}
