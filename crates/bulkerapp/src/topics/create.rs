//! The making of topics, one attempt at a time for each, and few at a time for all.
//!
//! Invariants: the first request of a table begins to make its topic, others of the same table get
//! what comes of it, those of other tables do not wait for it. An attempt goes on without its
//! requests, and nothing is left of one that failed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use kafkabase::{
    Admin, AdminError, TopicId, TopicSettings, TopicSnapshot, TopicView, names_collide,
};
use tokio::sync::{Notify, Semaphore};
use tracing::info;

use super::admission::Admissions;
use crate::metrics;

/// Topics that are made at a time. Each holds a thread until all brokers know it, and reading the
/// spool needs threads, too.
const AT_A_TIME: usize = 16;
/// What stands for names that are not those of topics.
const NO_NAME: &str = "other";

/// Makes topics, and knows those that it made.
pub(super) struct TopicCreator {
    admin: Admin,
    prefix: String,
    /// Of a table's topic.
    settings: TopicSettings,
    view: TopicView,
    pub(super) admissions: Admissions,
    /// Topics that were made here, ahead of the snapshot.
    created: RwLock<HashSet<String>>,
    /// Attempts that are under way.
    attempts: Mutex<HashMap<String, Attempt>>,
    permits: Semaphore,
    /// Told when a topic was made, and by requests that need a new look at the cluster.
    pub(super) look_again: Notify,
}

/// What comes of an attempt, for all who wait for it.
type Attempt = Shared<BoxFuture<'static, Result<(), AdminError>>>;

impl TopicCreator {
    /// `prefix` is that of all our topics, `settings` are those of a table's topic, `limit` is how
    /// many topics a destination may have.
    pub(super) fn new(
        admin: Admin,
        prefix: String,
        settings: TopicSettings,
        limit: usize,
        view: TopicView,
    ) -> TopicCreator {
        TopicCreator {
            admin,
            prefix,
            settings,
            view,
            admissions: Admissions::new(limit),
            created: RwLock::default(),
            attempts: Mutex::default(),
            permits: Semaphore::new(AT_A_TIME),
            look_again: Notify::new(),
        }
    }

    /// Whether the topic was seen by the last look, or made here since.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.view.has(name)
            || self.created.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// A topic that was seen by the last look, or made here since, whose name keeps one of this
    /// name from being made.
    pub(super) fn colliding_with(&self, name: &str) -> Option<String> {
        let view = self.view.load();
        if let Some(other) = view.colliding_with(name) {
            return Some(other.to_owned());
        }
        let created = self.created.read().unwrap_or_else(PoisonError::into_inner);
        created.iter().find(|other| names_collide(name, other)).cloned()
    }

    /// Makes a table's topic if it is not known. Requests for one topic share one attempt; dropped,
    /// it goes on.
    pub(super) async fn ensure(self: &Arc<Self>, name: &str) -> Result<(), AdminError> {
        if self.is_known(name) {
            return Ok(());
        }
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            match attempts.get(name) {
                Some(attempt) => attempt.clone(),
                None => {
                    let attempt = self.clone().attempt(name.to_owned()).boxed().shared();
                    tokio::spawn(attempt.clone());
                    attempts.insert(name.to_owned(), attempt.clone());
                    attempt
                }
            }
        };
        attempt.await
    }

    /// Forgets itself at its end.
    async fn attempt(self: Arc<Self>, name: String) -> Result<(), AdminError> {
        // never closed; without a permit it would be one attempt more, no harm
        let permit = self.permits.acquire().await.ok();
        let made = match self.is_known(&name) {
            true => Ok(()),
            false => self.create(&name, &self.settings).await,
        };
        drop(permit);
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
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
        let labels = |topic, table, status, error_type| {
            metrics::TOPIC_CREATE
                .with_label_values(&[topic, destination_id, mode, table, status, error_type])
                .inc();
        };
        match &made {
            Ok(()) => labels(name, table, "success", ""),
            // a name is a label once it is that of a topic
            Err(error) => {
                labels(NO_NAME, NO_NAME, "error", &format!("kafka error: {}", error.code));
            }
        }
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
        self.admissions.store(&snapshot);
        self.view.store(snapshot);
    }
}
