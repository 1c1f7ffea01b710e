//! The cluster's topics: which are ours, which are still to be made, and how well they are
//! replicated.
//!
//! Invariant: no request waits for a look at the cluster. Requests read a snapshot; only the first
//! request of a table, which makes its topic, and those that come with it wait for Kafka.

mod admission;
mod all_names;
mod create;
mod required;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use kafkabase::{
    Admin, AdminError, ClientError, KafkaConfig, NotMade, OurTopic, TopicId, TopicMaker,
    TopicMetadata, TopicMode, TopicSettings, TopicSnapshot, TopicView, last_client_error,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    destinations::{Destinations, Snapshot},
    metrics,
};
pub use admission::{Admission, NotAdmitted};
use all_names::AllNames;
use create::TopicCreator;
use required::{Missing, RequiredTopics};

/// Replicas, and replicas in sync, below which one lost machine can lose an acknowledged event.
const SAFE_REPLICAS: usize = 2;

/// The pause between two looks when the last one failed and a request waits for Kafka.
const PAUSE: Duration = Duration::from_secs(1);

/// Topics of profile builders that Kafka is asked for at a time.
const QUESTIONS_AT_A_TIME: usize = 8;

/// The topic that holds pauses of destinations. It is made by the first one.
pub fn pauses_topic(prefix: &str) -> String {
    format!("{prefix}bulker-pauses")
}

/// The topics of this installation.
pub struct Topics {
    admin: Admin,
    prefix: String,
    shared_retry: String,
    pauses: String,
    required: RequiredTopics,
    creator: Arc<TopicCreator>,
    all_names: AllNames,
    destinations: Arc<Destinations>,
    view: TopicView,
    /// The last look failed: no request needs to wait for Kafka to find that out.
    is_away: watch::Sender<bool>,
    /// Of topics of profile builders that are asked for at a time.
    questions: Semaphore,
    /// `min.insync.replicas` by topic.
    in_sync: Mutex<HashMap<String, usize>>,
}

impl TopicMaker for Topics {
    fn ensure<'a>(
        &'a self,
        topic: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), NotMade>> + Send + 'a>> {
        Box::pin(self.ensure_for_spool(topic))
    }
}

impl Topics {
    /// Nothing is looked at before [`Topics::watch`] runs.
    /// A destination gets `limit` topics at most.
    pub fn new(
        admin: Admin,
        config: &KafkaConfig,
        limit: usize,
        destinations: Arc<Destinations>,
    ) -> Topics {
        let prefix = config.kafka_topic_prefix.clone();
        let view = TopicView::default();
        let settings = TopicSettings::table(config);
        let creator =
            TopicCreator::new(admin.clone(), prefix.clone(), settings, limit, view.clone());
        Topics {
            shared_retry: config.kafka_destinations_retry_topic_name.clone(),
            pauses: pauses_topic(&prefix),
            required: RequiredTopics::new(config),
            creator: Arc::new(creator),
            all_names: AllNames::new(admin.clone()),
            destinations,
            view,
            is_away: watch::Sender::new(false),
            questions: Semaphore::new(QUESTIONS_AT_A_TIME),
            in_sync: Mutex::default(),
            prefix,
            admin,
        }
    }

    /// What the last look found.
    pub fn snapshot(&self) -> Arc<TopicSnapshot> {
        self.view.load()
    }

    /// A handle on what the last look found, which does not need the rest of this.
    pub fn view(&self) -> TopicView {
        self.view.clone()
    }

    /// Whether the topic is known to be there.
    pub fn is_known(&self, name: &str) -> bool {
        self.creator.is_known(name)
    }

    /// Whether the last look at the cluster failed.
    pub fn is_away(&self) -> bool {
        *self.is_away.borrow()
    }

