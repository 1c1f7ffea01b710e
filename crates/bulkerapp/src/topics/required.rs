//! Topics that are there before an event is sent to them: the shared ones, and those of special
//! destinations.
//!
//! Other services send to them and may not be allowed to make them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use kafkabase::{
    Admin, AdminError, KafkaConfig, TopicMetadata, TopicMode, TopicSettings, topic_name,
};
use tracing::warn;

use super::create::TopicCreator;
use crate::{destinations::Snapshot, metrics};

/// Between two attempts to make a required topic.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What has to be there, and what came of the attempts to make it.
pub(super) struct RequiredTopics {
    prefix: String,
    table: TopicSettings,
    /// Names without the prefix: all installations of a cluster share them.
    shared: [(String, TopicSettings); 3],
    attempts: Mutex<HashMap<String, Attempt>>,
}

/// What is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    Topic { name: String, settings: TopicSettings },
    Partitions { name: String, total: usize },
}

/// The last attempt to make a required topic.
struct Attempt {
    at: Instant,
    /// Why it failed, as it was logged.
    refused: Option<String>,
}

impl Missing {
    /// The name of the topic.
    pub(super) fn topic(&self) -> &str {
        match self {
            Missing::Topic { name, .. } | Missing::Partitions { name, .. } => name,
        }
    }
}

impl RequiredTopics {
    /// The names are those of the settings; nothing is looked at yet.
    pub(super) fn new(config: &KafkaConfig) -> RequiredTopics {
        let shared = [
            (config.kafka_destinations_topic_name.clone(), TopicSettings::destinations(config)),
            (config.kafka_destinations_retry_topic_name.clone(), TopicSettings::retry(config)),
            (
                config.kafka_destinations_dead_letter_topic_name.clone(),
                TopicSettings::dead_letter(config),
            ),
        ];
        let prefix = config.kafka_topic_prefix.clone();
        let table = TopicSettings::table(config);
        RequiredTopics { prefix, table, shared, attempts: Mutex::default() }
    }

    /// What to do so that everything is there. Partitions are added, never taken away.
    pub(super) fn missing(&self, all: &[TopicMetadata], destinations: &Snapshot) -> Vec<Missing> {
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

    /// What is to be tried now. A topic may be made and not be seen: it is new, or we may not see
    /// it.
    pub(super) fn start_attempts(&self, mut missing: Vec<Missing>) -> Vec<Missing> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        missing.retain(|missing| match attempts.get_mut(missing.topic()) {
            Some(attempt) if attempt.at.elapsed() < TRY_AGAIN_AFTER => false,
            Some(attempt) => {
                attempt.at = Instant::now();
                true
            }
            None => {
                let attempt = Attempt { at: Instant::now(), refused: None };
                attempts.insert(missing.topic().to_owned(), attempt);
                true
            }
        });
        missing
    }

    /// Makes what is missing, all at once. Dropped, it leaves open what the cluster made; the next
    /// look tells.
    pub(super) async fn create(&self, missing: &[Missing], creator: &TopicCreator, admin: &Admin) {
        join_all(missing.iter().map(|missing| async move {
            let made = match missing {
                Missing::Topic { name, settings } => creator.create(name, settings).await,
                Missing::Partitions { name, total } => admin.raise_partitions(name, *total).await,
            };
            self.note(missing.topic(), made);
        }))
        .await;
    }

    /// Counts every failure, logs it once.
    fn note(&self, topic: &str, made: Result<(), AdminError>) {
        let refused = made.err().map(|error| error.to_string());
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(attempt) = attempts.get_mut(topic) else { return };
        if let Some(reason) = &refused {
            metrics::TOPIC_ERRORS.with_label_values(&["destination-topic_error"]).inc();
            if attempt.refused.as_ref() != Some(reason) {
                warn!(topic, error = reason, "topic that other services need cannot be made");
            }
        }
        attempt.refused = refused;
    }
}

#[cfg(test)]
mod tests {
    use appbase::config::Environment;
    use serde_json::json;

    use super::*;
    use crate::{config::Config, destinations::samples};

    fn required() -> RequiredTopics {
        let variables = [
            ("KAFKA_BOOTSTRAP_SERVERS", "a:1"),
            ("BULKER_KAFKA_TOPIC_PREFIX", "mine."),
            ("BULKER_KAFKA_DESTINATIONS_TOPIC_NAME", "shared"),
        ];
        let environment = Environment::new("BULKER", variables, []);
        RequiredTopics::new(&Config::parse(&environment, &[]).unwrap().config.kafka)
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
        let missing = required().missing(&[found("other", 1)], &destinations.snapshot());
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
        let missing = required().missing(&all, &destinations.snapshot());
        assert_eq!(missing, [Missing::Partitions { name: "shared".to_owned(), total: 16 }]);
        all[0].partitions = 20;
        assert_eq!(required().missing(&all, &destinations.snapshot()), []);
    }

    #[test]
    fn a_topic_that_stays_missing_is_not_tried_at_each_look() {
        let required = required();
        let missing = || vec![Missing::Partitions { name: "shared".to_owned(), total: 16 }];
        assert_eq!(required.start_attempts(missing()), missing());
        assert_eq!(required.start_attempts(missing()), []);
    }
}
