//! librdkafka's producer: its settings, and a new one when an error ended it.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    error::KafkaError,
    producer::{BaseRecord, Producer, PurgeConfig, ThreadedProducer},
};
use tracing::{error, info, warn};

use super::reports::{Report, Reports};
use crate::{AckMode, KafkaConfig};

/// The longest linger that a waiting sender is asked to pay for fuller batches.
const DURABLE_LINGER: Duration = Duration::from_millis(1);
/// Bytes of a batch in durable mode at least. A smaller limit does not make a batch leave earlier
/// than its linger ends, it only splits what waits for the same acknowledgement into more requests.
const DURABLE_BATCH: u32 = 1_000_000;
/// How often the client is asked whether an error ended it: without traffic it would go unnoticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the reports of a client that ended may take.
const LAST_REPORTS: Duration = Duration::from_secs(30);

/// An event with what comes back with its report.
pub(super) type ProducerRecord<'a> = BaseRecord<'a, [u8], [u8], Box<Report>>;

/// The client of the moment.
pub(super) struct Client {
    config: ClientConfig,
    reports: Reports,
    current: ArcSwap<ThreadedProducer<Reports>>,
    rebuilding: Mutex<()>,
    rebuilt: IntCounter,
}

impl Client {
    pub(super) fn new(
        config: ClientConfig,
        reports: Reports,
        rebuilt: IntCounter,
    ) -> Result<Client, KafkaError> {
        let client = ThreadedProducer::from_config_and_context(&config, reports.clone())?;
        let (current, rebuilding) = (ArcSwap::from_pointee(client), Mutex::default());
        Ok(Client { config, reports, current, rebuilding, rebuilt })
    }

    /// Hands an event over. On an error the client did not take it, and no report comes.
    pub(super) fn send(&self, record: ProducerRecord<'_>) -> Result<(), KafkaError> {
        self.current.load().send(record).map_err(|(error, _)| error)
    }

    pub(super) fn current(&self) -> Arc<ThreadedProducer<Reports>> {
        self.current.load_full()
    }

    /// Replaces a client that an error has ended: it takes nothing any more.
    pub(super) fn rebuild(self: &Arc<Self>) {
        let client = self.clone();
        // waits for the last reports of the old one
        tokio::task::spawn_blocking(move || client.replace());
    }

    fn replace(&self) {
        let Ok(_rebuilding) = self.rebuilding.try_lock() else {
            return; // another call does
        };
        let Some((code, reason)) = self.current.load().client().fatal_error() else {
            return; // another call did
        };
        error!(%code, reason, "kafka producer ended by an error; making a new one");
        let new =
            match ThreadedProducer::from_config_and_context(&self.config, self.reports.clone()) {
                Ok(new) => new,
                Err(error) => return error!(error = %error, "no new kafka producer"),
            };
        self.rebuilt.inc();
        let old = self.current.swap(Arc::new(new));
        // every event that it still has gets its report: without one, its topic would wait for ever
        old.purge(PurgeConfig::default().queue().inflight());
        if let Err(error) = old.flush(LAST_REPORTS) {
            warn!(error = %error, "the old kafka producer did not report all of its events");
        }
    }

    /// Looks after the client for as long as it is used.
    pub(super) async fn watch(client: Weak<Client>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(client) = client.upgrade() else { return };
            if client.current.load().client().fatal_error().is_some() {
                client.rebuild();
            }
        }
    }
}

/// Settings of the client: acknowledged by all in-sync replicas, never doubled by its own retries.
pub(super) fn producer_config(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = config.client_config(client_id);
    let (linger, batch) = match config.ack_mode {
        AckMode::Durable => (
            config.producer_linger_ms.min(DURABLE_LINGER),
            config.producer_batch_size.max(DURABLE_BATCH),
        ),
        AckMode::Async => (config.producer_linger_ms, config.producer_batch_size),
    };
    if (linger, batch) != (config.producer_linger_ms, config.producer_batch_size) {
        info!(
            linger_ms = linger.as_millis(),
            batch_bytes = batch,
            "PRODUCER_LINGER_MS is capped and PRODUCER_BATCH_SIZE raised: requests wait for the acknowledgement"
        );
    }
    client
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", linger.as_millis().to_string())
        .set("batch.size", batch.to_string())
        .set("compression.type", &config.kafka_topic_compression)
        .set("message.max.bytes", config.kafka_message_max_bytes.to_string())
        .set("queue.buffering.max.messages", config.producer_queue_size.to_string())
        // a broker that vanished without a word is given up after this, not after a minute
        .set("socket.timeout.ms", "10000");
    if config.ack_mode == AckMode::Durable {
        client.set("message.timeout.ms", "0");
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::samples::kafka_config;

    fn config(variables: &[(&str, &str)]) -> ClientConfig {
        producer_config(&kafka_config(variables), "bulkerapp")
    }

    #[test]
    fn a_durable_producer_is_idempotent_lingers_a_millisecond_and_never_gives_up() {
        let client = config(&[]);
        let expected = [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("linger.ms", "1"),
            ("message.timeout.ms", "0"),
            ("message.max.bytes", "1000000"),
            ("queue.buffering.max.messages", "100000"),
            ("batch.size", "1000000"),
            ("compression.type", "snappy"),
        ];
        for (key, value) in expected {
            assert_eq!(client.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn a_shorter_linger_is_kept() {
        let client = config(&[("BULKER_PRODUCER_LINGER_MS", "0")]);
        assert_eq!(client.get("linger.ms"), Some("0"));
    }

    #[test]
    fn an_asynchronous_producer_lingers_as_told_and_gives_up_as_the_original_does() {
        let client = config(&[("BULKER_ACK_MODE", "async")]);
        assert_eq!(client.get("linger.ms"), Some("1000"));
        assert_eq!(client.get("batch.size"), Some("65535"));
        assert_eq!(client.get("message.timeout.ms"), None);
    }
}
