//! Where a run over a topic starts: the decision, without any I/O.
//!
//! Invariant: what the position covers is never loaded again unless the original or an operator
//! *decided* so, and nothing past it is skipped without a report.

use uuid::Uuid;
use warehouse::Position;

use super::{
    facts::Facts,
    mark::{GroupOffset, Mark},
};

/// What the run does first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The topic has no position here yet: insert one at this offset.
    Insert { at: i64, notice: Option<Notice> },
    /// The position moves outside a load: compare-and-set, with the epoch raised.
    Move { to: i64, forget_events: bool, notice: Notice },
    /// The position stands.
    Keep { notice: Option<Notice> },
    /// Load nothing until an operator looked.
    Hold(HoldReason),
}

/// Something an operator should know; each is counted and logged once when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// No position, but our mark from this very ledger: the database was restored from before the
    /// position.
    RestoredFromBeforeTheRow,
    /// No position, but our mark from another ledger: the destination points to another database
    /// now.
    OtherDatabase,
    /// The group is ahead of the position by our own mark: a restored database reloads what it
    /// lost.
    MarkAhead,
    /// The group was set back; these records are loaded again on purpose.
    ResetBackward { events: i64 },
    /// The group was set forward; these offsets are skipped on purpose.
    ResetForward { events: i64 },
    /// The original, or an operator, committed exactly where we stand.
    ResetInPlace,
    /// The topic was deleted and made anew: it is read from its beginning.
    Recreated,
    /// Retention cut these offsets before they were loaded.
    Expired { events: i64 },
}

impl Notice {
    /// The label of the notice in metrics and logs.
    pub(crate) fn kind(self) -> &'static str {
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
    pub(crate) fn events(self) -> i64 {
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
pub(crate) enum HoldReason {
    /// The topic's consumer group has live members: another loader reads it.
    LiveMembers,
    /// The start lies beyond the topic's end although it is the same topic: records were lost in
    /// Kafka.
    Truncated,
    /// Kafka did not take our commit of the start.
    ClaimNotAcknowledged,
    /// A ledger said where the topic stands, and there is none any more, nor the right to make one.
    LedgerLost,
    /// The destination is paused.
    Paused,
}

impl HoldReason {
    /// All of them.
    pub(crate) const ALL: [HoldReason; 5] = [
        HoldReason::LiveMembers,
        HoldReason::Truncated,
        HoldReason::ClaimNotAcknowledged,
        HoldReason::LedgerLost,
        HoldReason::Paused,
    ];

    /// The label of the reason in metrics, logs and `/health`.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            HoldReason::LiveMembers => "live_group_members",
            HoldReason::Truncated => "topic_truncated",
            HoldReason::ClaimNotAcknowledged => "claim_not_acknowledged",
            HoldReason::LedgerLost => "ledger_lost",
            HoldReason::Paused => "paused",
        }
    }
}

/// Decides where the run starts.
pub(crate) fn decide(facts: &Facts) -> Decision {
    let Some(position) = &facts.position else {
        return decide_first_start(facts);
    };
    if is_another_topic(position, facts.topic_id) {
        // whatever the offsets say: they belong to a topic that is gone
        return Decision::Move { to: facts.low, forget_events: false, notice: Notice::Recreated };
    }
    let (start, decision) = match &facts.group {
        GroupOffset::Unmarked(offset) => {
            let notice = match offset - position.next_offset {
                0 => Notice::ResetInPlace,
                events if events > 0 => Notice::ResetForward { events },
                events => Notice::ResetBackward { events: -events },
            };
            (*offset, Decision::Move { to: *offset, forget_events: true, notice })
        }
        GroupOffset::Marked(mark) if is_ahead(mark, position, facts.ledger) => {
            (position.next_offset, Decision::Keep { notice: Some(Notice::MarkAhead) })
        }
        GroupOffset::None | GroupOffset::Marked(_) => {
            (position.next_offset, Decision::Keep { notice: None })
        }
    };
    if start > facts.end { Decision::Hold(HoldReason::Truncated) } else { decision }
}

fn decide_first_start(facts: &Facts) -> Decision {
    let (at, notice) = match &facts.group {
        GroupOffset::None => (facts.low, None),
        GroupOffset::Unmarked(offset) => (*offset, None),
        GroupOffset::Marked(mark) if mark.ledger == facts.ledger => {
            (mark.began, Some(Notice::RestoredFromBeforeTheRow))
        }
        GroupOffset::Marked(mark) => (mark.offset, Some(Notice::OtherDatabase)),
    };
    if at > facts.end {
        return Decision::Hold(HoldReason::Truncated);
    }
    Decision::Insert { at, notice }
}

/// Decides where a run starts that may keep no ledger: the group's offset is the position. A mark
/// of ours says that there was a ledger once, and what was promised with it is held.
pub(crate) fn decide_by_group(group: &GroupOffset, low: i64, end: i64) -> Result<i64, HoldReason> {
    let start = match group {
        GroupOffset::Marked(_) => return Err(HoldReason::LedgerLost),
        GroupOffset::Unmarked(offset) => low.max(*offset),
        GroupOffset::None => low,
    };
    if start > end { Err(HoldReason::Truncated) } else { Ok(start) }
}

