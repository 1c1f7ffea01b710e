//! The spool under this service's metrics, and its commands with this service's destinations.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use appbase::config::Environment;
use kafkabase::{
    Admin, KafkaConfig, ProducerMetrics, QuarantinedTopic, Spool, SpoolBegun, SpoolCommand,
    SpoolGauges, SpoolMetrics, SpoolOpenError, SpoolUse, SpoolWork, TopicMaker,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    destinations::{Configuration, RedisSettings},
    metrics,
    topics::Topics,
};

/// How often a command looks at the cluster's topics.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How Kafka's brokers see the commands.
const CLIENT_ID: &str = "bulkerapp-spool";
/// The longest an administrative call of a command may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the spool that the settings name.
pub fn open(
    config: &KafkaConfig,
    topics: Arc<dyn TopicMaker>,
) -> Result<Option<SpoolUse>, SpoolOpenError> {
    SpoolUse::open(config, topics, counters())
}

fn counters() -> SpoolMetrics {
    SpoolMetrics {
        events: metrics::SPOOL_EVENTS.clone(),
        refused: metrics::SPOOL_REFUSED.clone(),
        damaged_bytes: metrics::SPOOL_DAMAGED.clone(),
    }
}

/// Keeps the gauges true.
pub fn measure(spool: &Spool) {
    let gauges = SpoolGauges {
        waiting: metrics::SPOOL_WAITING.clone(),
        quarantined: metrics::SPOOL_QUARANTINED.clone(),
        bytes: metrics::SPOOL_BYTES.clone(),
        age: metrics::SPOOL_AGE.clone(),
    };
    gauges.measure(spool);
}

/// Runs a command to its end.
pub async fn run(command: &SpoolCommand, config: &Config, environment: &Environment) -> Result<()> {
    let folder = command.folder().display();
    let work = match command.begin(&config.kafka, counters())? {
        SpoolBegun::Requested => {
            println!("the process that uses {folder} does it");
            return Ok(());
        }
        SpoolBegun::Discard(discard) => {
            let gone = discard.run().await?;
            let events: usize = gone.iter().flat_map(|topic| topic.reasons.values()).sum();
            println!("{events} events were discarded: {gone:?}");
            return Ok(());
        }
        SpoolBegun::Here(work) => work,
    };
    let quarantined = send(work, config, environment).await?;
    let left: usize = quarantined.iter().flat_map(|topic| topic.reasons.values()).sum();
    if left > 0 {
        bail!("Kafka refused {left} events for good; they stay in the folder: {quarantined:?}");
    }
    println!("nothing is left in {folder}");
    Ok(())
}

/// Sends what is in the folder to topics of the configured destinations.
async fn send(
    work: SpoolWork,
    config: &Config,
    environment: &Environment,
) -> Result<Vec<QuarantinedTopic>> {
    let redis = RedisSettings::from(&config.events_log);
    let configuration = Configuration::start(&config.source, &redis, environment).await?;
    let destinations = configuration.destinations();
    let admin = Admin::new(&config.kafka.client_settings(CLIENT_ID), ADMIN_TIMEOUT)?;
    let topics = Arc::new(Topics::new(
        admin,
        &config.kafka,
        config.server.topics_per_destination as usize,
        destinations,
    ));
    let stop = CancellationToken::new();
    let watching = {
        let (topics, stop) = (topics.clone(), stop.clone());
        tokio::spawn(async move { topics.watch(LOOK_EVERY, stop).await })
    };
    let counters = ProducerMetrics {
        messages: metrics::PRODUCER_MESSAGES.clone(),
        rebuilt: metrics::PRODUCER_REBUILDS.clone(),
    };
    let tell = |waiting| println!("{waiting} events are to be sent");
    let quarantined = work.run(&config.kafka, CLIENT_ID, topics, counters, tell).await?;
    stop.cancel();
    watching.await?;
    Ok(quarantined)
}
