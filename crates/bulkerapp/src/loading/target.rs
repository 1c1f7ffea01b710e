//! What is loaded, and where to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use tracing::{info, warn};
use warehouse::{LoadError, StreamOptions, postgres::Postgres};

use super::{metrics, offsets::Offsets};

/// One partition of a topic that this instance loads.
#[derive(Debug)]
pub struct OwnedTopic {
    pub name: String,
    pub partition: i32,
    pub destination_id: String,
    /// `batch` or `stream`, as in the topic's name.
    pub mode: &'static str,
    pub table: String,
    claimed: AtomicBool,
}

impl OwnedTopic {
    pub fn new(name: &str, destination_id: &str, mode: &'static str, table: &str) -> OwnedTopic {
        OwnedTopic {
            name: name.to_owned(),
            partition: 0,
            destination_id: destination_id.to_owned(),
            mode,
            table: table.to_owned(),
            claimed: AtomicBool::new(false),
        }
    }

    /// Whether Kafka acknowledged a start of ours since this instance owns the topic.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Relaxed)
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
    /// Spreads the runs over the whole period.
    pub spread_tables: bool,
    guarantee: AtomicU8,
}

const UNKNOWN: u8 = 0;
const EXACTLY_ONCE: u8 = 1;
const AT_LEAST_ONCE: u8 = 2;

impl LoadTarget {
    /// `defaults` are period in seconds and records per batch, for a destination that names none.
    pub fn new(
        destination_id: &str,
        postgres: Postgres,
        options: StreamOptions,
        (period, batch_size): (i64, u64),
    ) -> LoadTarget {
        // minutes, cut to whole seconds
        #[allow(clippy::cast_possible_truncation)]
        let own_period = (options.frequency * 60.0) as i64;
        let positive = |own: i64, default: u64| {
            u64::try_from(own).ok().filter(|own| *own > 0).unwrap_or(default)
        };
        LoadTarget {
            destination_id: destination_id.to_owned(),
            postgres,
            batch_size: positive(options.batch_size, batch_size),
            batch_size_bytes: positive(options.batch_size_bytes, 0),
            period: if own_period > 0 { own_period } else { period },
            spread_tables: options.spread_tables_schedule,
            options: Arc::new(options),
            guarantee: AtomicU8::new(UNKNOWN),
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
}
