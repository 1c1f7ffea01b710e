//! What this instance loads: batch topics of configured destinations, by the static shard rule.

use std::sync::{Arc, Mutex, PoisonError};

use kafkabase::{Mode, fnv1a};
use tracing::error;

use super::{
    loader::{LoadSource, TopicSchedule},
    metrics,
    target::{LoadTarget, OwnedTopic},
    targets::{Opened, Targets},
};
use crate::topics::{TopicSnapshot, Topics};

/// The topics of the last look at the cluster that belong to this shard.
pub struct OwnedTopics {
    topics: Arc<Topics>,
    targets: Arc<Targets>,
    shard: Shard,
    shared_retry: SharedRetry,
    owned: Mutex<OwnedOfSnapshot>,
}

/// The owned topics of one state of cluster and configuration; found anew only when that is another one.
#[derive(Default)]
struct OwnedOfSnapshot {
    of: Option<(Arc<TopicSnapshot>, Arc<Opened>)>,
    topics: Vec<Arc<OwnedTopic>>,
}

/// The retry topic that all destinations share.
#[derive(Debug, Clone)]
pub struct SharedRetry {
    pub topic: String,
    /// Seconds between two runs over it.
    pub period: i64,
}

/// Which topics are ours among several instances: `fnv1a(topic) % count == index`.
#[derive(Debug, Clone, Copy)]
pub struct Shard {
    pub index: u32,
    /// At least 1.
    pub count: u32,
}

impl Shard {
    fn owns(self, topic: &str) -> bool {
        fnv1a(topic) % self.count == self.index % self.count
    }
}

impl OwnedTopics {
    pub fn new(
        topics: Arc<Topics>,
        targets: Arc<Targets>,
        shard: Shard,
        shared_retry: SharedRetry,
    ) -> OwnedTopics {
        OwnedTopics { topics, targets, shard, shared_retry, owned: Mutex::default() }
    }

    fn find(&self, snapshot: &TopicSnapshot, opened: &Opened) -> Vec<Arc<OwnedTopic>> {
        let mut owned = Vec::new();
        for topic in snapshot.topics.values() {
            let is_ours = matches!(topic.id.mode, Mode::Batch | Mode::Retry)
                && opened.get(&topic.id.destination_id).is_some()
                && self.shard.owns(&topic.name);
            if !is_ours {
                continue;
            }
            let (mode, table) = (topic.id.mode, topic.id.table.as_str());
            let found = OwnedTopic::new(&topic.name, &topic.id.destination_id, mode, table);
            if topic.partitions == 1 {
                owned.push(Arc::new(found));
            } else {
                metrics::count_error(&found, "invalid_partitions_count");
                error!(
                    topic = topic.name,
                    partitions = topic.partitions,
                    "topic is not loaded: it must have one partition"
                );
            }
        }
        let shared = &self.shared_retry.topic;
        if snapshot.has_shared_retry && self.shard.owns(shared) {
            owned.push(Arc::new(OwnedTopic::new(shared, "", Mode::Retry, "")));
        }
        owned
    }
}

impl LoadSource for OwnedTopics {
    fn owned_topics(&self) -> Vec<Arc<OwnedTopic>> {
        let snapshot = self.topics.snapshot();
        let opened = self.targets.opened();
        let mut cached = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = cached.of.as_ref().is_some_and(|(topics, targets)| {
            Arc::ptr_eq(topics, &snapshot) && Arc::ptr_eq(targets, &opened)
        });
        if !is_same {
            cached.topics = self.find(&snapshot, &opened);
            cached.of = Some((snapshot, opened));
        }
        cached.topics.clone()
    }

    fn schedule(&self, topic: &OwnedTopic) -> Option<TopicSchedule> {
        if topic.destination_id.is_empty() {
            let id = format!("{}_{}", topic.name, self.shard.index % self.shard.count);
            return Some(TopicSchedule {
                id,
                period: self.shared_retry.period,
                spread_tables: false,
            });
        }
        let target = self.targets.get(&topic.destination_id)?;
        let period = match topic.mode {
            Mode::Retry => target.retry_period,
            _ => target.period,
        };
        let (id, spread_tables) = (topic.destination_id.clone(), target.spread_tables);
        Some(TopicSchedule { id, period, spread_tables })
    }

    fn target(&self, destination_id: &str) -> Option<Arc<LoadTarget>> {
        self.targets.get(destination_id)
    }
}
