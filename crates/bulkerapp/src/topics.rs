//! The cluster's topics: which are ours, which are still to be made, and how well they are replicated.
//!
//! Invariant: nobody waits for a look at the cluster. Requests read a snapshot; the first request of a
//! table makes its topic and others of the same table wait with it, those of other tables do not.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use kafkabase::{
    Admin, AdminError, ClientError, KafkaConfig, NotMade, TopicId, TopicMaker, TopicMetadata,
    TopicMode, TopicSettings, last_client_error,
};
use tokio::{
    sync::{Notify, OnceCell},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    destinations::{Destinations, Snapshot},
    metrics,
    standing_topics::{Missing, StandingTopics},
};

/// Replicas, and replicas in sync, below which one lost machine can lose an acknowledged event.
const SAFE_REPLICAS: usize = 2;

/// The pause between two looks when the last one failed and somebody waits for Kafka.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two attempts to make a standing topic.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The topic that holds pauses of destinations. It is made by the first one.
pub fn pauses_topic(prefix: &str) -> String {
    format!("{prefix}bulker-pauses")
}

/// A topic of ours, as a look at the cluster found it.
#[derive(Debug, Clone)]
pub struct OurTopic {
    pub name: String,
    pub id: TopicId,
    pub partitions: usize,
}

/// What the last look at the cluster found.
#[derive(Debug, Default)]
pub struct TopicSnapshot {
    /// When it was; `None` before the first.
    pub at: Option<(Instant, SystemTime)>,
    pub topics: HashMap<String, OurTopic>,
    /// Topics of profile builders, which make them themselves.
    pub profiles: HashSet<String>,
    /// Whether the retry topic is there that all destinations share.
    pub has_shared_retry: bool,
    /// Whether the topic is there that holds pauses of destinations.
    pub has_pauses: bool,
    /// Our topics with fewer than two replicas.
    pub few_replicas: usize,
    /// Our topics that take an event with fewer than two replicas in sync.
    pub few_in_sync: usize,
}

/// The topics of this installation.
pub struct Topics {
    admin: Admin,
    prefix: String,
    shared_retry: String,
    pauses: String,
    settings: TopicSettings,
    standing: StandingTopics,
    destinations: Arc<Destinations>,
    snapshot: ArcSwap<TopicSnapshot>,
    /// Topics that were made or seen here, ahead of the snapshot.
    known: RwLock<HashSet<String>>,
    making: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
    look_again: Notify,
    /// The last look failed: nobody needs to wait for Kafka to find that out.
    is_away: AtomicBool,
    in_sync: Mutex<HashMap<String, usize>>,
    attempts: Mutex<HashMap<String, Attempt>>,
}

/// The last attempt to make a standing topic.
struct Attempt {
    at: Instant,
    /// Why it failed, as it was logged.
    refused: Option<String>,
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
    pub fn new(admin: Admin, config: &KafkaConfig, destinations: Arc<Destinations>) -> Topics {
        Topics {
            admin,
            prefix: config.kafka_topic_prefix.clone(),
            shared_retry: config.kafka_destinations_retry_topic_name.clone(),
            pauses: pauses_topic(&config.kafka_topic_prefix),
            settings: TopicSettings::table(config),
            standing: StandingTopics::new(config),
            destinations,
            snapshot: ArcSwap::default(),
            known: RwLock::default(),
            making: Mutex::default(),
            look_again: Notify::new(),
            is_away: AtomicBool::new(false),
            in_sync: Mutex::default(),
            attempts: Mutex::default(),
        }
    }

    /// What the last look found.
    pub fn snapshot(&self) -> Arc<TopicSnapshot> {
        self.snapshot.load_full()
    }

