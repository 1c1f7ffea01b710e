//! What an operator should know of the spool.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::{Spool, index::TopicIndex, millis};

/// The problem of a disk that takes marks only.
const FULL: &str = "the disk is full";

/// The spool at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Events that are not in Kafka yet, or not known to be.
    pub waiting: usize,
    /// Topics that have some.
    pub topics: usize,
    /// How long the oldest of them is here.
    pub oldest_age: Duration,
    /// Events that Kafka refused for good.
    pub quarantined: usize,
    /// Of all files.
    pub bytes: u64,
    /// Whether it has room, and a disk that works.
    pub takes: bool,
    /// What the disk said, until it takes something again.
    pub problem: Option<String>,
}

/// A topic with events that Kafka refused for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedTopic {
    /// The topic's name.
    pub topic: String,
    /// How many events, by reason.
    pub reasons: BTreeMap<String, usize>,
}

impl Spool {
    /// What the spool is at this moment. Cheap: no file is looked at.
    pub fn status(&self) -> SpoolStatus {
        let books = self.shared.books();
        let totals = books.index.totals();
        let bytes = books.file_bytes + books.pending_total;
        let oldest = books.index.oldest();
        let now = millis(SystemTime::now());
        SpoolStatus {
            waiting: totals.waiting,
            topics: books.index.topics().filter(|(_, topic)| topic.waiting_count() > 0).count(),
            oldest_age: Duration::from_millis(oldest.map_or(0, |at| now.saturating_sub(at))),
            quarantined: totals.quarantined,
            bytes,
            takes: books.problem.is_none() && !books.is_low && bytes < self.room(),
            problem: books.problem.clone().or_else(|| books.is_low.then(|| FULL.to_owned())),
        }
    }

    /// Topics with events in quarantine, by name. Counts are kept, so that no event is looked at.
    pub fn quarantined(&self) -> Vec<QuarantinedTopic> {
        let books = self.shared.books();
        let topics = books.index.topics().filter(|(_, topic)| !topic.reasons().is_empty());
        let mut found: Vec<_> =
            topics.map(|(name, topic)| quarantined_topic(name, topic)).collect();
        found.sort_by(|a, b| a.topic.cmp(&b.topic));
        found
    }
}

fn quarantined_topic(name: &str, topic: &TopicIndex) -> QuarantinedTopic {
    let reasons = topic.reasons().iter().map(|(reason, count)| (reason.to_string(), *count));
    QuarantinedTopic { topic: name.to_owned(), reasons: reasons.collect() }
}
