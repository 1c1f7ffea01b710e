//! Which events the spool holds, in memory: where each is, and what became of it.
//!
//! Invariant: an event is in the index from the moment it is on the medium until Kafka has it; per
//! topic, in the order in which the events were written. About 40 bytes an event, whatever its
//! size.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::record::Mark;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// Whether an event may be in Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Never handed to librdkafka: it is not there.
    Fresh,
    /// Handed over: it may be there, and has to be looked for before it is sent (again).
    Handed,
    /// Looked for and not found.
    Missing,
    /// Kafka has it; only its place in the queue is left.
    Gone,
}

/// An event of the index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) place: Place,
    pub(super) stage: Stage,
    /// Milliseconds since 1970.
    pub(super) received_at: u64,
    /// The earliest time, by the clock of then; 0 is never.
    pub(super) handed_at: u64,
}

impl Entry {
    /// Notes that it was handed over at `at`: not always later than before, as clocks are set back.
    pub(super) fn set_handed(&mut self, at: u64) {
        if self.handed_at == 0 || at < self.handed_at {
            self.handed_at = at;
        }
    }
}

/// The events of one topic.
#[derive(Debug, Default)]
pub(super) struct TopicIndex {
    /// What is to be sent, oldest first.
    waiting: VecDeque<Entry>,
    gone: usize,
    handed: usize,
    quarantined: BTreeMap<u64, (Entry, Arc<str>)>,
    /// How many of them there are for each reason.
    reasons: BTreeMap<Arc<str>, usize>,
    /// Of both.
    pub(super) bytes: u64,
}

impl TopicIndex {
    /// Events that are to be sent.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Entry> {
        self.waiting.iter().filter(|entry| entry.stage != Stage::Gone)
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len() - self.gone
    }

    /// The number of the last one that is in this segment.
    pub(super) fn last_in(&self, segment: u32) -> Option<u64> {
        self.waiting().filter(|entry| entry.place.segment == segment).last().map(|entry| entry.seq)
    }

    /// Whether the medium has it that the event was handed over, at `now` or before.
    pub(super) fn was_handed(&self, seq: u64, now: u64) -> bool {
        let handed_at = self.position(seq).map(|at| self.waiting[at].handed_at);
        handed_at.is_some_and(|at| at != 0 && at <= now)
    }

    /// How many of them may be in Kafka.
    pub(super) fn handed_count(&self) -> usize {
        self.handed
    }

    pub(super) fn quarantined(&self) -> impl Iterator<Item = (&Entry, &Arc<str>)> {
        self.quarantined.values().map(|(entry, reason)| (entry, reason))
    }

    /// How many events are quarantined, by reason.
    pub(super) fn reasons(&self) -> &BTreeMap<Arc<str>, usize> {
        &self.reasons
    }

    fn add_quarantined(&mut self, entry: Entry, reason: &str) {
        // all events of a reason share its text
        let known = self.reasons.get_key_value(reason).map(|(known, _)| known.clone());
        let reason = known.unwrap_or_else(|| reason.into());
        *self.reasons.entry(reason.clone()).or_default() += 1;
        self.quarantined.insert(entry.seq, (entry, reason));
    }

    fn take_quarantined(&mut self, seq: u64) -> Option<Entry> {
        let (entry, reason) = self.quarantined.remove(&seq)?;
        if let Some(count) = self.reasons.get_mut(&reason) {
            *count -= 1;
            if *count == 0 {
                self.reasons.remove(&reason);
            }
        }
        Some(entry)
    }

    fn position(&self, seq: u64) -> Option<usize> {
        let at = self.waiting.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        (self.waiting[at].stage != Stage::Gone).then_some(at)
    }

    fn set_stage(&mut self, at: usize, stage: Stage) {
        let before = std::mem::replace(&mut self.waiting[at].stage, stage);
        self.gone =
            self.gone + usize::from(stage == Stage::Gone) - usize::from(before == Stage::Gone);
        self.handed = self.handed + usize::from(stage == Stage::Handed)
            - usize::from(before == Stage::Handed);
    }

    fn add(&mut self, entry: Entry) {
        self.handed += usize::from(entry.stage == Stage::Handed);
        let behind = |last: &Entry| last.seq < entry.seq;
        if self.waiting.back().is_none_or(behind) {
            return self.waiting.push_back(entry);
        }
        match self.waiting.binary_search_by_key(&entry.seq, |other| other.seq) {
            // released from quarantine before its place in the queue was cleared
            Ok(at) => {
                self.gone -= usize::from(self.waiting[at].stage == Stage::Gone);
                self.waiting[at] = entry;
            }
            Err(at) => self.waiting.insert(at, entry),
        }
    }

    fn take(&mut self, seq: u64) -> Option<Entry> {
        let at = self.position(seq)?;
        let entry = self.waiting[at];
        self.set_stage(at, Stage::Gone);
        while self.waiting.front().is_some_and(|first| first.stage == Stage::Gone) {
            self.waiting.pop_front();
            self.gone -= 1;
        }
        Some(entry)
    }
}

/// Counts over all topics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) waiting: usize,
    pub(super) quarantined: usize,
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    topics: HashMap<Arc<str>, TopicIndex>,
    totals: Totals,
    /// Bytes of events per segment.
    live: HashMap<u32, u64>,
}

impl Index {
    pub(super) fn topic(&self, name: &str) -> Option<&TopicIndex> {
        self.topics.get(name)
    }

