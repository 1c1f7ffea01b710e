//! What is loaded, and where to.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use kafkabase::TopicMode;
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{info, warn};
use warehouse::{LoadError, StreamOptions, postgres::Postgres};

use super::{metrics, offsets::Offsets, retries::RetryState};

/// How often old fates are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// How long it is told that another loader was at work.
const OVERTAKEN_FOR: Duration = Duration::from_secs(600);

/// One partition of a topic that this instance loads.
#[derive(Debug)]
pub struct OwnedTopic {
    pub name: String,
    pub partition: i32,
    /// Empty for the retry topic that all destinations share.
    pub destination_id: String,
    /// What is done with it: loaded in batches, loaded as it comes, or moved back.
    pub mode: TopicMode,
    pub table: String,
    /// Of a retry topic.
    pub(super) retries: Mutex<RetryState>,
    claimed: AtomicBool,
    /// How far the topic is loaded, as far as this instance knows.
    loaded_to: AtomicI64,
    overtaken: Mutex<Option<Instant>>,
    /// The offset that Kafka's group is known to have, with our mark.
    told: AtomicI64,
    /// The end of the topic, as it was seen last.
    end: AtomicI64,
    speed: Mutex<Speed>,
    pub(super) suspicion: Mutex<Suspicion>,
}

/// One event may ask for a change of the table that cannot be made. It is looked for by smaller and smaller batches.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Records per batch while it is looked for.
    pub(super) batch_size: Option<u64>,
    /// It is the record at this offset, with the reason.
    pub(super) found: Option<(i64, String)>,
}

impl Suspicion {
    /// A batch from this offset failed for what one of its events asks for. Batches get smaller, until it is alone.
    pub(super) fn failed(&mut self, first_offset: i64, records: u64, reason: String) {
        if records > 1 {
            self.batch_size = Some((records / 10).max(1));
        } else {
            self.found = Some((first_offset, reason));
        }
    }

    /// The reason, if a batch that begins here is the event that was looked for.
    pub(super) fn take(&mut self, first_offset: i64, records: u64) -> Option<String> {
        let is_it = self.found.as_ref().is_some_and(|(found, _)| *found == first_offset);
        if !is_it || records != 1 {
            return None;
        }
        self.batch_size = None;
        self.found.take().map(|(_, reason)| reason)
    }
}

/// Messages per second, over the last full window.
#[derive(Debug, Default)]
struct Speed {
    since: Option<Instant>,
    count: u64,
    last: f64,
}

/// How long a speed is measured.
const SPEED_WINDOW: Duration = Duration::from_secs(10);

impl OwnedTopic {
    pub fn new(name: &str, destination_id: &str, mode: TopicMode, table: &str) -> OwnedTopic {
        OwnedTopic {
            name: name.to_owned(),
            partition: 0,
            destination_id: destination_id.to_owned(),
            mode,
            table: table.to_owned(),
            retries: Mutex::default(),
            claimed: AtomicBool::new(false),
            loaded_to: AtomicI64::new(0),
            overtaken: Mutex::default(),
            told: AtomicI64::new(-1),
            end: AtomicI64::new(0),
            speed: Mutex::default(),
            suspicion: Mutex::default(),
        }
    }

    /// Whether Kafka acknowledged a start of ours since this instance owns the topic.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Relaxed)
    }

    pub(super) fn loaded_to(&self) -> i64 {
        self.loaded_to.load(Ordering::Relaxed)
    }

    pub(super) fn set_loaded_to(&self, offset: i64) {
        self.loaded_to.store(offset, Ordering::Relaxed);
    }

    pub(super) fn set_told(&self, offset: i64) {
        self.told.store(offset, Ordering::Relaxed);
    }

    /// Whether Kafka's group is known to stand where the topic does.
    pub(super) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed) == self.loaded_to()
    }

    pub(super) fn set_end(&self, offset: i64) {
        self.end.store(offset, Ordering::Relaxed);
    }

    pub(super) fn end(&self) -> i64 {
        self.end.load(Ordering::Relaxed)
    }

    /// Messages that wait, as far as is known.
    pub(super) fn queue_size(&self) -> u64 {
        let waiting = self.end() - self.loaded_to();
        u64::try_from(waiting).unwrap_or(0)
    }

    /// Counts messages of this moment.
    pub(super) fn count(&self, messages: u64) {
        let mut speed = self.speed.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *speed.since.get_or_insert_with(Instant::now);
        speed.count += messages;
        let elapsed = since.elapsed();
        if elapsed >= SPEED_WINDOW {
            #[allow(clippy::cast_precision_loss)] // it is shown with a digit or two
            let last = speed.count as f64 / elapsed.as_secs_f64();
            *speed = Speed { since: Some(Instant::now()), count: 0, last };
        }
    }

    /// Messages per second.
    pub(super) fn speed(&self) -> f64 {
        self.speed.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    pub(super) fn set_claimed(&self) {
        self.claimed.store(true, Ordering::Relaxed);
    }

    /// Another loader moved the row while we loaded: it happens when a topic changes hands, and again and again where
    /// two instances were given the same part.
    pub(super) fn set_overtaken(&self) {
        *self.overtaken.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        metrics::count_overtaken(self);
    }

    /// Whether that happened lately.
    pub(super) fn was_overtaken(&self) -> bool {
        let overtaken = self.overtaken.lock().unwrap_or_else(PoisonError::into_inner);
        overtaken.is_some_and(|at| at.elapsed() < OVERTAKEN_FOR)
    }
}

