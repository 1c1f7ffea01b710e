//! What came from Kafka for a source: what waits to be handed out, and what was.

use std::collections::{BTreeMap, VecDeque};

use rdkafka::message::{Header, Headers, Message};

/// A message in memory of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceMessage {
    /// The partition that it was read from.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Milliseconds since 1970; `None` where the topic keeps none.
    pub timestamp_ms: Option<i64>,
    /// `None`: without a key.
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values, in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl SourceMessage {
    pub(super) fn of(message: &impl Message) -> SourceMessage {
        let headers = message.headers().map(|headers| {
            let header = |header: Header<'_, &[u8]>| {
                (header.key.to_owned(), header.value.map(<[u8]>::to_vec))
            };
            headers.iter().map(header).collect()
        });
        SourceMessage {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        }
    }
}

/// What comes next from a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceItem {
    /// A message of a partition that is ours.
    Message(SourceMessage),
    /// These partitions are ours from now on.
    Assigned(Vec<i32>),
    /// These partitions are not ours any more. Where messages of theirs are in hand, the
    /// transaction has to be aborted: [`super::GroupSource::position`] says so.
    Revoked(Vec<i32>),
    /// Nothing came within the wait.
    Nothing,
}

/// What came from Kafka: what waits to be handed out, and what was.
#[derive(Debug, Default)]
pub(super) struct Hand {
    pub(super) waiting: VecDeque<SourceItem>,
    pub(super) in_hand: BTreeMap<i32, InHand>,
    /// A partition with messages in hand was revoked.
    pub(super) is_interrupted: bool,
}

/// Messages of a partition that were handed out and are not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InHand {
    pub(super) first: i64,
    /// The first offset behind them.
    pub(super) next: i64,
}

impl Hand {
    pub(super) fn take_next(&mut self) -> Option<SourceItem> {
        let item = self.waiting.pop_front()?;
        if let SourceItem::Message(message) = &item {
            let (first, next) = (message.offset, message.offset + 1);
            let range = self.in_hand.entry(message.partition).or_insert(InHand { first, next });
            range.next = next;
        }
        Some(item)
    }

    pub(super) fn assign(&mut self, partitions: Vec<i32>) {
        if !partitions.is_empty() {
            self.waiting.push_back(SourceItem::Assigned(partitions));
        }
    }

    /// What was not handed out of these partitions is not handed out any more.
    pub(super) fn revoke(&mut self, partitions: Vec<i32>) {
        for partition in &partitions {
            self.is_interrupted |= self.in_hand.remove(partition).is_some();
            self.forget_waiting(*partition);
        }
        if !partitions.is_empty() {
            self.waiting.push_back(SourceItem::Revoked(partitions));
        }
    }

    /// What lies before these offsets is committed.
    pub(super) fn settle(&mut self, committed: &BTreeMap<i32, i64>) {
        for (partition, offset) in committed {
            if let Some(range) = self.in_hand.get_mut(partition) {
                range.first = range.first.max(*offset);
            }
        }
        self.in_hand.retain(|_, range| range.first < range.next);
    }

    pub(super) fn first_in_hand(&self) -> BTreeMap<i32, i64> {
        self.in_hand.iter().map(|(partition, range)| (*partition, range.first)).collect()
    }

    /// The messages in hand, and those behind them, are read anew.
    pub(super) fn let_go(&mut self) {
        for partition in std::mem::take(&mut self.in_hand).into_keys() {
            self.forget_waiting(partition);
        }
        self.is_interrupted = false;
    }

    fn forget_waiting(&mut self, partition: i32) {
        self.waiting.retain(
            |item| !matches!(item, SourceItem::Message(message) if message.partition == partition),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(partition: i32, offset: i64) -> SourceItem {
        SourceItem::Message(SourceMessage {
            partition,
            offset,
            timestamp_ms: None,
            key: None,
            value: None,
            headers: Vec::new(),
        })
    }

    fn hand(waiting: &[SourceItem]) -> Hand {
        Hand { waiting: waiting.iter().cloned().collect(), ..Hand::default() }
    }

    #[test]
    fn what_was_handed_out_is_in_hand_and_nothing_else() {
        let mut hand = hand(&[message(0, 5), message(1, 7), message(0, 9), message(0, 10)]);
        for _ in 0..3 {
            hand.take_next().unwrap();
        }
        let expected = [(0, InHand { first: 5, next: 10 }), (1, InHand { first: 7, next: 8 })];
        assert_eq!(hand.in_hand, BTreeMap::from(expected));
    }

    #[test]
    fn what_was_handed_out_behind_a_committed_position_stays_in_hand() {
        let mut hand = hand(&[message(0, 5), message(1, 7), message(0, 6)]);
        for _ in 0..3 {
            hand.take_next().unwrap();
        }
        hand.settle(&BTreeMap::from([(0, 6), (1, 8)]));
        assert_eq!(hand.in_hand, BTreeMap::from([(0, InHand { first: 6, next: 7 })]));
    }

    #[test]
    fn a_revoked_partition_takes_its_messages_along_and_interrupts_if_some_are_in_hand() {
        let mut hand = hand(&[message(0, 1), message(0, 2), message(1, 1)]);
        hand.take_next().unwrap();
        hand.revoke(vec![0]);
        assert!(hand.is_interrupted);
        assert_eq!(hand.take_next(), Some(message(1, 1)));
        assert_eq!(hand.take_next(), Some(SourceItem::Revoked(vec![0])));
        assert_eq!(hand.first_in_hand(), BTreeMap::from([(1, 1)]));
    }

    #[test]
    fn a_revoked_partition_without_messages_in_hand_interrupts_nothing() {
        let mut hand = hand(&[message(0, 1), message(1, 1)]);
        hand.take_next().unwrap();
        hand.revoke(vec![1]);
        assert!(!hand.is_interrupted);
        assert_eq!(hand.take_next(), Some(SourceItem::Revoked(vec![1])));
    }

    #[test]
    fn letting_go_forgets_what_is_read_anew_and_keeps_the_rest() {
        let mut hand = hand(&[message(0, 1), message(0, 2), message(1, 1)]);
        hand.take_next().unwrap();
        hand.is_interrupted = true;
        hand.let_go();
        assert!(!hand.is_interrupted && hand.in_hand.is_empty());
        assert_eq!(hand.take_next(), Some(message(1, 1)));
        assert_eq!(hand.take_next(), None);
    }
}
