//! The spool as a service and its operators use it: opening, closing, measuring, and commands.
//!
//! A folder belongs to one process. A command about a folder that a running process has leaves a
//! request there, which that process carries out; where no process has it, the command does the
//! work itself. Names of metrics, and where destinations come from, are the binary's.

mod command;
mod requests;

use std::sync::Arc;

use appbase::lifecycle::Deadline;
use prometheus::IntGauge;
use tracing::{info, warn};

pub use self::{
    command::{SpoolBegun, SpoolCommand, SpoolCommandError, SpoolDiscard, SpoolWork},
    requests::watch_spool_requests,
};
use crate::{KafkaConfig, Spool, SpoolMetrics, SpoolOpenError, SpoolUse, TopicMaker};

impl SpoolUse {
    /// Opens the spool that the settings name; `None` where they name none. `topics` makes a topic
    /// before its events are replayed. Needs a runtime, as [`Spool::open`] does.
    pub fn open(
        kafka: &KafkaConfig,
        topics: Arc<dyn TopicMaker>,
        metrics: SpoolMetrics,
    ) -> Result<Option<SpoolUse>, SpoolOpenError> {
        let Some(settings) = kafka.spool() else {
            info!("no spool (SPOOL_DIR): events that kafka does not take in time are refused");
            return Ok(None);
        };
        let spool = Spool::open(&settings, metrics)?;
        let status = spool.status();
        info!(
            folder = %settings.folder.display(),
            waiting = status.waiting,
            quarantined = status.quarantined,
            bytes = status.bytes,
            "spool opened"
        );
        Ok(Some(SpoolUse { spool, topics, lookup_wait: kafka.spool_lookup_wait_ms }))
    }
}

impl Spool {
    /// Writes what is only in memory, within the deadline, and logs what stays for the next start.
    /// Dropped, or late, it leaves a spool that looks for its last events at the next start.
    pub async fn close(&self, deadline: Deadline) {
        if !matches!(deadline.cut(self.sync()).await, Some(Ok(()))) {
            warn!(
                "the spool forgets which of its last events kafka has; they are looked for at the \
                 next start"
            );
        }
        let waiting = self.status().waiting;
        if waiting > 0 {
            info!(waiting, "events stay in the spool and are sent after the next start");
        }
    }
}

/// Gauges of a spool; registered by the binary under its own names.
#[derive(Debug, Clone)]
pub struct SpoolGauges {
    /// Events that are not in Kafka yet, or not known to be.
    pub waiting: IntGauge,
    /// Events that Kafka refused for good.
    pub quarantined: IntGauge,
    /// Bytes of all files.
    pub bytes: IntGauge,
    /// Seconds since the oldest waiting event came.
    pub age: IntGauge,
}

impl SpoolGauges {
    /// Sets the gauges to what the spool is now.
    pub fn measure(&self, spool: &Spool) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let status = spool.status();
        self.waiting.set(gauge(status.waiting as u64));
        self.quarantined.set(gauge(status.quarantined as u64));
        self.bytes.set(gauge(status.bytes));
        self.age.set(gauge(status.oldest_age.as_secs()));
    }
}
