//! What the service does beside its parts: measuring while it runs, flushing when it stops.

use std::{sync::Arc, time::Duration};

use appbase::lifecycle::{Deadline, Parts};
use kafkabase::{AckProducer, Spool};
use loader::TargetSource;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::parts::Shared;
use crate::{
    destinations::{ConfigurationStatus, Targets},
    intake::spool,
    metrics,
};

/// How often the producer's queue is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// What has gauges and reports no change by itself.
pub(super) struct Measured {
    producer: AckProducer,
    configuration: watch::Receiver<ConfigurationStatus>,
    targets: Arc<Targets>,
}

impl Measured {
    /// All of it that the service has.
    pub(super) fn of(shared: &Shared) -> Measured {
        Measured {
            producer: shared.producer.clone(),
            configuration: shared.configuration.clone(),
            targets: shared.targets.clone(),
        }
    }

    /// Keeps gauges true until `stop`, and targets open where nothing is loaded.
    pub(super) async fn measure(self, stop: CancellationToken) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        loop {
            metrics::PRODUCER_QUEUE_LENGTH.set(gauge(self.producer.queue_length()));
            metrics::PRODUCER_BLOCKED_TOPICS.set(gauge(self.producer.blocked_topics()));
            if let Some(spool) = self.producer.spool() {
                spool::measure(spool);
            }
            let age = self.configuration.borrow().age().unwrap_or_default().as_secs();
            metrics::CONFIGURATION_AGE.set(i64::try_from(age).unwrap_or(i64::MAX));
            self.targets.targets(); // opens what is new
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(MEASURE_EVERY) => {}
            }
        }
    }
}

/// Adds the steps by which queued events get to Kafka or to the disk, once no request waits for
/// them: what is added after this is stopped before it.
pub(super) fn flush_on_stop(parts: &mut Parts, producer: &AckProducer) {
    match producer.spool().cloned() {
        Some(spool) => flush_with_spool(parts, producer.clone(), spool),
        None => flush_without_spool(parts, producer.clone()),
    }
}

fn flush_with_spool(parts: &mut Parts, producer: AckProducer, spool: Spool) {
    parts.on_stop("spool files", async move |deadline: Deadline| {
        spool.close(deadline).await;
    });
    parts.on_stop("producer", async move |deadline: Deadline| {
        // what Kafka does not take now is safe: the loader gets the rest of the time
        producer.flush(deadline.remaining() / 2).await;
    });
}

fn flush_without_spool(parts: &mut Parts, producer: AckProducer) {
    parts.on_stop("producer", async move |deadline: Deadline| {
        let unsent = producer.flush(deadline.remaining()).await;
        if unsent > 0 {
            warn!(unsent, "events that were never answered with 200 stay unsent");
        }
    });
}
