//! The destinations that are in force, and what is wrong with them.
//!
//! Invariants: a reader never waits; a destination whose configuration did not change stays the
//! same `Arc`, so that the holder of something made from it sees by the pointer whether it still
//! holds; and no reader has to see every change, only the last one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{config::DestinationConfig, destination::Destination, document::Document};
use crate::metrics;

/// All destinations at one moment.
#[derive(Default)]
pub struct Snapshot {
    by_id: HashMap<String, Arc<Destination>>,
    /// What is wrong with entries rather than with a destination that came from them.
    problems: BTreeSet<String>,
}

impl Snapshot {
    /// The destination of this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Destination>> {
        self.by_id.get(id)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Destination>> {
        self.by_id.values()
    }
}

/// What a reading of the configuration did, in numbers of destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Changes {
    pub(super) added: usize,
    pub(super) changed: usize,
    pub(super) removed: usize,
}

/// The destinations. Changes while the process runs.
#[derive(Default)]
pub struct Destinations {
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<()>,
    /// Destinations that cannot be opened as they are configured, with the reason.
    not_opened: Mutex<BTreeMap<String, String>>,
}

impl Destinations {
    /// The destination as it is configured now.
    pub fn get(&self, id: &str) -> Option<Arc<Destination>> {
        self.snapshot.load().by_id.get(id).cloned()
    }

    /// All destinations; the same pointer as long as nothing changes.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Whether this is what is in force. Cheaper than to compare with [`Destinations::snapshot`].
    pub fn is_current(&self, snapshot: &Arc<Snapshot>) -> bool {
        Arc::ptr_eq(&self.snapshot.load(), snapshot)
    }

    /// Marked as changed with each new snapshot.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What operators should know, by destination or by place. Holds no secret.
    pub fn problems(&self) -> Vec<String> {
        let snapshot = self.snapshot.load();
        let of_destinations = snapshot.by_id.values().flat_map(|destination| {
            destination
                .problems
                .iter()
                .map(|problem| format!("{}: {problem}", destination.config.id))
        });
        let mut problems = snapshot.problems.clone();
        problems.extend(of_destinations);
        let not_opened = self.not_opened.lock().unwrap_or_else(PoisonError::into_inner);
        problems.extend(not_opened.iter().map(|(id, problem)| format!("{id}: {problem}")));
        problems.into_iter().collect()
    }

    /// Says of a destination that it cannot be opened, or (`None`) that it could.
    pub(crate) fn set_not_opened(&self, id: &str, problem: Option<String>) {
        let mut not_opened = self.not_opened.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => not_opened.insert(id.to_owned(), problem),
            None => not_opened.remove(id),
        };
    }

    /// Puts a document in force. Only what differs from before is touched, counted and logged.
    pub(super) fn apply(&self, document: &Document) -> Changes {
        let before = self.snapshot();
        let after = build(document, &before);
        let changes = compare(&before, &after);
        if changes == Changes::default() && before.problems == after.problems {
            return changes;
        }
        for (status, count) in
            [("added", changes.added), ("changed", changes.changed), ("removed", changes.removed)]
        {
            metrics::DESTINATIONS.with_label_values(&[status]).inc_by(count as u64);
        }
        for problem in after.problems.difference(&before.problems) {
            metrics::CONFIGURATION_ERRORS.with_label_values(&["parse_error"]).inc();
            error!(problem, "destination is not configured as it should be");
        }
        self.snapshot.store(Arc::new(after));
        self.changed.send_replace(());
        changes
    }
}

fn build(document: &Document, before: &Snapshot) -> Snapshot {
    let mut after = Snapshot::default();
    for found in &document.0 {
        let (id, destination) = match (found.config(), found.id()) {
            (Ok(config), _) => (config.id.clone(), unchanged_or_new(config, before)),
            (Err(problem), None) => {
                after.problems.insert(format!("{}: {problem}", found.place));
                continue;
            }
            (Err(problem), Some(id)) => {
                let known = before.get(id).filter(|known| known.is_readable);
                let destination = match known {
                    Some(known) => {
                        let kept = "not readable now, its last readable configuration counts";
                        after.problems.insert(format!("{id}: {problem}; {kept}"));
                        known.clone()
                    }
                    None => unreadable(id, &problem.to_string(), before),
                };
                (id.to_owned(), destination)
            }
        };
        if after.by_id.insert(id.clone(), destination).is_some() {
            after.problems.insert(format!("{id}: configured twice; the last one counts"));
        }
    }
    after
}

