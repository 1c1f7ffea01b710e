//! The making of topics, one attempt at a time for each.
//!
//! Invariant: the first request of a table makes its topic and others of the same table wait with
//! it, those of other tables do not.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use kafkabase::{Admin, AdminError, TopicId, TopicSettings, TopicSnapshot, TopicView};
use tokio::sync::{Notify, OnceCell};
use tracing::info;

use crate::metrics;

/// Makes topics, and knows those that it made.
pub(super) struct TopicCreator {
    admin: Admin,
    prefix: String,
    /// Of a table's topic.
    settings: TopicSettings,
    view: TopicView,
    /// Topics that were made here, ahead of the snapshot.
    created: RwLock<HashSet<String>>,
    /// Attempts that are under way or failed.
    attempts: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
    /// Told when a topic was made, and by requests that need a new look at the cluster.
    pub(super) look_again: Notify,
}

impl TopicCreator {
    /// `prefix` is that of all our topics, `settings` are those of a table's topic.
    pub(super) fn new(
        admin: Admin,
        prefix: String,
        settings: TopicSettings,
        view: TopicView,
    ) -> TopicCreator {
        TopicCreator {
            admin,
            prefix,
            settings,
            view,
            created: RwLock::default(),
            attempts: Mutex::default(),
            look_again: Notify::new(),
        }
    }

    /// Whether the topic was seen by the last look, or made here since.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.view.has(name)
            || self.created.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Makes a table's topic if it is not known. Requests for one topic share one attempt at a
    /// time; where the one that makes it is dropped, the next in line tries.
    pub(super) async fn ensure(&self, name: &str) -> Result<(), AdminError> {
        if self.is_known(name) {
            return Ok(());
        }
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            attempts.entry(name.to_owned()).or_default().clone()
        };
        let made = attempt.get_or_try_init(|| self.create(name, &self.settings)).await.copied();
        if made.is_ok() {
            self.attempts.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
        made
    }

    /// Makes a topic, or finds it made, and counts the attempt. Dropped, it leaves open whether
    /// the cluster made it: the next look tells.
    pub(super) async fn create(
        &self,
        name: &str,
        settings: &TopicSettings,
    ) -> Result<(), AdminError> {
        let made = self.admin.create_topic(name, settings).await.map(|_| ());
        let id = TopicId::parse(&self.prefix, name);
        let (destination_id, mode, table) = match &id {
            Some(id) => (id.destination_id.as_str(), id.mode.as_str(), id.table.as_str()),
            None => ("", "", ""),
        };
        let (status, error_type) = match &made {
            Ok(()) => ("success", String::new()),
            Err(error) => ("error", format!("kafka error: {}", error.code)),
        };
        metrics::TOPIC_CREATE
            .with_label_values(&[name, destination_id, mode, table, status, &error_type])
            .inc();
        made?;
        info!(topic = name, "topic made");
        self.created.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self.look_again.notify_one();
        Ok(())
    }

    /// Shows a new look at the cluster. A topic that the look before it had is known by a look
    /// alone from now on: deleted, it has to be made again by the next event.
    pub(super) fn store(&self, snapshot: TopicSnapshot) {
        // held while the view changes: a topic is known by one of the two at any time
        let created = &mut *self.created.write().unwrap_or_else(PoisonError::into_inner);
        let before = self.view.load();
        if before.at.is_some() {
            created.retain(|name| !before.topics.contains_key(name));
        }
        self.view.store(snapshot);
    }
}
