//! What became of all events, from the offsets rows of all destinations.
//!
//! The rows move in the transactions that carry the events, so these counts survive any kill, and
//! after every load `received = loaded + merged + waiting + dead`. They are shared by all
//! instances: each tells the same.
//!
//! Invariants: one question to each destination and one to Kafka, however many topics there are,
//! and not more often than every [`FRESH_FOR`] however often it is asked for; a destination that
//! does not answer is named, and takes none of the others down.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use appbase::telemetry::chain;
use arc_swap::ArcSwap;
use futures_util::StreamExt;
use jiff::Timestamp;
use kafkabase::{Admin, OffsetSpec, TopicId, TopicMode, TopicView};
use tokio::sync::{Mutex, OnceCell};
use tracing::{info, warn};
use warehouse::CountedPosition;

use super::{
    metrics,
    snapshot::{DestinationStats, StatsSnapshot, TableStats},
};
use crate::{
    target::{LoadTarget, TargetSource},
    topic::PARTITION,
};

/// How long an answer is given again.
const FRESH_FOR: Duration = Duration::from_secs(5);
/// How long Kafka, and each destination, may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Questions that are on their way at a time.
const AT_ONCE: usize = 16;

/// Counts events by asking the destinations.
pub struct Stats {
    admin: Admin,
    topics: TopicView,
    topic_prefix: String,
    targets: Arc<dyn TargetSource>,
    cluster_id: OnceCell<String>,
    latest: ArcSwap<StatsSnapshot>,
    /// Held while one caller asks, so that all others wait for the same answer.
    asking: Mutex<()>,
}

impl Stats {
    /// Asks Kafka and the destinations that are configured when it is asked.
    pub fn new(
        admin: Admin,
        topics: TopicView,
        topic_prefix: &str,
        targets: Arc<dyn TargetSource>,
    ) -> Stats {
        Stats {
            admin,
            topics,
            topic_prefix: topic_prefix.to_owned(),
            targets,
            cluster_id: OnceCell::new(),
            latest: ArcSwap::default(),
            asking: Mutex::default(),
        }
    }

    /// The last answer, whatever its age. Costs nothing.
    pub fn known(&self) -> Arc<StatsSnapshot> {
        self.latest.load_full()
    }

    /// Destinations whose user has no right to keep offsets rows, and what helps, as their last
    /// runs found.
    pub fn at_least_once(&self) -> BTreeMap<String, String> {
        let targets = self.targets.targets();
        let without =
            targets.iter().map(|target| (target.destination_id.clone(), target.at_least_once()));
        without.filter_map(|(id, reason)| Some((id, reason?))).collect()
    }

    /// An answer that is at most a few seconds old. Takes about three seconds where a destination
    /// does not answer. Dropped, the next caller asks anew.
    pub async fn latest(&self) -> Arc<StatsSnapshot> {
        let _alone = self.asking.lock().await;
        let known = self.known();
        if known.at.is_some_and(|(at, _)| at.elapsed() < FRESH_FOR) {
            return known;
        }
        let mut snapshot = self.ask().await;
        snapshot.keep_where_silent(&known);
        let snapshot = Arc::new(snapshot);
        log_changes(&known, &snapshot);
        metrics::set_table_events(&known, &snapshot);
        self.latest.store(snapshot.clone());
        snapshot
    }

    /// Brings the gauges up to date, as far as that is done within `wait`; what takes longer goes
    /// on.
    pub async fn refresh_within(self: &Arc<Self>, wait: Duration) {
        let stats = self.clone();
        let asking = tokio::spawn(async move { stats.latest().await });
        let _ = tokio::time::timeout(wait, asking).await; // late: the gauges tell of the last time
    }

    async fn ask(&self) -> StatsSnapshot {
        let at = Some((Instant::now(), Timestamp::now()));
        let targets = self.targets.targets();
        let (ends, cluster_id) = tokio::join!(self.ends(), self.cluster_id());
        let Some(cluster_id) = cluster_id else {
            return StatsSnapshot { at, is_kafka_unknown: true, ..StatsSnapshot::default() };
        };
        let asked = targets.iter().cloned().map(|target| ask_one(target, cluster_id.clone()));
        let answers: Vec<_> =
            futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        let mut destinations = BTreeMap::new();
        for (id, answer) in answers {
            let said = match answer {
                Ok(rows) => self.count(&id, rows, &ends).await,
                Err(problem) => {
                    DestinationStats { problem: Some(problem), ..DestinationStats::default() }
                }
            };
            destinations.insert(id, said);
        }
        StatsSnapshot { at, is_kafka_unknown: false, destinations }
    }

