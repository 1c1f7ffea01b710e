//! What is to be sent next, from the index and the files.

use std::io;

use tracing::error;

use super::{
    Spool, SpoolError, Stage,
    index::{Entry, TopicIndex},
    record::SpooledEvent,
};
use crate::names_collide;

/// The reason of an event that cannot be read back.
const DAMAGED: &str = "the spooled event is damaged";

impl Spool {
    /// Topics with events that are to be sent, and how many.
    pub(crate) fn waiting_topics(&self) -> Vec<(String, usize)> {
        let books = self.shared.books();
        let topics = books.index.topics().map(|(name, topic)| (name, topic.waiting_count()));
        let waiting = topics.filter(|(_, count)| *count > 0);
        waiting.map(|(name, count)| (name.to_string(), count)).collect()
    }

    /// A topic with events, also such as are just being written, whose name keeps one of this name
    /// from being made.
    pub fn colliding_with(&self, topic: &str) -> Option<String> {
        let books = self.shared.books();
        let written = books.index.topics().map(|(name, _)| name);
        let mut all = written.chain(books.pending_bytes.keys());
        all.find(|other| names_collide(topic, other)).map(ToString::to_string)
    }

    /// Whether some of the topic's events may be in Kafka.
    pub(crate) fn has_handed(&self, topic: &str) -> bool {
        self.shared.books().index.topic(topic).is_some_and(|topic| topic.handed_count() > 0)
    }

    /// Whether all events of a topic are at most so many, with so many bytes.
    pub(crate) fn fits(&self, topic: &str, events: usize, bytes: usize) -> bool {
        let books = self.shared.books();
        let Some(index) = books.index.topic(topic) else { return true };
        index.waiting_count() <= events
            && index.waiting().map(|entry| entry.place.length as usize).sum::<usize>() <= bytes
    }

    /// The numbers of a topic's events that are to be sent.
    pub(crate) fn waiting(&self, topic: &str) -> Vec<u64> {
        let books = self.shared.books();
        let waiting = books.index.topic(topic).map(|index| index.waiting().map(|entry| entry.seq));
        waiting.map(Iterator::collect).unwrap_or_default()
    }

    /// Whether events of the topic are on their way to the medium.
    pub(crate) fn has_pending(&self, topic: &str) -> bool {
        self.shared.books().pending_bytes.contains_key(topic)
    }

    /// Whether nothing of the topic is to be sent, now or once it is written.
    pub(crate) fn is_clear(&self, topic: &str) -> bool {
        let books = self.shared.books();
        let waiting = books.index.topic(topic).map_or(0, |index| index.waiting_count());
        waiting == 0 && !books.pending_bytes.contains_key(topic)
    }

    /// Whether events of the topic may be sent now. On a full disk there is room for few marks, so
    /// that those topics come first, and go no further, that keep the oldest file from being
    /// deleted.
    pub(crate) fn is_turn_of(&self, topic: &str) -> bool {
        self.last_sendable(topic).is_some()
    }

    /// The number of the last event of the topic that may be sent now.
    fn last_sendable(&self, topic: &str) -> Option<u64> {
        let books = self.shared.books();
        if !books.is_low {
            return Some(u64::MAX);
        }
        // what comes before it may have been copied to a newer file: the order counts
        books.index.topic(topic)?.last_in(books.index.oldest_segment()?)
    }

    /// The oldest events of a topic up to `bytes`, at least one where one may be sent, and not
    /// beyond one that has to be looked for.
    pub(crate) async fn first(
        &self,
        topic: &str,
        events: usize,
        bytes: usize,
    ) -> Result<Vec<SpooledEvent>, SpoolError> {
        let mut left = bytes;
        let Some(last) = self.last_sendable(topic) else { return Ok(Vec::new()) };
        self.read(topic, move |index| {
            let is_sendable = |entry: &&Entry| entry.stage != Stage::Handed && entry.seq <= last;
            let sendable = index.waiting().take_while(is_sendable);
            let within = sendable.take(events).enumerate().take_while(|(number, entry)| {
                let length = entry.place.length as usize;
                let fits = *number == 0 || length <= left;
                left = left.saturating_sub(length);
                fits
            });
            within.map(|(_, entry)| *entry).collect()
        })
        .await
    }

    /// All events of a topic that may be in Kafka.
    pub(crate) async fn handed(&self, topic: &str) -> Result<Vec<SpooledEvent>, SpoolError> {
        self.read(topic, |index| {
            index.waiting().filter(|entry| entry.stage == Stage::Handed).copied().collect()
        })
        .await
    }

    /// Reads the events that `choose` picks. One that is damaged is put into quarantine and left
    /// out.
    async fn read(
        &self,
        topic: &str,
        choose: impl FnOnce(&TopicIndex) -> Vec<Entry> + Send + 'static,
    ) -> Result<Vec<SpooledEvent>, SpoolError> {
        let (spool, topic) = (self.clone(), topic.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let located: Vec<_> = {
                // the writer moves events while it holds the log
                let log = spool.shared.log();
                let books = spool.shared.books();
                let Some(index) = books.index.topic(&topic) else { return Ok(Vec::new()) };
                let chosen = choose(index).into_iter();
                chosen.map(|entry| (entry, log.locate(entry.place))).collect()
            };
            let mut events = Vec::with_capacity(located.len());
            for (entry, located) in located {
                let read = located.map(|located| located.read());
                match read {
                    Some(Ok(mut event)) => {
                        event.facts.handed_at = entry.handed_at; // a mark may have said so later
                        events.push(event);
                    }
                    Some(Err(error)) if error.kind() != io::ErrorKind::InvalidData => {
                        error!(error = %error, "spool file cannot be read");
                        return Err(SpoolError::Disk);
                    }
                    _ => spool.quarantine(&topic, entry.seq, DAMAGED),
                }
            }
            Ok(events)
        });
        read.await.unwrap_or(Err(SpoolError::Disk))
    }
}
