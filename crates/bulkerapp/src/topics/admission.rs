//! Which new topics a destination may have, and how many: names of tables are the sender's.
//!
//! Invariant: of the names of a destination that no look at the cluster has seen there are never
//! more at work (made, spooled for, counted) than would fill it to its limit. A name that nothing
//! is left of gives its place back: what became a topic is counted by the next look, what did not
//! is forgotten with its request. Of names that Kafka takes for one, one at most is at work.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kafkabase::{TopicSnapshot, names_collide};

/// Why a new name of a topic is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The destination has as many topics as it may.
    #[error("too many tables: the destination has {0} topics, and may not have more")]
    TooMany(usize),
    /// Kafka would not make it, because there is, or will be, this one.
    #[error(
        "invalid table name: kafka makes no topic for it beside {0}: it tells names apart by more \
         than dots and underscores only"
    )]
    Collides(String),
}

/// New names of all destinations.
pub(super) struct Admissions {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Topics that the last look found, by destination.
    found: HashMap<String, usize>,
    /// Names that it did not find, by destination.
    new: HashMap<String, HashMap<String, New>>,
}

/// A name that no look has seen.
#[derive(Default)]
struct New {
    /// Requests that are at work on it.
    requests: usize,
    /// Something is left of it when they end.
    is_kept: bool,
}

/// A place for a name; given back when it is dropped, unless it was kept.
pub struct Admission<'a> {
    admissions: &'a Admissions,
    destination_id: &'a str,
    topic: &'a str,
}

impl Admissions {
    /// So many topics for each destination.
    pub(super) fn new(limit: usize) -> Admissions {
        Admissions { limit, state: Mutex::default() }
    }

    /// A place for a topic that is not known to be there.
    pub(super) fn admit<'a>(
        &'a self,
        destination_id: &'a str,
        topic: &'a str,
    ) -> Result<Admission<'a>, NotAdmitted> {
        let state = &mut *self.state();
        let found = state.found.get(destination_id).copied().unwrap_or_default();
        let is_at_work = state.new.get(destination_id).is_some_and(|new| new.contains_key(topic));
        if !is_at_work {
            let mut all = state.new.values().flat_map(HashMap::keys);
            if let Some(other) = all.find(|other| names_collide(topic, other)) {
                return Err(NotAdmitted::Collides(other.clone()));
            }
        }
        let new = state.new.entry(destination_id.to_owned()).or_default();
        if !is_at_work && found + new.len() >= self.limit {
            return Err(NotAdmitted::TooMany(self.limit));
        }
        new.entry(topic.to_owned()).or_default().requests += 1;
        Ok(Admission { admissions: self, destination_id, topic })
    }

    /// What a new look found counts; names that it did not find are forgotten, but for those that
    /// requests are at work on.
    pub(super) fn store(&self, snapshot: &TopicSnapshot) {
        let state = &mut *self.state();
        state.found.clear();
        for topic in snapshot.topics.values() {
            *state.found.entry(topic.id.destination_id.clone()).or_default() += 1;
        }
        for new in state.new.values_mut() {
            new.retain(|name, new| new.requests > 0 && !snapshot.topics.contains_key(name));
        }
        state.new.retain(|_, new| !new.is_empty());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission<'_> {
    /// Something is left of the name: its place is taken until the next look.
    pub fn keep(self) {
        let state = &mut *self.admissions.state();
        let new = state.new.get_mut(self.destination_id).and_then(|new| new.get_mut(self.topic));
        if let Some(new) = new {
            new.is_kept = true;
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let state = &mut *self.admissions.state();
        let Some(new) = state.new.get_mut(self.destination_id) else { return };
        let Some(name) = new.get_mut(self.topic) else { return };
        name.requests -= 1;
        if name.requests == 0 && !name.is_kept {
            new.remove(self.topic);
        }
        if new.is_empty() {
            state.new.remove(self.destination_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use kafkabase::{OurTopic, TopicId, TopicMode};

    use super::*;

    fn look(names: &[&str]) -> TopicSnapshot {
        let topic = |name: &&str| {
            let id = TopicId::new("d", TopicMode::Batch, name, 0);
            ((*name).to_owned(), OurTopic { name: (*name).to_owned(), id, partitions: 1 })
        };
        TopicSnapshot { topics: names.iter().map(topic).collect(), ..TopicSnapshot::default() }
    }

    #[test]
    fn a_destination_has_so_many_topics_and_others_have_theirs() {
        let admissions = Admissions::new(3);
        admissions.store(&look(&["a"]));
        admissions.admit("d", "b").unwrap().keep();
        let same = admissions.admit("d", "b").unwrap();
        let _c = admissions.admit("d", "c").unwrap();
        let refused = admissions.admit("d", "e").err();
        assert_eq!(refused, Some(NotAdmitted::TooMany(3)));
        assert!(admissions.admit("other", "e").is_ok());
        drop(same);
        assert!(admissions.admit("d", "e").is_err(), "what is kept has its place");
    }

    #[test]
    fn a_name_that_nothing_is_left_of_gives_its_place_back() {
        let admissions = Admissions::new(1);
        drop(admissions.admit("d", "a").unwrap());
        drop(admissions.admit("d", "b").unwrap());
        assert!(admissions.state().new.is_empty());
        let (one, two) = (admissions.admit("d", "c").unwrap(), admissions.admit("d", "c").unwrap());
        drop(one);
        assert!(admissions.admit("d", "e").is_err(), "a request is at work on it");
        two.keep();
        assert!(admissions.admit("d", "e").is_err());
    }

    #[test]
    fn a_look_counts_what_was_made_and_forgets_what_was_not() {
        let admissions = Admissions::new(2);
        admissions.admit("d", "made").unwrap().keep();
        admissions.admit("d", "never made").unwrap().keep();
        admissions.store(&look(&["made"]));
        let at_work = admissions.admit("d", "at work").unwrap();
        admissions.store(&look(&["made"]));
        assert!(admissions.admit("d", "one more").is_err());
        drop(at_work);
        assert!(admissions.admit("d", "one more").is_ok());
    }

    #[test]
    fn of_names_that_kafka_takes_for_one_the_first_is_taken() {
        let admissions = Admissions::new(10);
        let first = admissions.admit("d", "page.view").unwrap();
        let collides = Some(NotAdmitted::Collides("page.view".to_owned()));
        for destination_id in ["d", "other"] {
            assert_eq!(admissions.admit(destination_id, "page_view").err(), collides);
        }
        admissions.admit("d", "page.view").unwrap().keep();
        drop(first);
        assert_eq!(admissions.admit("d", "page_view").err(), collides, "events of it are kept");
        // nothing became of it
        admissions.store(&look(&[]));
        assert!(admissions.admit("d", "page_view").is_ok());
    }
}
