//! Topics that are there before anybody sends to them: the shared ones, and those of special destinations.
//!
//! Other services send to them and may not be allowed to make them.

use std::collections::HashMap;

use kafkabase::{KafkaConfig, TopicMetadata, TopicMode, TopicSettings, topic_name};

use crate::destinations::Snapshot;

/// What has to be there.
pub(crate) struct StandingTopics {
    prefix: String,
    table: TopicSettings,
    /// Names without the prefix: all installations of a cluster share them.
    shared: [(String, TopicSettings); 3],
}

/// What is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    Topic { name: String, settings: TopicSettings },
    Partitions { name: String, total: usize },
}

impl Missing {
    pub(crate) fn topic(&self) -> &str {
        match self {
            Missing::Topic { name, .. } | Missing::Partitions { name, .. } => name,
        }
    }
}

impl StandingTopics {
    pub(crate) fn new(config: &KafkaConfig) -> StandingTopics {
        let shared = [
            (config.kafka_destinations_topic_name.clone(), TopicSettings::destinations(config)),
            (config.kafka_destinations_retry_topic_name.clone(), TopicSettings::retry(config)),
            (
                config.kafka_destinations_dead_letter_topic_name.clone(),
                TopicSettings::dead_letter(config),
            ),
        ];
        let prefix = config.kafka_topic_prefix.clone();
        StandingTopics { prefix, table: TopicSettings::table(config), shared }
    }

    /// What to do so that everything is there. Partitions are added, never taken away.
    pub(crate) fn missing(&self, all: &[TopicMetadata], destinations: &Snapshot) -> Vec<Missing> {
        let present: HashMap<&str, usize> =
            all.iter().map(|topic| (topic.name.as_str(), topic.partitions)).collect();
        let special = destinations.iter().flat_map(|destination| {
            let id = &destination.config.id;
            let tables = destination.special_tables().iter();
            tables.map(|table| {
                let name = topic_name(&self.prefix, id, TopicMode::Batch, table, 0);
                (name, self.table.clone())
            })
        });
        let wanted = self.shared.iter().cloned().chain(special);
        let missing = wanted.filter_map(|(name, settings)| {
            let total = usize::try_from(settings.partitions).unwrap_or_default();
            match present.get(name.as_str()) {
                None => Some(Missing::Topic { name, settings }),
                Some(found) if *found < total => Some(Missing::Partitions { name, total }),
                Some(_) => None,
            }
        });
        missing.collect()
    }
}

#[cfg(test)]
mod tests {
    use appbase::config::Environment;
    use serde_json::json;

    use super::*;
    use crate::{config::Config, destinations::samples};

    fn standing() -> StandingTopics {
        let variables = [
            ("KAFKA_BOOTSTRAP_SERVERS", "a:1"),
            ("BULKER_KAFKA_TOPIC_PREFIX", "mine."),
            ("BULKER_KAFKA_DESTINATIONS_TOPIC_NAME", "shared"),
        ];
        let environment = Environment::new("BULKER", variables, []);
        StandingTopics::new(&Config::parse(&environment, &[]).unwrap().config.kafka)
    }

    fn found(name: &str, partitions: usize) -> TopicMetadata {
        TopicMetadata { name: name.to_owned(), partitions, replication_factor: 1 }
    }

    #[test]
    fn shared_topics_and_those_of_special_destinations_are_wanted() {
        let destinations = samples::destinations(json!([
            {"id": "m", "type": "postgres", "special": "metrics"},
            {"id": "b", "type": "postgres", "special": "backup"},
            {"id": "other", "type": "postgres"},
        ]));
        let missing = standing().missing(&[found("other", 1)], &destinations.snapshot());
        let mut names: Vec<_> = missing.iter().map(Missing::topic).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "destination-messages-dead-letter",
                "destination-messages-retry",
                "mine.in.id.b.m.batch.t.backup",
                "mine.in.id.m.m.batch.t.active_incoming",
                "mine.in.id.m.m.batch.t.metrics",
                "shared",
            ]
        );
    }

    #[test]
    fn what_is_there_gets_partitions_at_most() {
        let destinations = samples::destinations(json!([]));
        let mut all = vec![
            found("shared", 4),
            found("destination-messages-retry", 7),
            found("destination-messages-dead-letter", 1),
        ];
        let missing = standing().missing(&all, &destinations.snapshot());
        assert_eq!(missing, [Missing::Partitions { name: "shared".to_owned(), total: 16 }]);
        all[0].partitions = 20;
        assert_eq!(standing().missing(&all, &destinations.snapshot()), []);
    }
}
