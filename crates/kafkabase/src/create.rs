//! Making topics, and what the cluster says of those that are there.
//!
//! The settings of a topic are shared with deployments of the original, so they are pinned.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminOptions, NewPartitions, OwnedResourceSpecifier, ResourceSpecifier},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    Admin, KafkaConfig,
    admin::Session,
    error::code_of,
    membership::SHARES,
    native::{self, AdminError, NewTopic},
};

/// How long the controller may take until all brokers know a new topic.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a broker is asked again about a topic that it does not know yet.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a topic is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// How many it gets.
    pub partitions: i32,
    /// 0 is the brokers' default.
    pub replication_factor: i32,
    /// Names and values of Kafka's settings of topics.
    pub entries: Vec<(&'static str, String)>,
}

impl TopicSettings {
    /// A topic of one table.
    pub fn table(config: &KafkaConfig) -> TopicSettings {
        let mut entries = vec![
            ("retention.ms", millis(config.kafka_topic_retention_hours)),
            ("segment.ms", millis(config.kafka_topic_segment_hours)),
            ("compression.type", config.kafka_topic_compression.clone()),
        ];
        if config.kafka_topic_min_insync_replicas > 0 {
            entries
                .push(("min.insync.replicas", config.kafka_topic_min_insync_replicas.to_string()));
        }
        TopicSettings {
            partitions: 1,
            replication_factor: config.kafka_topic_replication_factor,
            entries,
        }
    }

    /// The topic whose partitions stand for shares of the work. Nothing is ever written to it.
    pub fn shares(config: &KafkaConfig) -> TopicSettings {
        TopicSettings {
            partitions: SHARES.cast_signed(),
            replication_factor: config.kafka_topic_replication_factor,
            entries: Vec::new(),
        }
    }

    /// A retry topic.
    pub fn retry(config: &KafkaConfig) -> TopicSettings {
        TopicSettings::table(config)
            .with("cleanup.policy", "delete,compact".to_owned())
            .with("segment.bytes", config.kafka_retry_topic_segment_bytes.to_string())
            .with("retention.ms", millis(config.kafka_retry_topic_retention_hours))
    }

    /// The dead letter topic.
    pub fn dead_letter(config: &KafkaConfig) -> TopicSettings {
        TopicSettings::table(config)
            .with("cleanup.policy", "delete,compact".to_owned())
            .with("retention.ms", millis(config.kafka_dead_topic_retention_hours))
    }

    /// A topic of events for many destinations.
    pub fn destinations(config: &KafkaConfig) -> TopicSettings {
        TopicSettings {
            partitions: config.kafka_destinations_topic_partitions,
            ..TopicSettings::table(config)
        }
    }

    fn with(mut self, key: &'static str, value: String) -> TopicSettings {
        self.entries.retain(|(other, _)| *other != key);
        self.entries.push((key, value));
        self
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// What became of a topic that was to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicCreation {
    /// It was not there before, and is what it was to be.
    Created,
    /// It was there, with settings of its own.
    Existed {
        /// How many it has, which may be fewer or more than it was to get.
        partitions: usize,
    },
}

/// A topic as the cluster's metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    /// As Kafka has it, prefix and all.
    pub name: String,
    /// How many it has.
    pub partitions: usize,
    /// Replicas of the partition that has the fewest.
    pub replication_factor: usize,
}

