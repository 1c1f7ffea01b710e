//! The destinations as the loader needs them: opened once, by id, kept as long as their
//! configuration stays.
//!
//! Invariants: who got a target may use it to its end, whatever the configuration says by then (its
//! connections close with the last user); and one that cannot be opened is tried again, and named
//! in `/health` until it can.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use appbase::{backoff::Backoff, telemetry::chain};
use arc_swap::ArcSwap;
use loader::{LoadTarget, OpenTargets, TargetDefaults, TargetSource};
use tracing::{error, info};
use warehouse::Warehouse;

use super::{Destination, Destinations, Snapshot};
use crate::metrics;

/// The pause after a first attempt to open a destination; the next ones are twice as long each, up
/// to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// All targets, following the configuration.
pub struct Targets {
    destinations: Arc<Destinations>,
    /// To each destination.
    connections: u32,
    defaults: TargetDefaults,
    opened: ArcSwap<Opened>,
    /// Held while destinations are opened, so that each is opened once.
    opening: Mutex<()>,
}

/// What was opened for one state of the configuration.
#[derive(Default)]
struct Opened {
    snapshot: Arc<Snapshot>,
    /// The same pointer as long as nothing changes.
    targets: Arc<OpenTargets>,
    /// What each target was opened from, by id.
    opened_from: HashMap<String, Arc<Destination>>,
    failed: HashMap<String, Failed>,
}

#[derive(Clone)]
struct Failed {
    of: Arc<Destination>,
    again_at: Instant,
    backoff: Backoff,
}

impl TargetSource for Targets {
    fn targets(&self) -> Arc<OpenTargets> {
        let opened = self.opened.load();
        let is_due = !opened.failed.is_empty() && opened.has_due(Instant::now());
        if !self.destinations.is_current(&opened.snapshot) || is_due {
            self.open(Instant::now());
        }
        self.opened.load().targets.clone()
    }
}

impl Targets {
    /// Opens all destinations that can be loaded; nothing is connected yet. Needs a runtime.
    pub fn new(
        destinations: Arc<Destinations>,
        connections: u32,
        defaults: TargetDefaults,
    ) -> Targets {
        let targets = Targets {
            destinations,
            connections,
            defaults,
            opened: ArcSwap::default(),
            opening: Mutex::default(),
        };
        targets.open(Instant::now());
        targets
    }

    /// The destination as it is configured now. `None`: it is not configured, or not one that can
    /// be loaded.
    pub fn get(&self, destination_id: &str) -> Option<Arc<LoadTarget>> {
        self.targets().get(destination_id).cloned()
    }

    /// Opens what is new or changed, and what failed long enough ago.
    fn open(&self, now: Instant) {
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.opened.load();
        let snapshot = self.destinations.snapshot();
        let mut after = Opened { snapshot: snapshot.clone(), ..Opened::default() };
        let mut targets = Vec::new();
        for destination in snapshot.iter().filter(|destination| destination.is_loadable()) {
            let id = &destination.config.id;
            let opened_from = before.opened_from.get(id);
            let known = before.targets.get(id).filter(|_| {
                opened_from.is_some_and(|opened_from| Arc::ptr_eq(opened_from, destination))
            });
            if let Some(known) = known {
                targets.push(known.clone());
                after.opened_from.insert(id.clone(), destination.clone());
                continue;
            }
            let failed = before.failed.get(id).filter(|f| Arc::ptr_eq(&f.of, destination));
            if let Some(failed) = failed.filter(|failed| failed.again_at > now) {
                after.failed.insert(id.clone(), failed.clone());
                continue;
            }
            match self.open_one(destination) {
                Ok(target) => {
                    if before.failed.contains_key(id) {
                        info!(destination_id = id, "destination can be opened");
                    }
                    targets.push(Arc::new(target));
                    after.opened_from.insert(id.clone(), destination.clone());
                }
                Err(problem) => {
                    metrics::DESTINATION_INIT_ERRORS.with_label_values(&[id]).inc();
                    if failed.is_none() {
                        error!(
                            destination_id = id,
                            problem, "destination cannot be opened; its events wait"
                        );
                    }
                    self.destinations.set_not_opened(id, Some(problem));
                    let first = || Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                    let mut backoff = failed.map_or_else(first, |failed| failed.backoff.clone());
                    let again_at = now + backoff.next_pause();
                    let of = destination.clone();
                    after.failed.insert(id.clone(), Failed { of, again_at, backoff });
                }
            }
        }
        for id in before.failed.keys().filter(|id| !after.failed.contains_key(*id)) {
            self.destinations.set_not_opened(id, None);
        }
        after.targets = Arc::new(targets.into_iter().collect());
        self.opened.store(Arc::new(after));
    }

