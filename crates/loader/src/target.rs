//! Destinations, as the loader needs them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{info, warn};
use warehouse::{Ledger, LoadError, Origin, StreamOptions, Warehouse};

use crate::observe::metrics;

/// How often decided states of refused events are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// The destinations that can be loaded into at one moment.
#[derive(Default)]
pub struct OpenTargets(HashMap<String, Arc<LoadTarget>>);

impl OpenTargets {
    /// The destination of this id; `None`: it is not configured, or cannot be opened.
    pub fn get(&self, destination_id: &str) -> Option<&Arc<LoadTarget>> {
        self.0.get(destination_id)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LoadTarget>> {
        self.0.values()
    }
}

impl FromIterator<Arc<LoadTarget>> for OpenTargets {
    fn from_iter<T: IntoIterator<Item = Arc<LoadTarget>>>(targets: T) -> OpenTargets {
        let by_id = |target: Arc<LoadTarget>| (target.destination_id.clone(), target);
        OpenTargets(targets.into_iter().map(by_id).collect())
    }
}

/// Where the loader gets its destinations: implemented by the configuration.
pub trait TargetSource: Send + Sync + 'static {
    /// The destinations as they are configured now. Called often, so cheap; the same pointer until
    /// something changes.
    fn targets(&self) -> Arc<OpenTargets>;
}

/// A destination, as the loader needs it.
pub struct LoadTarget {
    /// Its id.
    pub destination_id: String,
    /// Where its tables are.
    pub warehouse: Warehouse,
    /// The options of its events; a record's `stream_options` go on top.
    pub options: Arc<StreamOptions>,
    /// Records per batch.
    pub batch_size: u64,
    /// Bytes of Kafka values per batch; 0 is no limit.
    pub batch_size_bytes: u64,
    /// Seconds between two runs over a table's topic.
    pub period: i64,
    /// Seconds between two runs over the destination's retry topic.
    pub retry_period: i64,
    /// Spreads the runs over the whole period.
    pub spread_tables: bool,
    /// Why there is no ledger, and what helps.
    at_least_once: Mutex<Option<String>>,
    /// Whether this instance ever kept one.
    has_ledger: AtomicBool,
    remember_states: Duration,
    forgot_at: Mutex<Option<Instant>>,
    /// Tails that load at a time; runs are counted by the loader.
    tail_permits: Semaphore,
}

/// For destinations that do not say it themselves.
#[derive(Debug, Clone, Copy)]
pub struct TargetDefaults {
    /// Seconds between two runs over a table's topic.
    pub period: i64,
    /// Seconds between two runs over a retry topic.
    pub retry_period: i64,
    /// Records per batch.
    pub batch_size: u64,
    /// How long the decided state of a refused event is remembered: longer than any copy of it
    /// lives in Kafka.
    pub remember_states: Duration,
    /// Stream topics of one destination that are loaded at a time, besides runs.
    pub tail_loads: usize,
}

/// What gives a destination its ledger.
const WAY_OUT: &str = "with CREATE on the default schema, or the tables of the operations guide, loading is exactly-once";

impl LoadTarget {
    /// The destination with what its options say of its runs, and the defaults for what they do not
    /// say.
    pub fn new(
        destination_id: &str,
        warehouse: Warehouse,
        options: StreamOptions,
        defaults: TargetDefaults,
    ) -> LoadTarget {
        // minutes, cut to whole seconds
        #[allow(clippy::cast_possible_truncation)]
        let period = |minutes: f64, default: i64| match (minutes * 60.0) as i64 {
            own if own > 0 => own,
            _ => default,
        };
        let positive = |own: i64, default: u64| {
            u64::try_from(own).ok().filter(|own| *own > 0).unwrap_or(default)
        };
        LoadTarget {
            destination_id: destination_id.to_owned(),
            warehouse,
            batch_size: positive(options.batch_size, defaults.batch_size),
            batch_size_bytes: positive(options.batch_size_bytes, 0),
            period: period(options.frequency, defaults.period),
            retry_period: period(options.retry_frequency, defaults.retry_period),
            spread_tables: options.spread_tables_schedule,
            options: Arc::new(options),
            at_least_once: Mutex::default(),
            has_ledger: AtomicBool::new(false),
            remember_states: defaults.remember_states,
            forgot_at: Mutex::default(),
            tail_permits: Semaphore::new(defaults.tail_loads),
        }
    }

    /// The destination's ledger, opened anew for each run: the database may have been restored or
    /// replaced. `None`: there never was a right to make it; loads are at-least-once then, which is
    /// said once and shown in a gauge. A right that is lost is an error: what was promised is held
    /// and not weakened.
    pub(crate) async fn ledger(&self) -> Result<Option<Ledger>, LoadError> {
        match self.warehouse.ledger().await {
            Ok(ledger) => {
                if self.set_at_least_once(None).is_some() {
                    info!(destination_id = self.destination_id, "offsets table usable again");
                }
                self.has_ledger.store(true, Ordering::Relaxed);
                metrics::set_exactly_once(&self.destination_id, true);
                self.forget_old_states(&ledger).await?;
                Ok(Some(ledger))
            }
            Err(error) if error.is_permission_denied() => {
                let is_lost = self.has_ledger.load(Ordering::Relaxed)
                    || self.warehouse.ledger_rights().await?.is_there;
                if is_lost {
                    return Err(error);
                }
                let reason = appbase::telemetry::chain(&error).to_string();
                if self.set_at_least_once(Some(format!("{reason}; {WAY_OUT}"))).is_none() {
                    warn!(
                        destination_id = self.destination_id,
                        error = reason,
                        "no right to keep the offsets table; loading at-least-once. Grant CREATE on the \
                         default schema, or make the tables of the operations guide"
                    );
                }
                metrics::set_exactly_once(&self.destination_id, false);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Events that waited, and are dead letters now because their topics do not take them back;
    /// each with how often its copy had been refused.
    /// Without a ledger there is nothing to note.
    pub(crate) async fn note_dead_letters(
        &self,
        letters: &[(Origin, u32)],
        reason: &str,
    ) -> Result<(), LoadError> {
        match self.ledger().await? {
            Some(ledger) => ledger.dead_letter(letters, reason).await,
            None => Ok(()),
        }
    }

    /// Why the last run could keep no ledger, and what helps; `None`: it could.
    pub(crate) fn at_least_once(&self) -> Option<String> {
        self.at_least_once.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what was so before.
    fn set_at_least_once(&self, reason: Option<String>) -> Option<String> {
        let mut known = self.at_least_once.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut known, reason)
    }

    /// One of the tails that load into this destination at a time. `None` never comes: the
    /// semaphore is not closed.
    pub(crate) async fn tail_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.tail_permits.acquire().await.ok()
    }

    /// Now and then, forgets what became of events whose copies are all gone.
    async fn forget_old_states(&self, ledger: &Ledger) -> Result<(), LoadError> {
        {
            let mut forgot_at = self.forgot_at.lock().unwrap_or_else(PoisonError::into_inner);
            if forgot_at.is_some_and(|at| at.elapsed() < FORGET_EVERY) {
                return Ok(());
            }
            *forgot_at = Some(Instant::now());
        }
        ledger.forget_events(self.remember_states.as_secs()).await
    }
}
