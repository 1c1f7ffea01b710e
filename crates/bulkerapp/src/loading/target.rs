//! What is loaded, and where to.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use kafkabase::Mode;
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{info, warn};
use warehouse::{LoadError, StreamOptions, postgres::Postgres};

use super::{metrics, offsets::Offsets, retries::RetryState};

/// How often old fates are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// One partition of a topic that this instance loads.
#[derive(Debug)]
pub struct OwnedTopic {
    pub name: String,
    pub partition: i32,
    /// Empty for the retry topic that all destinations share.
    pub destination_id: String,
    /// What is done with it: loaded in batches, loaded as it comes, or moved back.
    pub mode: Mode,
    pub table: String,
    /// Of a retry topic.
    pub(super) retries: Mutex<RetryState>,
    claimed: AtomicBool,
    /// How far the tail of a stream topic is loaded.
    loaded_to: AtomicI64,
}

impl OwnedTopic {
    pub fn new(name: &str, destination_id: &str, mode: Mode, table: &str) -> OwnedTopic {
        OwnedTopic {
            name: name.to_owned(),
            partition: 0,
            destination_id: destination_id.to_owned(),
            mode,
            table: table.to_owned(),
            retries: Mutex::default(),
            claimed: AtomicBool::new(false),
            loaded_to: AtomicI64::new(0),
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

    pub(super) fn set_claimed(&self) {
        self.claimed.store(true, Ordering::Relaxed);
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
    guarantee: AtomicU8,
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

const UNKNOWN: u8 = 0;
const EXACTLY_ONCE: u8 = 1;
const AT_LEAST_ONCE: u8 = 2;

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
            guarantee: AtomicU8::new(UNKNOWN),
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
                if self.guarantee.swap(EXACTLY_ONCE, Ordering::Relaxed) == AT_LEAST_ONCE {
                    info!(destination_id = self.destination_id, "offsets table usable again");
                }
                metrics::set_exactly_once(&self.destination_id, true);
                self.forget_old_fates(&offsets).await?;
                Ok(Some(offsets))
            }
            Err(error) if error.is_permission_denied() => {
                if self.guarantee.swap(AT_LEAST_ONCE, Ordering::Relaxed) != AT_LEAST_ONCE {
                    warn!(
                        destination_id = self.destination_id,
                        error = %appbase::telemetry::chain(&error),
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