    /// A place among the destination's topics for one that is not known to be there.
    pub fn admit<'a>(
        &'a self,
        destination_id: &'a str,
        name: &'a str,
    ) -> Result<Admission<'a>, NotAdmitted> {
        if let Some(other) = self.creator.colliding_with(name) {
            return Err(NotAdmitted::Collides(other));
        }
        self.creator.admissions.admit(destination_id, name)
    }

    /// Makes a table's topic if it is not known. Requests for one topic share one attempt; dropped,
    /// it goes on.
    pub async fn ensure(&self, name: &str) -> Result<(), AdminError> {
        self.creator.ensure(name).await
    }

    /// Whether a profile builder's topic is there. Kafka is asked only while the last look found
    /// none, and for few names at a time: each question holds a thread, and names are the sender's.
    pub async fn has_profiles(&self, name: &str) -> Result<bool, AdminError> {
        if self.view.load().profiles.contains(name) {
            return Ok(true);
        }
        // never closed; without a permit it would be one question more, no harm
        let _permit = self.questions.acquire().await.ok();
        match self.admin.topic_id(name).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_unknown_topic() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks at the cluster until `stop`, every so often, and at once when the configuration
    /// changes, a topic was made or spooled events wait for Kafka.
    pub async fn watch(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let mut changes = self.destinations.changes();
        let mut making: Option<JoinHandle<()>> = None;
        loop {
            let missing = self.look().await;
            if making.as_ref().is_none_or(JoinHandle::is_finished) {
                let due = self.required.start_attempts(missing);
                if !due.is_empty() {
                    // beside the looks: a cluster that refuses may take its time for it
                    let topics = self.clone();
                    making = Some(tokio::spawn(async move {
                        topics.required.create(&due, &topics.creator, &topics.admin).await;
                    }));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
                () = self.creator.look_again.notified() => {}
                // spooled events wait for Kafka
                () = tokio::time::sleep(PAUSE), if self.is_away.receiver_count() > 0 => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Makes the topic for spooled events, if it is one of ours.
    async fn ensure_for_spool(&self, name: &str) -> Result<(), NotMade> {
        if self.snapshot().at.is_none() && !self.is_away() {
            return Err(NotMade::Later);
        }
        // as many names as were invented may wait here: none of them wakes before Kafka is back
        let mut is_away = self.is_away.subscribe();
        is_away.wait_for(|is_away| !is_away).await.map_err(|_| NotMade::Later)?;
        drop(is_away);
        if self.is_known(name) {
            return Ok(());
        }
        // it may be there all the same: the snapshot is of a moment, and has the topics of
        // configured destinations only
        if self.all_names.has(name).await.map_err(|_| NotMade::Later)? {
            return Ok(());
        }
        let id = TopicId::parse(&self.prefix, name);
        if id.is_none_or(|id| self.destinations.get(&id.destination_id).is_none()) {
            let reason = "the topic is gone, and its destination is not configured";
            return Err(NotMade::Refused(reason.to_owned()));
        }
        if let Some(other) = self.creator.colliding_with(name) {
            return Err(NotMade::Collides(NotAdmitted::Collides(other).to_string()));
        }
        self.creator.ensure(name).await.map_err(|error| match error {
            error if error.is_name_collision() => NotMade::Collides(error.to_string()),
            error if error.is_refusal() => NotMade::Refused(error.to_string()),
            _ => NotMade::Later,
        })
    }

    /// Returns what is missing.
    async fn look(&self) -> Vec<Missing> {
        match self.admin.topics().await {
            Ok(all) => {
                let destinations = self.destinations.snapshot();
                self.take(&all, &destinations).await;
                self.all_names.forget();
                self.is_away.send_if_modified(std::mem::take);
                self.required.missing(&all, &destinations)
            }
            Err(error) => {
                self.is_away.send_if_modified(|is_away| !std::mem::replace(is_away, true));
                metrics::TOPIC_ERRORS.with_label_values(&["load_metadata_error"]).inc();
                // librdkafka answers "transport failure" and tells the client's log what that was
                let why = last_client_error();
                let kind = why.as_ref().map_or("other", ClientError::kind);
                metrics::KAFKA_UNREACHABLE.with_label_values(&[kind]).inc();
                warn!(
                    error = %error,
                    reason = why.map(|why| why.reason),
                    "topics of the cluster not known; the last look counts"
                );
                Vec::new()
            }
        }
    }

    /// Shows what was found as the new snapshot, and measures it.
    async fn take(&self, all: &[TopicMetadata], destinations: &Snapshot) {
        let mut snapshot = TopicSnapshot {
            at: Some((Instant::now(), SystemTime::now())),
            ..TopicSnapshot::default()
        };
        let mut abandoned = 0;
        for topic in all {
            if topic.name == self.shared_retry {
                snapshot.shared_retry_partitions = topic.partitions;
            }
            snapshot.has_pauses |= topic.name == self.pauses;
            let Some(id) = TopicId::parse(&self.prefix, &topic.name) else {
                snapshot.other_names.insert(topic.name.clone());
                continue;
            };
            if id.mode == TopicMode::Profiles {
                snapshot.profiles.insert(topic.name.clone());
                continue;
            }
            if destinations.get(&id.destination_id).is_none() {
                abandoned += 1;
                snapshot.other_names.insert(topic.name.clone());
                continue;
            }
            if topic.replication_factor < SAFE_REPLICAS {
                snapshot.few_replicas += 1;
            }
            let found = OurTopic { name: topic.name.clone(), id, partitions: topic.partitions };
            snapshot.topics.insert(topic.name.clone(), found);
        }
        snapshot.few_in_sync = self.count_few_in_sync(&snapshot.topics).await;
        let before = self.view.load();
        if (snapshot.few_replicas, snapshot.few_in_sync)
            != (before.few_replicas, before.few_in_sync)
        {
            warn!(
                few_replicas = snapshot.few_replicas,
                few_in_sync = snapshot.few_in_sync,
                "topics where one lost machine can lose acknowledged events"
            );
        }
        metrics::ALL_TOPICS.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        metrics::ABANDONED_TOPICS.set(abandoned);
        for (reason, count) in [
            ("replication_factor", snapshot.few_replicas),
            ("min_insync_replicas", snapshot.few_in_sync),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            metrics::WEAK_TOPICS.with_label_values(&[reason]).set(count);
        }
        self.creator.store(snapshot);
    }

    /// Topics are described once; the setting hardly ever changes.
    async fn count_few_in_sync(&self, topics: &HashMap<String, OurTopic>) -> usize {
        let lock = || self.in_sync.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<String> = {
            let mut described = lock();
            described.retain(|name, _| topics.contains_key(name));
            topics.keys().filter(|name| !described.contains_key(*name)).cloned().collect()
        };
        if !new.is_empty() {
            match self.admin.min_insync_replicas(&new).await {
                Ok(found) => lock().extend(found),
                Err(error) => info!(error = %error, "settings of topics not known"),
            }
        }
        lock().values().filter(|replicas| **replicas < SAFE_REPLICAS).count()
    }
}
