//! The destinations as the loader needs them: opened once, by id, kept as long as their configuration stays.
//!
//! Invariants: whoever got a target may use it to its end, whatever the configuration says by then (its connections
//! close with the last user); and one that cannot be opened is tried again, and named in `/health` until it can.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use appbase::telemetry::chain;
use arc_swap::ArcSwap;
use tracing::{error, info};
use warehouse::postgres::{Credentials, Postgres, Settings};

use super::target::LoadTarget;
use crate::{
    destinations::{Destination, Destinations, Snapshot},
    metrics,
};

/// Pauses between attempts to open a destination: doubled from the first to the last.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// How destinations are opened.
#[derive(Debug, Clone)]
pub struct TargetSettings {
    /// Connections to each destination.
    pub connections: u32,
    /// Seconds between two runs over a topic, for a destination that names none.
    pub period: i64,
    /// Records per batch, for a destination that names none.
    pub batch_size: u64,
}

/// All targets, following the configuration.
pub struct Targets {
    destinations: Arc<Destinations>,
    settings: TargetSettings,
    opened: ArcSwap<Opened>,
    /// Held while destinations are opened, so that each is opened once.
    opening: Mutex<()>,
}

/// What was opened for one state of the configuration. The same pointer as long as nothing changes.
#[derive(Default)]
pub struct Opened {
    snapshot: Arc<Snapshot>,
    targets: HashMap<String, Target>,
    failed: HashMap<String, Failed>,
}

struct Target {
    of: Arc<Destination>,
    target: Arc<LoadTarget>,
}

#[derive(Clone)]
struct Failed {
    of: Arc<Destination>,
    again_at: Instant,
    pause: Duration,
}

impl Opened {
    pub fn get(&self, destination_id: &str) -> Option<&Arc<LoadTarget>> {
        self.targets.get(destination_id).map(|opened| &opened.target)
    }
}

impl Targets {
    /// Opens all destinations that can be loaded; nothing is connected yet. Needs a runtime.
    pub fn new(destinations: Arc<Destinations>, settings: TargetSettings) -> Targets {
        let targets = Targets {
            destinations,
            settings,
            opened: ArcSwap::default(),
            opening: Mutex::default(),
        };
        targets.open(Instant::now());
        targets
    }

    /// The destination as it is configured now. `None`: it is not configured, or not one that can be loaded.
    pub fn get(&self, destination_id: &str) -> Option<Arc<LoadTarget>> {
        self.opened().get(destination_id).cloned()
    }

    /// All of them, as they are configured now.
    pub fn opened(&self) -> Arc<Opened> {
        let opened = self.opened.load();
        let is_due = !opened.failed.is_empty() && opened.has_due(Instant::now());
        if self.destinations.is_current(&opened.snapshot) && !is_due {
            return Arc::clone(&opened);
        }
        self.open(Instant::now());
        self.opened.load_full()
    }

    /// Opens what is new or changed, and what failed long enough ago.
    fn open(&self, now: Instant) {
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.opened.load();
        let snapshot = self.destinations.snapshot();
        let mut after = Opened { snapshot: snapshot.clone(), ..Opened::default() };
        for destination in snapshot.iter().filter(|destination| destination.is_loadable()) {
            let id = &destination.config.id;
            if let Some(known) = before.targets.get(id).filter(|t| Arc::ptr_eq(&t.of, destination))
            {
                let target = known.target.clone();
                after.targets.insert(id.clone(), Target { of: destination.clone(), target });
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
                    let target = Target { of: destination.clone(), target: Arc::new(target) };
                    after.targets.insert(id.clone(), target);
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
                    let (first, last) = RETRY_PAUSES;
                    let pause = failed.map_or(first, |failed| (failed.pause * 2).min(last));
                    let again_at = now + pause;
                    let of = destination.clone();
                    after.failed.insert(id.clone(), Failed { of, again_at, pause });
                }
            }
        }
        for id in before.failed.keys().filter(|id| !after.failed.contains_key(*id)) {
            self.destinations.set_not_opened(id, None);
        }
        self.opened.store(Arc::new(after));
    }

    fn open_one(&self, destination: &Destination) -> Result<LoadTarget, String> {
        let TargetSettings { connections, period, batch_size } = self.settings;
        // the value is not shown: it is a secret
        let credentials = Credentials::read(&destination.config.credentials)
            .map_err(|error| chain(&error).to_string())?;
        // one more: building a key on a table with rows takes a second connection
        let settings = Settings { max_connections: connections + 1, ..Settings::default() };
        let postgres =
            Postgres::new(&credentials, settings).map_err(|error| chain(&error).to_string())?;
        let options = destination.options.clone();
        Ok(LoadTarget::new(&destination.config.id, postgres, options, (period, batch_size)))
    }
}

impl Opened {
    fn has_due(&self, now: Instant) -> bool {
        self.failed.values().any(|failed| failed.again_at <= now)
    }
}
