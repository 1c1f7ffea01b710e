//! What a world consists of: records, offsets, rows, marks.
//!
//! Everything is a plain value that can be copied, compared and hashed. Numbers are as small as the
//! worlds: an offset, an epoch, an id is a `u8`. Where the real code decides, they become its own
//! types.

use kafkabase::CommittedOffset;
use uuid::Uuid;
use warehouse::{EventState, Position};

use super::super::mark::{GroupOffset, Mark};

/// Events of all incarnations of the topic together.
pub(super) const EVENTS: usize = 5;
/// SmallSet of one incarnation.
pub(super) const PLACES: usize = 12;
/// Copies that ever enter the retry topic.
pub(super) const RETRIED: usize = 6;
/// Records of a batch.
pub(super) const BATCH: usize = 3;

/// What lies at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Record {
    Event(u8),
    /// A refused event that came back from the retry topic.
    Copy(Copied),
    /// The marker of a Kafka transaction: it has an offset and is never delivered.
    Marker,
}

/// A refused event on its way through the retry topic; its origin is the event's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Copied {
    pub(super) event: u8,
    /// How often it was refused before.
    pub(super) attempt: u8,
    /// Refused by the original: its origin is its place in the retry topic.
    pub(super) is_foreign: bool,
}

/// One incarnation of the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Topic {
    pub(super) id: u8,
    pub(super) low: u8,
    pub(super) end: u8,
    pub(super) records: [Option<Record>; PLACES],
}

impl Topic {
    pub(super) fn push(&mut self, record: Record) {
        self.records[usize::from(self.end)] = Some(record);
        self.end += 1;
    }
}

/// What the group's offset is, as Kafka keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Committed {
    pub(super) offset: u8,
    pub(super) mark: Option<SmallMark>,
}

/// A [`Mark`] of small numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SmallMark {
    pub(super) ledger: u8,
    pub(super) epoch: u8,
    pub(super) offset: u8,
    pub(super) began: u8,
}

impl SmallMark {
    pub(super) fn committed(self) -> Committed {
        Committed { offset: self.offset, mark: Some(self) }
    }

    fn to_mark(self) -> Mark {
        Mark {
            ledger: uuid(self.ledger),
            epoch: i64::from(self.epoch),
            offset: i64::from(self.offset),
            began: i64::from(self.began),
        }
    }
}

/// What the loaders make of the group's offset: by way of the text that Kafka keeps, so that the
/// real code reads it.
pub(super) fn group_of(committed: Option<Committed>) -> GroupOffset {
    GroupOffset::from(committed.map(|committed| CommittedOffset {
        offset: i64::from(committed.offset),
        metadata: committed.mark.map_or_else(String::new, |mark| mark.to_mark().to_string()),
    }))
}

pub(super) fn is_unmarked(committed: Option<Committed>) -> bool {
    matches!(group_of(committed), GroupOffset::Unmarked(_))
}

pub(super) fn uuid(small: u8) -> Uuid {
    Uuid::from_u128(u128::from(small) + 1)
}

/// An [`Position`] of small numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) next: u8,
    pub(super) epoch: u8,
    pub(super) began: u8,
    pub(super) topic_id: u8,
}

impl Row {
    pub(super) fn to_position(self) -> Position {
        Position {
            next_offset: i64::from(self.next),
            epoch: i64::from(self.epoch),
            began: i64::from(self.began),
            topic_id: Some(uuid(self.topic_id)),
        }
    }

    pub(super) fn mark(self, ledger: u8) -> SmallMark {
        SmallMark { ledger, epoch: self.epoch, offset: self.next, began: self.began }
    }

    /// Whether a compare-and-set on (offset, epoch) takes one for the other.
    pub(super) fn is_unmoved(self, now: Option<Row>) -> bool {
        now.is_some_and(|now| (now.next, now.epoch) == (self.next, self.epoch))
    }
}

/// What the ledger knows of a refused event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Known {
    pub(super) state: EventState,
    pub(super) refusals: u8,
}

/// The destination, as far as it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Database {
    pub(super) ledger: u8,
    pub(super) row: Option<Row>,
    /// How often each event is in the table.
    pub(super) table: [u8; EVENTS],
    pub(super) origins: [Option<Known>; EVENTS],
}

/// What a load's transaction does once it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Effect {
    pub(super) to: Row,
    pub(super) rows: [u8; EVENTS],
    pub(super) origins: [Option<Known>; EVENTS],
    /// Goes to the retry topic before the commit.
    pub(super) in_retry: [Option<Copied>; 2],
    /// Events that go to the dead letter before the commit.
    pub(super) dead: [bool; EVENTS],
    /// Not without a ledger.
    pub(super) moves_row: bool,
}

/// A few numbers below eight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct SmallSet(u8);

impl SmallSet {
    pub(super) fn insert(&mut self, number: u8) {
        self.0 |= 1 << number;
    }

    pub(super) fn remove(&mut self, number: u8) {
        self.0 &= !(1 << number);
    }

    pub(super) fn contains(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |number| self.contains(*number))
    }

    pub(super) fn first(self) -> Option<u8> {
        self.iter().next()
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<u8> for SmallSet {
    fn from_iter<T: IntoIterator<Item = u8>>(numbers: T) -> SmallSet {
        let mut all = SmallSet::default();
        numbers.into_iter().for_each(|number| all.insert(number));
        all
    }
}

/// What the loaders' user may do with the ledger of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Right {
    Kept,
    /// The ledger is there and may not be read.
    Denied,
    /// The ledger is not there and may not be made.
    Gone,
}