    async fn cluster_id(&self) -> Option<&String> {
        let ask = self.cluster_id.get_or_try_init(|| self.admin.cluster_id());
        tokio::time::timeout(ANSWER_WITHIN, ask).await.ok()?.ok()
    }

    /// The ends of all tables' topics; empty where Kafka does not tell.
    async fn ends(&self) -> HashMap<String, i64> {
        let snapshot = self.topics.load();
        let names: Vec<String> = snapshot
            .topics
            .values()
            .filter(|topic| matches!(topic.id.mode, TopicMode::Batch | TopicMode::Stream))
            .map(|topic| topic.name.clone())
            .collect();
        let partitions = names.iter().map(|name| (name.clone(), PARTITION)).collect();
        let asked = self.admin.offsets(partitions, OffsetSpec::CommittedEnd);
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(ends)) => {
                names.into_iter().zip(ends).filter_map(|(n, end)| Some((n, end.ok()?))).collect()
            }
            _ => HashMap::new(),
        }
    }

    /// Sums up the rows of one destination by table, and what its topics without a row wait with.
    async fn count(
        &self,
        id: &str,
        rows: Option<Vec<CountedPosition>>,
        ends: &HashMap<String, i64>,
    ) -> DestinationStats {
        let has_rows = rows.is_some();
        let mut tables: BTreeMap<String, TableStats> = BTreeMap::new();
        let mut started = HashSet::new();
        for row in rows.unwrap_or_default() {
            // a database may hold the rows of several destinations, and of other installations
            let topic = TopicId::parse(&self.topic_prefix, &row.topic);
            let Some(topic) = topic.filter(|topic| topic.destination_id == id) else {
                continue;
            };
            let is_new = !tables.contains_key(&topic.table);
            let table = tables.entry(topic.table).or_default();
            let end = ends.get(&row.topic).filter(|_| row.partition == PARTITION);
            let unread = end.map(|end| (end - row.position.next_offset).max(0));
            table.backlog = match (is_new, table.backlog, unread) {
                (true, _, unread) => unread,
                (false, before, unread) => before.zip(unread).map(|(a, b)| a + b),
            };
            table.add(&row);
            started.insert(row.topic);
        }
        for (table, unread) in self.unstarted(id, &started, ends).await {
            let table = tables
                .entry(table)
                .or_insert_with(|| TableStats { backlog: Some(0), ..TableStats::default() });
            table.backlog = table.backlog.zip(unread).map(|(a, b)| a + b);
        }
        DestinationStats { problem: None, has_rows, tables }
    }

    /// Topics with something in them and without a row: their groups say how far they were read.
    async fn unstarted(
        &self,
        id: &str,
        started: &HashSet<String>,
        ends: &HashMap<String, i64>,
    ) -> Vec<(String, Option<i64>)> {
        let mut topics = Vec::new();
        for topic in self.topics.load().topics.values() {
            let end = ends.get(&topic.name).copied().unwrap_or_default();
            if topic.id.destination_id == id && end > 0 && !started.contains(&topic.name) {
                topics.push((topic.name.clone(), topic.id.table.clone(), end));
            }
        }
        let asked = topics.into_iter().map(|(topic, table, end)| async move {
            let unread = tokio::time::timeout(ANSWER_WITHIN, self.unread(&topic, end)).await;
            (table, unread.ok().flatten())
        });
        futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await
    }

    /// Offsets from where the group stands to the end.
    async fn unread(&self, topic: &str, end: i64) -> Option<i64> {
        let group = self.admin.topic_group(topic, PARTITION);
        let start = match group.committed().await.ok()? {
            Some(group) => group.offset,
            None => group.low().await.ok()?,
        };
        Some((end - start).max(0))
    }
}

/// The rows of one destination, or why they are not known.
async fn ask_one(
    target: Arc<LoadTarget>,
    cluster_id: String,
) -> (String, Result<Option<Vec<CountedPosition>>, String>) {
    let rows = target.warehouse.positions(&cluster_id);
    let answer = match tokio::time::timeout(ANSWER_WITHIN, rows).await {
        Ok(Ok(rows)) => Ok(rows),
        Ok(Err(error)) => Err(chain(&error).to_string()),
        Err(_) => Err("the database does not answer in time".to_owned()),
    };
    (target.destination_id.clone(), answer)
}

/// Says once when a destination ceases to answer, and when it answers again.
fn log_changes(before: &StatsSnapshot, now: &StatsSnapshot) {
    for (id, said) in &now.destinations {
        let was = before.destinations.get(id).and_then(|said| said.problem.as_ref());
        match (&said.problem, was) {
            (Some(problem), None) => {
                warn!(destination_id = id, problem, "destination does not tell its counters");
            }
            (None, Some(_)) => info!(destination_id = id, "destination tells its counters again"),
            _ => {}
        }
    }
}
