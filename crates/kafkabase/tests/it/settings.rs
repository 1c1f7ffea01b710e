//! Settings as a binary has them.

use anyhow::Result;
use appbase::config::{Environment, Names};
use clap::Parser;
use kafkabase::KafkaConfig;
use testkit::Kafka;

#[derive(Debug, Parser)]
struct Settings {
    #[command(flatten)]
    kafka: KafkaConfig,
}

/// For the brokers of `kafka`; all else is the default.
pub(crate) fn kafka_config(kafka: &Kafka) -> Result<KafkaConfig> {
    let names = Names { unprefixed: &[KafkaConfig::UNPREFIXED], fallbacks: &[] };
    let brokers = [("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())];
    let parsed = Environment::new("BULKER", brokers, []).parse::<Settings>(&[], &names)?;
    Ok(parsed.config.kafka)
}
