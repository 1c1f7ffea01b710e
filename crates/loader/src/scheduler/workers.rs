//! Who runs next: of the topics that are due the one that waits longest, as far as its destination
//! may have workers.
//!
//! Invariant: one destination never has all workers, so one whose database hangs leaves some to the
//! others; one that cannot be reached has a single worker, which finds out when it is back.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::topic::OwnedTopic;

/// Workers, and what waits for one.
#[derive(Debug)]
pub(super) struct Workers {
    total: usize,
    per_destination: usize,
    busy: usize,
    /// By the id of the destination.
    lanes: HashMap<String, Lane>,
}

/// The topics of one destination.
#[derive(Debug, Default)]
struct Lane {
    /// Each with the time since when it is due; longest waiting first.
    waiting: VecDeque<(i64, Arc<OwnedTopic>)>,
    busy: usize,
    is_unreachable: bool,
}

impl Workers {
    pub(super) fn new(total: usize, per_destination: usize) -> Workers {
        Workers { total, per_destination, busy: 0, lanes: HashMap::new() }
    }

    pub(super) fn are_all_busy(&self) -> bool {
        self.busy >= self.total
    }

    /// What is due now, in place of what was due before: topics, each with the time since when.
    pub(super) fn queue(&mut self, mut due: Vec<(i64, Arc<OwnedTopic>)>) {
        self.lanes.retain(|_, lane| {
            lane.waiting.clear();
            lane.busy > 0 || lane.is_unreachable
        });
        due.sort_unstable_by_key(|(since, _)| *since);
        for (since, topic) in due {
            self.lane(&topic.destination_id).waiting.push_back((since, topic));
        }
    }

    /// The topic that gets the next free worker, which is busy from now on.
    pub(super) fn next(&mut self) -> Option<Arc<OwnedTopic>> {
        if self.are_all_busy() {
            return None;
        }
        let usual = self.per_destination;
        let has_worker = |lane: &&mut Lane| lane.busy < if lane.is_unreachable { 1 } else { usual };
        let lanes = self.lanes.values_mut().filter(has_worker);
        let longest = lanes
            .filter_map(|lane| lane.waiting.front().map(|(since, _)| *since).zip(Some(lane)))
            .min_by_key(|(since, _)| *since);
        let (_, lane) = longest?;
        let (_, topic) = lane.waiting.pop_front()?;
        lane.busy += 1;
        self.busy += 1;
        Some(topic)
    }

    /// A worker is free again.
    pub(super) fn release(&mut self, destination_id: &str) {
        self.busy -= 1;
        self.lane(destination_id).busy -= 1;
    }

    /// Whether the destination could be reached lately.
    pub(super) fn set_unreachable(&mut self, destination_id: &str, is_unreachable: bool) {
        if is_unreachable || self.lanes.contains_key(destination_id) {
            self.lane(destination_id).is_unreachable = is_unreachable;
        }
    }

    fn lane(&mut self, destination_id: &str) -> &mut Lane {
        self.lanes.entry(destination_id.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use kafkabase::TopicMode;

    use super::*;

    fn topic(destination: &str, name: &str) -> Arc<OwnedTopic> {
        Arc::new(OwnedTopic::new(name, destination, TopicMode::Batch, name))
    }

    fn started(workers: &mut Workers) -> Vec<String> {
        std::iter::from_fn(|| workers.next()).map(|topic| topic.name.clone()).collect()
    }

    #[test]
    fn those_that_wait_longest_run_first() {
        let mut workers = Workers::new(2, 2);
        workers.queue(vec![
            (3, topic("a", "third")),
            (1, topic("b", "first")),
            (2, topic("a", "second")),
        ]);
        assert_eq!(started(&mut workers), ["first", "second"]);
        workers.release("b");
        assert_eq!(started(&mut workers), ["third"]);
    }

    #[test]
    fn one_destination_leaves_workers_to_the_others() {
        let mut workers = Workers::new(4, 3);
        let mut due: Vec<_> = (0..9).map(|n| (n, topic("greedy", &format!("g{n}")))).collect();
        due.push((99, topic("modest", "m")));
        workers.queue(due);
        assert_eq!(started(&mut workers), ["g0", "g1", "g2", "m"]);
        workers.release("modest");
        assert!(workers.next().is_none(), "the free worker is not for the greedy one");
    }

    #[test]
    fn one_worker_looks_after_a_destination_that_cannot_be_reached() {
        let mut workers = Workers::new(4, 3);
        let due: Vec<_> = (0..9).map(|n| (n, topic("down", &format!("d{n}")))).collect();
        workers.set_unreachable("down", true);
        workers.queue(due);
        assert_eq!(started(&mut workers), ["d0"]);
        workers.release("down");
        workers.set_unreachable("down", false);
        assert_eq!(started(&mut workers), ["d1", "d2", "d3"]);
    }
}