    fn open_one(&self, destination: &Destination) -> Result<LoadTarget, String> {
        let kind = destination.kind().ok_or("this version does not load that type")?;
        // two more: building a key on a table with rows takes a second connection, and the counters
        // are asked for
        let connections = self.connections + 2;
        // the value is not shown: it is a secret
        let warehouse = Warehouse::open(kind, &destination.config.credentials, connections)
            .map_err(|error| chain(&error).to_string())?;
        let options = destination.options.clone();
        Ok(LoadTarget::new(&destination.config.id, warehouse, options, self.defaults))
    }
}

impl Opened {
    fn has_due(&self, now: Instant) -> bool {
        self.failed.values().any(|failed| failed.again_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::destinations::samples;

    fn destination(id: &str, schema: &str, frequency: f64) -> Value {
        json!({
            "id": id, "type": "postgres",
            "credentials": {"host": "localhost", "database": "d", "defaultSchema": schema},
            "options": {"frequency": frequency},
        })
    }

    fn targets(value: Value) -> (Arc<Destinations>, Targets) {
        let destinations = Arc::new(samples::destinations(value));
        let defaults = TargetDefaults {
            period: 300,
            retry_period: 300,
            batch_size: 10_000,
            remember_states: Duration::from_secs(3600),
            tail_loads: 1,
        };
        (destinations.clone(), Targets::new(destinations, 1, defaults))
    }

    #[tokio::test]
    async fn only_what_changed_is_opened_anew() {
        let one = destination("one", "s", 1.0);
        let (destinations, targets) =
            targets(json!([one, destination("two", "s", 1.0), {"id": "x", "type": "other"}]));
        let (first, changing) = (targets.get("one").unwrap(), targets.get("two").unwrap());
        assert!(targets.get("x").is_none());
        assert!(Arc::ptr_eq(&targets.targets(), &targets.targets()));

        samples::configure(&destinations, json!([one, destination("two", "s", 2.0)]));
        assert!(Arc::ptr_eq(&first, &targets.get("one").unwrap()));
        let changed = targets.get("two").unwrap();
        assert!(!Arc::ptr_eq(&changing, &changed));
        assert_eq!((changing.period, changed.period), (60, 120));

        samples::configure(&destinations, json!([destination("two", "s", 2.0)]));
        assert!(targets.get("one").is_none());
        assert!(Arc::ptr_eq(&changed, &targets.get("two").unwrap()));
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_named_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let mut with_file = destination("one", "s", 1.0);
        with_file["credentials"]["sslMode"] = json!("verify-full");
        with_file["credentials"]["sslServerCA"] = json!(file.to_str().unwrap());
        let (destinations, targets) = targets(json!([with_file, destination("two", "", 1.0)]));
        assert!(targets.get("one").is_none());
        let problems = destinations.problems();
        assert!(problems[0].starts_with("one: ") && problems[0].contains("ca.pem"), "{problems:?}");
        assert!(problems[1].starts_with("two: "), "{problems:?}");

        // the file arrives: the next attempt finds it, and not before
        std::fs::write(&file, "").unwrap();
        let now = Instant::now();
        targets.open(now + FIRST_PAUSE / 2);
        assert!(targets.get("one").is_none());
        targets.open(now + FIRST_PAUSE * 2);
        assert!(targets.get("one").is_some());
        assert!(!destinations.problems()[0].starts_with("one: "), "{:?}", destinations.problems());

        // a repaired configuration does not wait for an attempt
        samples::configure(&destinations, json!([destination("two", "s", 1.0)]));
        assert!(targets.get("two").is_some());
        assert!(destinations.problems().is_empty());
    }
}