    pub(super) fn name(&self, topic: &str) -> Option<&Arc<str>> {
        self.topics.get_key_value(topic).map(|(name, _)| name)
    }

    pub(super) fn topics(&self) -> impl Iterator<Item = (&Arc<str>, &TopicIndex)> {
        self.topics.iter()
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Bytes of events in a segment.
    pub(super) fn live_bytes(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or_default()
    }

    /// The oldest segment with events.
    pub(super) fn oldest_segment(&self) -> Option<u32> {
        self.live.iter().filter(|(_, bytes)| **bytes > 0).map(|(segment, _)| *segment).min()
    }

    /// When the oldest event that is to be sent was received.
    pub(super) fn oldest(&self) -> Option<u64> {
        let firsts = self.topics.values().filter_map(|topic| topic.waiting.front());
        firsts.map(|entry| entry.received_at).min()
    }

    /// Takes an event in. `reason`: it is quarantined.
    pub(super) fn insert(&mut self, topic: &str, entry: Entry, reason: Option<Arc<str>>) {
        let bytes = u64::from(entry.place.length);
        *self.live.entry(entry.place.segment).or_default() += bytes;
        let topic = match self.topics.get_mut(topic) {
            Some(known) => known,
            None => self.topics.entry(topic.into()).or_default(),
        };
        topic.bytes += bytes;
        self.totals.bytes += bytes;
        match reason {
            Some(reason) => {
                self.totals.quarantined += 1;
                topic.add_quarantined(entry, &reason);
            }
            None => {
                self.totals.waiting += 1;
                topic.add(entry);
            }
        }
    }

    /// Applies a mark to one event. False: it does not apply, the event is not there or not in that
    /// state.
    pub(super) fn apply(&mut self, topic: &str, seq: u64, mark: &Mark) -> bool {
        let Some(found) = self.topics.get_mut(topic) else {
            return false;
        };
        match mark {
            Mark::Handed(at) => {
                let Some(position) = found.position(seq) else {
                    return false;
                };
                found.set_stage(position, Stage::Handed);
                found.waiting[position].set_handed(*at);
            }
            Mark::Removed => {
                let entry = if let Some(entry) = found.take(seq) {
                    self.totals.waiting -= 1;
                    entry
                } else if let Some(entry) = found.take_quarantined(seq) {
                    self.totals.quarantined -= 1;
                    entry
                } else {
                    return false;
                };
                self.forget(topic, &entry);
            }
            Mark::Discarded => {
                let Some(entry) = found.take_quarantined(seq) else {
                    return false;
                };
                self.totals.quarantined -= 1;
                self.forget(topic, &entry);
            }
            Mark::Quarantined(reason) => {
                let Some(entry) = found.take(seq) else {
                    return false;
                };
                found.add_quarantined(entry, reason);
                self.totals.waiting -= 1;
                self.totals.quarantined += 1;
            }
            Mark::Released => {
                let Some(entry) = found.take_quarantined(seq) else {
                    return false;
                };
                found.add(entry);
                self.totals.waiting += 1;
                self.totals.quarantined -= 1;
            }
        }
        true
    }

    /// An event that was looked for is not in Kafka.
    pub(super) fn set_missing(&mut self, topic: &str, seq: u64) {
        let topic = self.topics.get_mut(topic);
        if let Some((topic, at)) = topic.and_then(|t| t.position(seq).map(|at| (t, at))) {
            topic.set_stage(at, Stage::Missing);
        }
    }

    /// The record of an event was copied to another place.
    pub(super) fn move_to(&mut self, topic: &str, seq: u64, place: Place) {
        let Some(topic) = self.topics.get_mut(topic) else { return };
        let entry = match topic.position(seq) {
            Some(at) => &mut topic.waiting[at],
            None => match topic.quarantined.get_mut(&seq) {
                Some((entry, _)) => entry,
                None => return,
            },
        };
        let bytes = u64::from(entry.place.length);
        if let Some(live) = self.live.get_mut(&entry.place.segment) {
            *live -= bytes;
        }
        let added = u64::from(place.length);
        *self.live.entry(place.segment).or_default() += added;
        topic.bytes = topic.bytes - bytes + added;
        self.totals.bytes = self.totals.bytes - bytes + added;
        entry.place = place;
    }

    /// The events of a segment, with their topics and what keeps them from being sent.
    pub(super) fn of_segment(&self, segment: u32) -> Vec<(Arc<str>, Entry, Option<Arc<str>>)> {
        let mut found = Vec::new();
        for (name, topic) in &self.topics {
            let waiting = topic.waiting().map(|entry| (entry, None));
            let quarantined =
                topic.quarantined().map(|(entry, reason)| (entry, Some(reason.clone())));
            let here = waiting.chain(quarantined).filter(|(e, _)| e.place.segment == segment);
            found.extend(here.map(|(entry, reason)| (name.clone(), *entry, reason)));
        }
        found.sort_by_key(|(_, entry, _)| entry.seq);
        found
    }

    pub(super) fn forget_segment(&mut self, segment: u32) {
        self.live.remove(&segment);
    }

    fn forget(&mut self, topic: &str, entry: &Entry) {
        let bytes = u64::from(entry.place.length);
        if let Some(live) = self.live.get_mut(&entry.place.segment) {
            *live -= bytes;
        }
        self.totals.bytes -= bytes;
        if let Some(found) = self.topics.get_mut(topic) {
            found.bytes -= bytes;
            if found.waiting.is_empty() && found.quarantined.is_empty() {
                self.topics.remove(topic);
            }
        }
    }
}