impl Admin {
    /// Makes a topic; returns once all brokers know it, after 10 s at most. One that is there
    /// already is no error, whatever its settings. Dropped, it may be made all the same.
    pub async fn create_topic(
        &self,
        name: &str,
        settings: &TopicSettings,
    ) -> Result<TopicCreation, AdminError> {
        let replication = match settings.replication_factor {
            0 => -1,
            factor => factor,
        };
        let (name, settings) = (name.to_owned(), settings.clone());
        self.call("CreateTopics", move |session| {
            let topic = NewTopic {
                name: &name,
                partitions: settings.partitions,
                replication,
                entries: &settings.entries,
            };
            match native::create_topic(session.client.inner(), &topic, CREATE_TIMEOUT) {
                Ok(()) => Ok(TopicCreation::Created),
                Err(error) if error.code.0 == RDKafkaErrorCode::TopicAlreadyExists => {
                    Ok(TopicCreation::Existed { partitions: partition_count(session, &name)? })
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Raises the number of a topic's partitions to `total`; fewer than it has is an error.
    /// Dropped, it may take effect all the same.
    pub async fn raise_partitions(&self, name: &str, total: usize) -> Result<(), AdminError> {
        const CALL: &str = "CreatePartitions";
        let name = name.to_owned();
        self.call(CALL, move |session| {
            let partitions = NewPartitions::new(&name, total);
            let options = AdminOptions::new()
                .request_timeout(Some(CREATE_TIMEOUT))
                .operation_timeout(Some(CREATE_TIMEOUT));
            let results = block_on(session.client.create_partitions([&partitions], &options));
            match results.map_err(|error| failed(CALL, &error))?.into_iter().next() {
                None | Some(Ok(_)) => Ok(()),
                Some(Err((_, code))) => {
                    Err(AdminError { call: CALL, code: code.into(), reason: code.to_string() })
                }
            }
        })
        .await
    }

    /// All topics of the cluster that can be described at the moment.
    pub async fn topics(&self) -> Result<Vec<TopicMetadata>, AdminError> {
        const CALL: &str = "Metadata";
        self.call(CALL, |admin| {
            let metadata = admin
                .client
                .inner()
                .fetch_metadata(None, admin.timeout)
                .map_err(|error| failed(CALL, &error))?;
            Ok(metadata
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none())
                .map(|topic| TopicMetadata {
                    name: topic.name().to_owned(),
                    partitions: topic.partitions().len(),
                    replication_factor: topic
                        .partitions()
                        .iter()
                        .map(|partition| partition.replicas().len())
                        .min()
                        .unwrap_or_default(),
                })
                .collect())
        })
        .await
    }

    /// The effective `min.insync.replicas` of each topic that the cluster tells of.
    pub async fn min_insync_replicas(
        &self,
        topics: &[String],
    ) -> Result<HashMap<String, usize>, AdminError> {
        const CALL: &str = "DescribeConfigs";
        let topics = topics.to_vec();
        self.call(CALL, move |session| {
            let resources: Vec<_> =
                topics.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
            let options = AdminOptions::new().request_timeout(Some(session.timeout));
            let described = block_on(session.client.describe_configs(&resources, &options))
                .map_err(|error| failed(CALL, &error))?;
            let effective = described.into_iter().filter_map(|described| {
                let resource = described.ok()?;
                let value = resource.get("min.insync.replicas")?.value.as_deref()?.parse().ok()?;
                match resource.specifier {
                    OwnedResourceSpecifier::Topic(name) => Some((name, value)),
                    _ => None,
                }
            });
            Ok(effective.collect())
        })
        .await
    }
}

/// How many partitions a topic has that is there. The broker that is asked may not know it yet.
fn partition_count(session: &Session, topic: &str) -> Result<usize, AdminError> {
    const CALL: &str = "Metadata";
    let deadline = Instant::now() + session.timeout;
    loop {
        let metadata = session
            .client
            .consumer()
            .fetch_metadata(Some(topic), session.timeout)
            .map_err(|error| failed(CALL, &error))?;
        let Some(found) = metadata.topics().first() else {
            let code = RDKafkaErrorCode::UnknownTopicOrPartition;
            return Err(AdminError { call: CALL, code: code.into(), reason: code.to_string() });
        };
        let Some(error) = found.error() else { return Ok(found.partitions().len()) };
        let code = RDKafkaErrorCode::from(error);
        if code != RDKafkaErrorCode::UnknownTopicOrPartition || Instant::now() >= deadline {
            return Err(AdminError { call: CALL, code: code.into(), reason: code.to_string() });
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Waits for a call of rust-rdkafka's, on a thread that may block.
fn block_on<T>(answer: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(answer)
}

fn failed(call: &'static str, error: &KafkaError) -> AdminError {
    AdminError { call, code: code_of(error).into(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::samples::kafka_config;

    fn entries(settings: &TopicSettings) -> Vec<(&str, &str)> {
        let mut entries: Vec<_> =
            settings.entries.iter().map(|(key, value)| (*key, value.as_str())).collect();
        entries.sort_unstable();
        entries
    }

    #[test]
    fn topics_have_the_settings_of_the_original() {
        let config = kafka_config(&[]);
        let (two_days, day, week) = ("172800000", "86400000", "604800000");
        assert_eq!(
            entries(&TopicSettings::table(&config)),
            [("compression.type", "snappy"), ("retention.ms", two_days), ("segment.ms", day)]
        );
        assert_eq!(
            entries(&TopicSettings::retry(&config)),
            [
                ("cleanup.policy", "delete,compact"),
                ("compression.type", "snappy"),
                ("retention.ms", two_days),
                ("segment.bytes", "104857600"),
                ("segment.ms", day),
            ]
        );
        assert_eq!(
            entries(&TopicSettings::dead_letter(&config)),
            [
                ("cleanup.policy", "delete,compact"),
                ("compression.type", "snappy"),
                ("retention.ms", week),
                ("segment.ms", day),
            ]
        );
    }

    #[test]
    fn the_shared_topic_has_partitions_of_its_own() {
        let config = kafka_config(&[("BULKER_KAFKA_DESTINATIONS_TOPIC_PARTITIONS", "4")]);
        let shared = TopicSettings::destinations(&config);
        assert_eq!(shared.partitions, 4);
        assert_eq!(shared.entries, TopicSettings::table(&config).entries);
        assert_eq!(TopicSettings::table(&config).partitions, 1);
    }

    #[test]
    fn replicas_that_must_be_in_sync_are_set_when_told_to() {
        let config = kafka_config(&[("BULKER_KAFKA_TOPIC_MIN_INSYNC_REPLICAS", "2")]);
        let settings = TopicSettings::table(&config);
        assert!(settings.entries.contains(&("min.insync.replicas", "2".to_owned())));
    }
}