    /// Whether the topic is known to be there.
    pub fn is_known(&self, name: &str) -> bool {
        self.snapshot.load().topics.contains_key(name)
            || self.known.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Whether the last look at the cluster failed.
    pub fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// Makes the topic if it is not known. Requests for one topic share one attempt at a time.
    pub async fn ensure(&self, name: &str) -> Result<(), AdminError> {
        if self.is_known(name) {
            return Ok(());
        }
        let attempt = {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            making.entry(name.to_owned()).or_default().clone()
        };
        let made = attempt.get_or_try_init(|| self.make(name, &self.settings)).await.copied();
        if made.is_ok() {
            self.making.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
        made
    }

    /// Whether a profile builder's topic is there. Kafka is asked only while the last look found none.
    pub async fn has_profiles(&self, name: &str) -> Result<bool, AdminError> {
        if self.snapshot.load().profiles.contains(name) {
            return Ok(true);
        }
        match self.admin.topic_id(name).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_unknown_topic() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks at the cluster, again and again, and at once when the configuration changes.
    pub async fn watch(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let mut changes = self.destinations.changes();
        let mut making: Option<JoinHandle<()>> = None;
        loop {
            let missing = self.look().await;
            if making.as_ref().is_none_or(JoinHandle::is_finished) {
                let due = self.start_attempts(missing);
                if !due.is_empty() {
                    // beside the looks: a cluster that refuses may take its time for it
                    let topics = self.clone();
                    making = Some(tokio::spawn(async move { topics.make_standing(due).await }));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
                () = self.look_again.notified() => {
                    if self.is_away() {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                _ = changes.changed() => {}
            }
        }
    }

    /// What is to be tried now. A topic may be made and not be seen: it is new, or we may not see it.
    fn start_attempts(&self, mut missing: Vec<Missing>) -> Vec<Missing> {
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

    async fn make_standing(&self, missing: Vec<Missing>) {
        join_all(missing.iter().map(|missing| async move {
            let made = match missing {
                Missing::Topic { name, settings } => self.make(name, settings).await,
                Missing::Partitions { name, total } => {
                    self.admin.raise_partitions(name, *total).await
                }
            };
            self.note_standing(missing.topic(), made);
        }))
        .await;
    }

    /// Counts every failure, logs it once.
    fn note_standing(&self, topic: &str, made: Result<(), AdminError>) {
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

    async fn make(&self, name: &str, settings: &TopicSettings) -> Result<(), AdminError> {
        let made = self.admin.create_topic(name, settings).await;
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
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self.look_again.notify_one();
        Ok(())
    }

    /// Makes the topic for spooled events, if it is one of ours.
    async fn ensure_for_spool(&self, name: &str) -> Result<(), NotMade> {
        if self.is_away() || self.snapshot().at.is_none() {
            self.look_again.notify_one(); // somebody waits for Kafka
            return Err(NotMade::Later);
        }
        if self.is_known(name) {
            return Ok(());
        }
        // it may be there all the same: the snapshot is of a moment, and has the topics of configured destinations only
        let all = self.admin.topics().await.map_err(|_| NotMade::Later)?;
        if all.iter().any(|topic| topic.name == name) {
            return Ok(());
        }
        let id = TopicId::parse(&self.prefix, name);
        if id.is_none_or(|id| self.destinations.get(&id.destination_id).is_none()) {
            let reason = "the topic is gone, and its destination is not configured";
            return Err(NotMade::Refused(reason.to_owned()));
        }
        self.ensure(name).await.map_err(|error| match error.is_refusal() {
            true => NotMade::Refused(error.to_string()),
            false => NotMade::Later,
        })
    }

    /// Returns what is missing.
    async fn look(&self) -> Vec<Missing> {
        match self.admin.topics().await {
            Ok(all) => {
                self.is_away.store(false, Ordering::Relaxed);
                let destinations = self.destinations.snapshot();
                self.take(&all, &destinations).await;
                self.standing.missing(&all, &destinations)
            }
            Err(error) => {
                self.is_away.store(true, Ordering::Relaxed);
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

    async fn take(&self, all: &[TopicMetadata], destinations: &Snapshot) {
        let mut snapshot = TopicSnapshot {
            at: Some((Instant::now(), SystemTime::now())),
            ..TopicSnapshot::default()
        };
        let mut abandoned = 0;
        for topic in all {
            snapshot.has_shared_retry |= topic.name == self.shared_retry;
            snapshot.has_pauses |= topic.name == self.pauses;
            let Some(id) = TopicId::parse(&self.prefix, &topic.name) else {
                continue;
            };
            if id.mode == TopicMode::Profiles {
                snapshot.profiles.insert(topic.name.clone());
                continue;
            }
            if destinations.get(&id.destination_id).is_none() {
                abandoned += 1;
                continue;
            }
            if topic.replication_factor < SAFE_REPLICAS {
                snapshot.few_replicas += 1;
            }
            let found = OurTopic { name: topic.name.clone(), id, partitions: topic.partitions };
            snapshot.topics.insert(topic.name.clone(), found);
        }
        snapshot.few_in_sync = self.count_few_in_sync(&snapshot.topics).await;
        let before = self.snapshot.load();
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
        // a topic that was deleted has to be made again by the next event
        let known = &mut *self.known.write().unwrap_or_else(PoisonError::into_inner);
        if before.at.is_some() {
            known.retain(|name| !before.topics.contains_key(name));
        }
        self.snapshot.store(Arc::new(snapshot));
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
