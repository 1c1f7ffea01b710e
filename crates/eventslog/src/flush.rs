//! Writing the buffer out, again and again, and a last time at the stop.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    StoreError,
    event::EventType,
    metrics::Reason,
    shared::{Shared, Store},
};

/// Pause between two writes.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Pause between two lines of the log that say the same.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// An entry that the store does not take, now or later, and why.
pub(crate) type Refused = (EventType, StoreError);

/// Writes what was posted. The binary runs it as a task of its own.
#[derive(Debug)]
pub struct Flusher {
    shared: Arc<Shared>,
    every: Duration,
}

impl Flusher {
    pub(crate) fn new(shared: Arc<Shared>) -> Flusher {
        Flusher { shared, every: FLUSH_EVERY }
    }

    /// With another pause between two writes.
    #[must_use]
    pub fn every(self, every: Duration) -> Flusher {
        Flusher { every, ..self }
    }

    /// Writes until `stop`, and then once more. Takes a few seconds more at the stop when the store
    /// hangs; what cannot be written then is lost.
    pub async fn run(self, stop: CancellationToken) {
        let mut complaints = Complaints::default();
        let mut turns = interval(self.every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_over = false;
        while !is_over {
            tokio::select! {
                biased;
                () = stop.cancelled() => is_over = true,
                _ = turns.tick() => {}
                // an outage is not asked about more often than that
                () = self.shared.early.notified(), if complaints.failures == 0 => {}
            }
            match self.flush().await {
                Ok(refused) => complaints.written(&refused),
                Err(error) => complaints.failed(&error),
            }
        }
        let lost = self.shared.take().len();
        if lost > 0 {
            warn!(lost, "entries of the events log could not be written before the end");
        }
    }

    /// Writes everything that waits, or keeps it. What comes back was refused for good.
    async fn flush(&self) -> Result<Vec<Refused>, StoreError> {
        let taken = self.shared.take();
        if taken.is_empty() {
            return Ok(Vec::new());
        }
        let written = match &self.shared.store {
            Store::None => Ok(Vec::new()),
            Store::Redis(redis) => redis.write(&taken).await,
            Store::ClickHouse(clickhouse) => clickhouse.write(&taken).await.map(|()| Vec::new()),
        };
        match &written {
            Ok(refused) => {
                self.shared.stored();
                for (kind, error) in refused {
                    self.shared.metrics.error(error.label());
                    self.shared.drop_one(*kind, Reason::Refused);
                }
            }
            Err(error) => {
                self.shared.metrics.error(error.label());
                self.shared.put_back(taken);
            }
        }
        written
    }
}

/// What is in the log about failures: when they begin, that they last, when they are over.
#[derive(Debug, Default)]
struct Complaints {
    /// Writes in a row that failed.
    failures: u64,
    failure_said: Option<Instant>,
    refusal_said: Option<Instant>,
}

impl Complaints {
    fn failed(&mut self, error: &StoreError) {
        self.failures += 1;
        if is_due(&mut self.failure_said) {
            let failures = self.failures;
            warn!(error = %error, failures, "events log cannot be written: the first events are kept");
        }
    }

    fn written(&mut self, refused: &[Refused]) {
        if self.failures > 0 {
            info!(failures = self.failures, "events log is written again");
            (self.failures, self.failure_said) = (0, None);
        }
        let Some((kind, error)) = refused.first() else { return };
        if is_due(&mut self.refusal_said) {
            let (kind, entries) = (kind.as_str(), refused.len());
            warn!(error = %error, kind, entries, "entries of the events log are refused and dropped");
        }
    }
}

/// Whether to say it again.
fn is_due(said: &mut Option<Instant>) -> bool {
    let is_due = said.is_none_or(|said| said.elapsed() >= COMPLAIN_EVERY);
    if is_due {
        *said = Some(Instant::now());
    }
    is_due
}