/// A destination, as the loader needs it.
pub struct LoadTarget {
    pub destination_id: String,
    pub postgres: Postgres,
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
    /// Why there are no offsets rows, and what helps.
    at_least_once: Mutex<Option<String>>,
    remember_fates: Duration,
    forgot_at: Mutex<Option<Instant>>,
    /// Tails that load at a time; runs are counted by the loader.
    tail_loads: Semaphore,
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
    /// How long the fate of a refused event is remembered: longer than any copy of it lives in Kafka.
    pub remember_fates: Duration,
    /// Stream topics of one destination that are loaded at a time, besides runs.
    pub tail_loads: usize,
}

/// What gives a destination its offsets rows.
const WAY_OUT: &str = "with CREATE on the default schema, or the tables of the operations guide, loading is exactly-once";

impl LoadTarget {
    pub fn new(
        destination_id: &str,
        postgres: Postgres,
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
            postgres,
            batch_size: positive(options.batch_size, defaults.batch_size),
            batch_size_bytes: positive(options.batch_size_bytes, 0),
            period: period(options.frequency, defaults.period),
            retry_period: period(options.retry_frequency, defaults.retry_period),
            spread_tables: options.spread_tables_schedule,
            options: Arc::new(options),
            at_least_once: Mutex::default(),
            remember_fates: defaults.remember_fates,
            forgot_at: Mutex::default(),
            tail_loads: Semaphore::new(defaults.tail_loads),
        }
    }

    /// The destination's offsets table, opened anew for each run: the database may have been restored or
    /// replaced. `None`: no right to make it; loads are at-least-once then, which is said once and shown in a
    /// gauge.
    pub(super) async fn offsets(&self) -> Result<Option<Offsets>, LoadError> {
        match Offsets::open(&self.postgres).await {
            Ok(offsets) => {
                if self.set_at_least_once(None).is_some() {
                    info!(destination_id = self.destination_id, "offsets table usable again");
                }
                metrics::set_exactly_once(&self.destination_id, true);
                self.forget_old_fates(&offsets).await?;
                Ok(Some(offsets))
            }
            Err(error) if error.is_permission_denied() => {
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

    /// Why the last run could keep no offsets rows, and what helps; `None`: it could.
    pub(super) fn at_least_once(&self) -> Option<String> {
        self.at_least_once.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what was so before.
    fn set_at_least_once(&self, reason: Option<String>) -> Option<String> {
        let mut known = self.at_least_once.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut known, reason)
    }

    /// A place among the tails that load into this destination. `None` never comes: the semaphore is not closed.
    pub(super) async fn load_slot(&self) -> Option<SemaphorePermit<'_>> {
        self.tail_loads.acquire().await.ok()
    }

    /// Now and then, forgets what became of events whose copies are all gone.
    async fn forget_old_fates(&self, offsets: &Offsets) -> Result<(), LoadError> {
        {
            let mut forgot_at = self.forgot_at.lock().unwrap_or_else(PoisonError::into_inner);
            if forgot_at.is_some_and(|at| at.elapsed() < FORGET_EVERY) {
                return Ok(());
            }
            *forgot_at = Some(Instant::now());
        }
        offsets.forget_origins(self.remember_fates.as_secs()).await
    }
}