fn unchanged_or_new(config: DestinationConfig, before: &Snapshot) -> Arc<Destination> {
    let known = before.get(&config.id);
    match known.filter(|known| known.config == config && known.is_readable) {
        Some(known) => known.clone(),
        None => Arc::new(Destination::new(config)),
    }
}

fn unreadable(id: &str, problem: &str, before: &Snapshot) -> Arc<Destination> {
    let known = before.get(id);
    match known.filter(|known| !known.is_readable && known.problems == [problem]) {
        Some(known) => known.clone(),
        None => Arc::new(Destination::unreadable(id, problem.to_owned())),
    }
}

fn compare(before: &Snapshot, after: &Snapshot) -> Changes {
    let mut changes = Changes::default();
    for (id, destination) in &after.by_id {
        match before.by_id.get(id) {
            Some(known) if Arc::ptr_eq(known, destination) => continue,
            Some(_) => {
                changes.changed += 1;
                log(destination, "destination changed");
            }
            None => {
                changes.added += 1;
                log(destination, "destination configured");
            }
        }
    }
    for id in before.by_id.keys().filter(|id| !after.by_id.contains_key(*id)) {
        changes.removed += 1;
        warn!(destination_id = id, "destination removed; what its topics still hold waits there");
    }
    changes
}

fn log(destination: &Destination, message: &'static str) {
    let config = &destination.config;
    info!(
        destination_id = config.id,
        kind = config.kind,
        updated_at = config.updated_at.as_deref().unwrap_or_default(),
        "{message}"
    );
    if !destination.is_readable {
        metrics::CONFIGURATION_ERRORS.with_label_values(&["parse_error"]).inc();
    }
    for problem in &destination.problems {
        metrics::DESTINATION_INIT_ERRORS.with_label_values(&[&config.id]).inc();
        error!(destination_id = config.id, problem, "destination is not as configured");
    }
}

#[cfg(test)]
mod tests {
    use kafkabase::TopicMode;
    use serde_json::{Value, json};

    use super::*;
    use crate::destinations::{document::Found, parse::DestinationProblem, samples};

    fn document(value: Value) -> Document {
        let Value::Array(elements) = value else { panic!("an array") };
        Document::of_array(elements)
    }

    /// `broken` in place of a destination that a keyed source cannot read.
    fn broken(id: &str) -> Document {
        let object = Err(DestinationProblem::Syntax("a YAML object"));
        Document(vec![Found { place: format!("row {id}"), id: Some(id.to_owned()), object }])
    }

    #[test]
    fn one_bad_destination_leaves_the_others_alone() {
        let destinations = samples::destinations(json!([
            {"id": "good", "type": "postgres", "credentials": {}},
            "s3cret",
            {"type": "postgres", "credentials": {"password": "s3cret"}},
        ]));
        assert!(destinations.get("good").is_some());
        assert_eq!(destinations.snapshot().iter().count(), 1);
        let problems = destinations.problems();
        assert_eq!(problems, ["element 1: not an object", "element 2: no `id`"]);
    }

    #[test]
    fn a_bad_option_is_reported_and_the_destination_works_without_it() {
        let destinations = samples::destinations(json!([{
            "id": "pg", "type": "postgres", "credentials": {},
            "options": {"batchSize": 7, "mode": "stream", "nope": 1},
        }]));
        let destination = destinations.get("pg").unwrap();
        assert_eq!(destination.options.batch_size, 7);
        assert_eq!(destination.mode, TopicMode::Stream);
        assert_eq!(destinations.problems(), ["pg: unknown option nope"]);
    }

    #[test]
    fn a_type_that_is_not_loaded_yet_still_takes_events() {
        let destinations =
            samples::destinations(json!([{"id": "ch", "type": "clickhouse", "credentials": {}}]));
        assert!(!destinations.get("ch").unwrap().is_loadable());
        assert_eq!(
            destinations.problems(),
            ["ch: type \"clickhouse\": this version loads destinations of type postgres only"]
        );
    }

