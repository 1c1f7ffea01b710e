//! What this instance loads: topics of configured destinations that it owns.

use std::sync::{Arc, Mutex, PoisonError};

use kafkabase::{TopicMode, TopicSnapshot, TopicView};

use super::{
    ownership::{Owned, Ownership},
    schedule::TopicSchedule,
};
use crate::{
    observe::metrics,
    target::{LoadTarget, OpenTargets, TargetSource},
    topic::OwnedTopic,
};

/// Seconds between two runs over a stream topic whose tail cannot be followed.
const STREAM_PERIOD: i64 = 1;

/// The topics of the last look at the cluster that belong to this instance.
pub struct OwnedTopics {
    topics: TopicView,
    targets: Arc<dyn TargetSource>,
    ownership: Arc<Ownership>,
    shared_retry: SharedRetry,
    owned: Mutex<OwnedOfSnapshot>,
}

/// The owned topics of one state of cluster, configuration and ownership; found anew only when that
/// is another one.
#[derive(Default)]
struct OwnedOfSnapshot {
    of: Option<(Arc<TopicSnapshot>, Arc<OpenTargets>, Owned)>,
    topics: Arc<Vec<Arc<OwnedTopic>>>,
}

/// The retry topic that all destinations share.
#[derive(Debug, Clone)]
pub struct SharedRetry {
    /// Its name.
    pub topic: String,
    /// Seconds between two runs over it.
    pub period: i64,
}

impl OwnedTopics {
    /// The topics that `ownership` gives to this instance, of those in `topics` whose destination
    /// is one of `targets`.
    pub fn new(
        topics: TopicView,
        targets: Arc<dyn TargetSource>,
        ownership: Arc<Ownership>,
        shared_retry: SharedRetry,
    ) -> OwnedTopics {
        OwnedTopics { topics, targets, ownership, shared_retry, owned: Mutex::default() }
    }

    fn find(
        &self,
        snapshot: &TopicSnapshot,
        opened: &OpenTargets,
        mine: Owned,
    ) -> Vec<Arc<OwnedTopic>> {
        let mut owned = Vec::new();
        for topic in snapshot.topics.values() {
            let is_ours =
                matches!(topic.id.mode, TopicMode::Batch | TopicMode::Stream | TopicMode::Retry)
                    && opened.get(&topic.id.destination_id).is_some()
                    && mine.contains(&topic.name);
            if !is_ours {
                continue;
            }
            let (mode, table) = (topic.id.mode, topic.id.table.as_str());
            let found = OwnedTopic::new(&topic.name, &topic.id.destination_id, mode, table);
            owned.extend(partitions(found, topic.partitions));
        }
        let shared = &self.shared_retry.topic;
        if mine.contains(shared) {
            let found = OwnedTopic::new(shared, "", TopicMode::Retry, "");
            owned.extend(partitions(found, snapshot.shared_retry_partitions));
        }
        owned
    }
}

/// All partitions of a topic. It should have one; what somebody puts into another is loaded, too.
fn partitions(topic: OwnedTopic, count: usize) -> impl Iterator<Item = Arc<OwnedTopic>> {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    (0..count).map(move |partition| Arc::new(topic.clone().with_partition(partition)))
}

impl OwnedTopics {
    /// Why topics may be nobody's.
    pub(super) fn not_shared(&self) -> Option<String> {
        self.ownership.trouble()
    }

    /// The destinations of all topics.
    pub(crate) fn targets(&self) -> Arc<dyn TargetSource> {
        self.targets.clone()
    }

    /// All of them. The same list until they, or the destinations, change.
    pub(super) fn owned_topics(&self) -> Arc<Vec<Arc<OwnedTopic>>> {
        let snapshot = self.topics.load();
        let opened = self.targets.targets();
        let mut cached = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = self.ownership.poll();
        let is_same = cached.of.as_ref().is_some_and(|(topics, targets, owned)| {
            Arc::ptr_eq(topics, &snapshot) && Arc::ptr_eq(targets, &opened) && *owned == mine
        });
        if !is_same {
            cached.topics = Arc::new(self.find(&snapshot, &opened, mine));
            metrics::OWNED_TOPICS.set(i64::try_from(cached.topics.len()).unwrap_or(i64::MAX));
            cached.of = Some((snapshot, opened, mine));
        }
        cached.topics.clone()
    }

    /// When the topic runs, as it is configured now.
    pub(super) fn schedule(&self, topic: &OwnedTopic) -> Option<TopicSchedule> {
        if topic.destination_id.is_empty() {
            // one instance owns it, whichever: the original's name of it has the number of its
            // shard
            let id = format!("{}_0", topic.name);
            return Some(TopicSchedule {
                id,
                period: self.shared_retry.period,
                spread_tables: false,
            });
        }
        let target = self.target(&topic.destination_id)?;
        let period = match topic.mode {
            TopicMode::Retry => target.retry_period,
            TopicMode::Stream => STREAM_PERIOD,
            _ => target.period,
        };
        let (id, spread_tables) = (topic.destination_id.clone(), target.spread_tables);
        Some(TopicSchedule { id, period, spread_tables })
    }

    /// The destination as it is configured now.
    pub(super) fn target(&self, destination_id: &str) -> Option<Arc<LoadTarget>> {
        self.targets.targets().get(destination_id).cloned()
    }
}
