//! What is known of the cluster's topics of this installation, shared between the one who looks and those who load.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;

use crate::topic::TopicId;

/// A topic of ours, as a look at the cluster found it.
#[derive(Debug, Clone)]
pub struct OurTopic {
    /// Its whole name.
    pub name: String,
    /// What the name says.
    pub id: TopicId,
    /// How many it has.
    pub partitions: usize,
}

/// What one look at the cluster found.
#[derive(Debug, Default)]
pub struct TopicSnapshot {
    /// When it was; `None` before the first.
    pub at: Option<(Instant, SystemTime)>,
    /// Topics of configured destinations, by name.
    pub topics: HashMap<String, OurTopic>,
    /// Topics of profile builders, which make them themselves.
    pub profiles: HashSet<String>,
    /// Whether the retry topic is there that all destinations share.
    pub has_shared_retry: bool,
    /// Whether the topic is there that holds pauses of destinations.
    pub has_pauses: bool,
    /// Our topics with fewer than two replicas.
    pub few_replicas: usize,
    /// Our topics that take an event with fewer than two replicas in sync.
    pub few_in_sync: usize,
}

/// The last look at the cluster; cheap to clone, and never waited for.
#[derive(Debug, Clone, Default)]
pub struct TopicView(Arc<ArcSwap<TopicSnapshot>>);

impl TopicView {
    /// What the last look found. The same pointer until the next one.
    pub fn load(&self) -> Arc<TopicSnapshot> {
        self.0.load_full()
    }

    /// Whether the last look found the topic. Cheaper than [`TopicView::load`].
    pub fn has(&self, topic: &str) -> bool {
        self.0.load().topics.contains_key(topic)
    }

    /// Puts a new look in the place of the last one.
    pub fn store(&self, snapshot: TopicSnapshot) {
        self.0.store(Arc::new(snapshot));
    }
}