    #[test]
    fn only_what_changed_is_another_one() {
        let one = |options: Value, updated_at: &str| json!({"id": "one", "type": "postgres", "options": options, "updatedAt": updated_at});
        let two = json!({"id": "two", "type": "postgres", "credentials": {"a": 1, "b": 2}});
        let base = one(json!({"frequency": 1}), "2026-01-01T00:00:00Z");
        let destinations = samples::destinations(json!([base, two]));
        let (first, kept) = (destinations.get("one").unwrap(), destinations.get("two").unwrap());
        let reordered = json!({"credentials": {"b": 2, "a": 1}, "type": "postgres", "id": "two"});
        for (changed, count) in [
            (base.clone(), 0),
            (one(json!({"frequency": 2}), "2026-01-01T00:00:00Z"), 1),
            (one(json!({"frequency": 2}), "2026-01-02T00:00:00Z"), 1),
        ] {
            let before = destinations.snapshot();
            let changes = destinations.apply(&document(json!([reordered, changed])));
            assert_eq!(changes, Changes { changed: count, ..Changes::default() });
            assert_eq!(destinations.is_current(&before), count == 0);
        }
        assert!(!Arc::ptr_eq(&first, &destinations.get("one").unwrap()));
        assert!(Arc::ptr_eq(&kept, &destinations.get("two").unwrap()));
    }

    #[test]
    fn of_two_with_one_id_the_last_one_counts() {
        let destinations = samples::destinations(
            json!([{"id": "one", "type": "mysql"}, {"id": "one", "type": "postgres"}]),
        );
        assert!(destinations.get("one").unwrap().is_loadable());
        assert_eq!(destinations.problems(), ["one: configured twice; the last one counts"]);
    }

    #[test]
    fn the_order_of_an_array_is_a_change() {
        let with = |hosts: Value| json!([{"id": "one", "type": "postgres", "credentials": {"hosts": hosts}}]);
        let destinations = samples::destinations(with(json!(["a", "b"])));
        let changes = destinations.apply(&document(with(json!(["b", "a"]))));
        assert_eq!(changes.changed, 1);
    }

    #[test]
    fn a_change_is_seen_however_late_one_looks() {
        let destinations = samples::destinations(json!([{"id": "one", "type": "postgres"}]));
        let changes = destinations.changes();
        assert!(!changes.has_changed().unwrap());
        destinations.apply(&document(json!([{"id": "two", "type": "postgres"}])));
        destinations.apply(&document(json!([])));
        assert!(changes.has_changed().unwrap());
        assert_eq!(destinations.snapshot().iter().count(), 0);
    }

    #[test]
    fn what_becomes_unreadable_keeps_its_last_configuration() {
        let destinations = samples::destinations(json!([{"id": "one", "type": "postgres"}]));
        let known = destinations.get("one").unwrap();
        assert_eq!(destinations.apply(&broken("one")), Changes::default());
        assert!(Arc::ptr_eq(&known, &destinations.get("one").unwrap()));
        let problems = destinations.problems();
        assert!(problems[0].starts_with("one: not a YAML object; "), "{problems:?}");
        destinations.apply(&document(json!([{"id": "one", "type": "postgres"}])));
        assert!(Arc::ptr_eq(&known, &destinations.get("one").unwrap()));
        assert!(destinations.problems().is_empty());
    }

    #[test]
    fn what_never_was_readable_takes_events_that_wait() {
        let destinations = Destinations::default();
        assert_eq!(destinations.apply(&broken("one")).added, 1);
        assert_eq!(destinations.apply(&broken("one")), Changes::default());
        assert!(!destinations.get("one").unwrap().is_loadable());
        assert_eq!(destinations.problems(), ["one: not a YAML object"]);
        let repaired = document(json!([{"id": "one", "type": "postgres"}]));
        assert_eq!(destinations.apply(&repaired).changed, 1);
        assert!(destinations.get("one").unwrap().is_loadable());
    }
}