/// Whether the topic is another one than the position's, of the same name. Ids that are not known
/// prove nothing.
pub(crate) fn is_another_topic(position: &Position, topic_id: Option<Uuid>) -> bool {
    matches!((position.topic_id, topic_id), (Some(then), Some(now)) if then != now)
}

fn is_ahead(mark: &Mark, position: &Position, ledger: Uuid) -> bool {
    mark.ledger == ledger && (mark.epoch, mark.offset) > (position.epoch, position.next_offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEDGER: Uuid = Uuid::from_u128(1);
    const TOPIC: Uuid = Uuid::from_u128(2);

    fn position(next_offset: i64) -> Position {
        Position { next_offset, epoch: 4, began: 10, topic_id: Some(TOPIC) }
    }

    fn facts(position: Option<Position>, group: GroupOffset) -> Facts {
        Facts { position, group, low: 5, end: 100, topic_id: Some(TOPIC), ledger: LEDGER }
    }

    fn marked(ledger: Uuid, epoch: i64, offset: i64) -> GroupOffset {
        GroupOffset::Marked(Mark { ledger, epoch, offset, began: 10 })
    }

    #[test]
    fn without_a_position_the_group_decides_where_to_start() {
        let other = Uuid::from_u128(9);
        let cases = [
            (GroupOffset::None, 5, None),
            (GroupOffset::Unmarked(50), 50, None),
            (marked(LEDGER, 4, 70), 10, Some(Notice::RestoredFromBeforeTheRow)),
            (marked(other, 4, 70), 70, Some(Notice::OtherDatabase)),
        ];
        for (group, at, notice) in cases {
            let decision = decide(&facts(None, group.clone()));
            assert_eq!(decision, Decision::Insert { at, notice }, "{group:?}");
        }
    }

    #[test]
    fn with_a_position_only_an_unmarked_offset_moves_it() {
        let moved = |to, notice| Decision::Move { to, forget_events: true, notice };
        let cases = [
            (GroupOffset::None, Decision::Keep { notice: None }),
            (marked(LEDGER, 4, 40), Decision::Keep { notice: None }),
            (marked(LEDGER, 4, 50), Decision::Keep { notice: None }),
            (marked(Uuid::from_u128(9), 9, 90), Decision::Keep { notice: None }),
            (marked(LEDGER, 4, 60), Decision::Keep { notice: Some(Notice::MarkAhead) }),
            (marked(LEDGER, 5, 40), Decision::Keep { notice: Some(Notice::MarkAhead) }),
            (GroupOffset::Unmarked(20), moved(20, Notice::ResetBackward { events: 30 })),
            (GroupOffset::Unmarked(80), moved(80, Notice::ResetForward { events: 30 })),
            (GroupOffset::Unmarked(50), moved(50, Notice::ResetInPlace)),
        ];
        for (group, expected) in cases {
            assert_eq!(decide(&facts(Some(position(50)), group.clone())), expected, "{group:?}");
        }
    }

    #[test]
    fn a_topic_made_anew_is_read_from_its_low_watermark_whatever_the_offsets_say() {
        for group in [GroupOffset::None, GroupOffset::Unmarked(20), marked(LEDGER, 4, 50)] {
            let facts =
                Facts { topic_id: Some(Uuid::from_u128(3)), ..facts(Some(position(50)), group) };
            let expected =
                Decision::Move { to: 5, forget_events: false, notice: Notice::Recreated };
            assert_eq!(decide(&facts), expected);
        }
    }

    #[test]
    fn a_broker_without_topic_ids_proves_no_recreation() {
        let facts = Facts { topic_id: None, ..facts(Some(position(50)), GroupOffset::None) };
        assert_eq!(decide(&facts), Decision::Keep { notice: None });
    }

    #[test]
    fn without_a_ledger_the_group_decides_unless_it_speaks_of_one() {
        let cases = [
            (GroupOffset::None, Ok(5)),
            (GroupOffset::Unmarked(50), Ok(50)),
            (GroupOffset::Unmarked(2), Ok(5)),
            (GroupOffset::Unmarked(101), Err(HoldReason::Truncated)),
            (marked(LEDGER, 4, 50), Err(HoldReason::LedgerLost)),
        ];
        for (group, start) in cases {
            assert_eq!(decide_by_group(&group, 5, 100), start, "{group:?}");
        }
    }

    #[test]
    fn a_start_beyond_the_end_of_the_same_topic_holds() {
        let held = Decision::Hold(HoldReason::Truncated);
        assert_eq!(decide(&facts(Some(position(101)), GroupOffset::None)), held);
        assert_eq!(decide(&facts(Some(position(50)), GroupOffset::Unmarked(101))), held);
        assert_eq!(decide(&facts(None, GroupOffset::Unmarked(101))), held);
        assert_eq!(
            decide(&facts(Some(position(100)), GroupOffset::None)),
            Decision::Keep { notice: None },
            "the end itself is where a finished topic stands"
        );
    }
}
