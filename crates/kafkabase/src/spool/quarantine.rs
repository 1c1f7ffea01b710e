//! Events that Kafka refused for good: how they get in, and the two ways out.
//!
//! Invariant: nothing leaves the quarantine but on an operator's word. What is discarded is gone on
//! the medium once the call returns; an event that was released meanwhile is not discarded.

use super::{Op, QuarantinedTopic, Spool, SpoolError, record::Mark};

impl Spool {
    /// Puts events away that Kafka refused for good, with the reason.
    pub(crate) fn quarantine(&self, topic: &str, seq: u64, reason: &str) {
        let mark = Mark::Quarantined(reason.to_owned());
        let mut books = self.shared.books();
        if let Some(pending) = books.pending.get_mut(&seq) {
            *pending = Some(mark);
            return;
        }
        // in memory at once: the topic moves on. A crash before the mark is written finds the event
        // handed over
        if !books.index.apply(topic, seq, &mark) {
            return;
        }
        books.queue.push(Op::Mark {
            topic: topic.into(),
            mark,
            seqs: vec![seq],
            done: Box::new(|_| {}),
        });
        drop(books);
        self.shared.wake.notify_one();
        self.count("quarantined", 1);
    }

    /// Takes a topic's events out of the quarantine; all topics' where none is named. Returns their
    /// topics. After an error, and dropped, it may have released some of them.
    pub async fn release(&self, topic: Option<&str>) -> Result<Vec<String>, SpoolError> {
        let mut released = Vec::new();
        for (name, seqs) in self.numbers_of_quarantined(topic) {
            let count = seqs.len();
            self.mark(&name, Mark::Released, seqs).await?;
            self.count("released", count);
            released.push(name);
        }
        Ok(released)
    }

    /// Forgets a topic's events that are in quarantine, for good; all topics' where none is named.
    /// Returns what they were. After an error, and dropped, it may have forgotten some of them.
    pub async fn discard(&self, topic: Option<&str>) -> Result<Vec<QuarantinedTopic>, SpoolError> {
        let is_asked = |found: &QuarantinedTopic| topic.is_none_or(|topic| topic == found.topic);
        let found: Vec<_> = self.quarantined().into_iter().filter(is_asked).collect();
        for (name, seqs) in self.numbers_of_quarantined(topic) {
            let count = seqs.len();
            self.mark(&name, Mark::Discarded, seqs).await?;
            self.count("discarded", count);
        }
        Ok(found)
    }

    fn numbers_of_quarantined(&self, topic: Option<&str>) -> Vec<(String, Vec<u64>)> {
        let books = self.shared.books();
        let topics = books.index.topics().filter(|(name, index)| {
            !index.reasons().is_empty() && topic.is_none_or(|topic| topic == name.as_ref())
        });
        let numbers = topics.map(|(name, index)| {
            (name.to_string(), index.quarantined().map(|(entry, _)| entry.seq).collect())
        });
        numbers.collect()
    }
}
