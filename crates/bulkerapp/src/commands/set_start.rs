//! `bulkerapp set-start`: where a topic is read from next.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use appbase::config::Environment;
use kafkabase::{TopicId, TopicMode};
use loader::{StartAt, set_start};

use super::{admin, destinations};
use crate::config::Config;

pub(super) async fn run(
    config: &Config,
    environment: &Environment,
    topic: &str,
    at: StartAt,
) -> Result<ExitCode> {
    let id = TopicId::parse(&config.kafka.kafka_topic_prefix, topic)
        .filter(|id| matches!(id.mode, TopicMode::Batch | TopicMode::Stream))
        .with_context(|| format!("{topic} is no topic of a table"))?;
    let (_, targets) = destinations(config, environment).await?;
    let target = targets.get(&id.destination_id).with_context(|| {
        format!("destination {} is not configured or not usable", id.destination_id)
    })?;
    let admin = admin(config)?;
    // asked for a topic that is not there, Kafka's client waits for it to appear
    let topics = admin.topics().await.context("Kafka does not answer")?;
    ensure!(topics.iter().any(|known| known.name == topic), "Kafka has no topic {topic}");
    let set = set_start(&admin, target, topic, at).await?;
    if let Some(offset) = set.applied {
        println!("applied first: the original or a tool had set the consumer group to {offset}");
    }
    match set.from {
        Some(from) => println!("{topic}: {from} -> {}", set.to),
        None => println!("{topic}: not loaded before -> {}", set.to),
    }
    if !set.is_committed {
        println!(
            "Kafka's group does not know yet; the row rules, and a load or a clean stop tells it"
        );
    }
    Ok(ExitCode::SUCCESS)
}
