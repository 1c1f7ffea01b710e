//! What a request to a table needs, looked up by the name of its topic instead of made anew.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use kafkabase::{AckProducer, ProducerTopic, TopicMode};
use prometheus::IntCounter;

use crate::metrics;

/// What stands for tables whose topics are not there.
const NO_NAME: &str = "other";

/// A table's topic and counters.
pub struct TableTopic {
    pub topic: Arc<ProducerTopic>,
    /// The counters have the table's name: its topic was there.
    pub is_counted_by_name: bool,
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

    /// The table of a topic that is there, or will be before its spooled events are sent. Its name
    /// is the sender's: it is a label once its topic is there.
    pub fn add(
        &self,
        topic: &str,
        is_there: bool,
        producer: &AckProducer,
        (destination_id, mode, table): (&str, TopicMode, &str),
    ) -> Arc<TableTopic> {
        let table = if is_there { table } else { NO_NAME };
        let labels = [destination_id, mode.as_str(), table, "success", ""];
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = tables.get(topic);
        if let Some(known) = known.filter(|known| known.is_counted_by_name || !is_there) {
            return known.clone();
        }
        let added = Arc::new(TableTopic {
            topic: producer.topic(topic),
            is_counted_by_name: is_there,
            events: metrics::HANDLER_EVENTS.with_label_values(&labels),
            bytes: metrics::HANDLER_BYTES.with_label_values(&labels),
        });
        tables.insert(topic.to_owned(), added.clone());
        added
    }
}
