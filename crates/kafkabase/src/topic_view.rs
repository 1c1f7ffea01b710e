//! What the last look at the cluster found, for readers that do not wait for the next one.
//!
//! Invariant: a reader never waits, and sees one look as a whole.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;

use crate::topic::{TopicId, names_collide};

/// A topic of ours, as a look at the cluster found it.
#[derive(Debug, Clone)]
pub struct OurTopic {
    /// Its full name, with the prefix.
    pub name: String,
    /// What the name says.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: usize,
}

/// What a look at the cluster found.
#[derive(Debug, Default)]
pub struct TopicSnapshot {
    /// When it was; `None` before the first.
    pub at: Option<(Instant, SystemTime)>,
    /// Our topics of configured destinations, by their full names.
    pub topics: HashMap<String, OurTopic>,
    /// Topics of profile builders, which make them themselves.
    pub profiles: HashSet<String>,
    /// The names of all other topics of the cluster, but for the profile builders'.
    pub other_names: HashSet<String>,
    /// How many partitions the retry topic has that all destinations share; 0: it is not there.
    pub shared_retry_partitions: usize,
    /// Whether the topic is there that holds pauses of destinations.
    pub has_pauses: bool,
    /// Our topics with fewer than two replicas.
    pub few_replicas: usize,
    /// Our topics that take an event with fewer than two replicas in sync.
    pub few_in_sync: usize,
}

impl TopicSnapshot {
    /// A topic whose name keeps one of this name from being made.
    pub fn colliding_with(&self, name: &str) -> Option<&str> {
        let all = self.topics.keys().chain(&self.profiles).chain(&self.other_names);
        all.map(String::as_str).find(|other| names_collide(name, other))
    }
}

/// A handle on the last snapshot. Clones see what any of them stored.
#[derive(Debug, Clone, Default)]
pub struct TopicView(Arc<ArcSwap<TopicSnapshot>>);

impl TopicView {
    /// The last snapshot. It stays as it is while it is held; the same `Arc` comes until the next
    /// look.
    pub fn load(&self) -> Arc<TopicSnapshot> {
        self.0.load_full()
    }

    /// Whether the last look found this topic of ours. Cheaper than [`TopicView::load`]: each
    /// posted event asks.
    pub fn has(&self, topic: &str) -> bool {
        self.0.load().topics.contains_key(topic)
    }

    /// Shows a new snapshot to all readers. For the one that looks at the cluster.
    pub fn store(&self, snapshot: TopicSnapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_in_hand_stays_while_all_views_show_the_next_one() {
        let view = TopicView::default();
        let (other, before) = (view.clone(), view.load());
        assert!(Arc::ptr_eq(&before, &other.load()));
        view.store(TopicSnapshot { few_replicas: 3, ..TopicSnapshot::default() });
        assert_eq!((before.few_replicas, other.load().few_replicas), (0, 3));
    }
}
