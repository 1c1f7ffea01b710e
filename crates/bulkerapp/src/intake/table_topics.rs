//! What a request to a table needs, looked up by the name of its topic instead of made anew.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use kafkabase::{AckProducer, ProducerTopic, TopicMode};
use prometheus::IntCounter;

use crate::metrics;

/// A table's topic and counters.
pub struct TableTopic {
    pub topic: Arc<ProducerTopic>,
    pub events: IntCounter,
    pub bytes: IntCounter,
}

/// The tables that events were posted to. There are as many as topics.
#[derive(Default)]
pub struct TableTopics(RwLock<HashMap<String, Arc<TableTopic>>>);

impl TableTopics {
    /// The table of this topic, if an event was posted to it before.
    pub fn get(&self, topic: &str) -> Option<Arc<TableTopic>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    /// The table of a topic that exists, or will before its spooled events are sent.
    pub fn add(
        &self,
        topic: &str,
        producer: &AckProducer,
        (destination_id, mode, table): (&str, TopicMode, &str),
    ) -> Arc<TableTopic> {
        let labels = [destination_id, mode.as_str(), table, "success", ""];
        let make = || {
            Arc::new(TableTopic {
                topic: producer.topic(topic),
                events: metrics::HANDLER_EVENTS.with_label_values(&labels),
                bytes: metrics::HANDLER_BYTES.with_label_values(&labels),
            })
        };
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.entry(topic.to_owned()).or_insert_with(make).clone()
    }
}
