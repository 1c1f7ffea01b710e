//! The loop that keeps every topic moving: what is due runs, what failed comes back soon, what
//! waits is measured.
//!
//! One task owns all state, so there is no lock; runs are tasks of their own, as many at a time as
//! there are workers. An idle topic is a map entry.

mod backlog;
pub(crate) mod owned_topics;
pub(crate) mod ownership;
mod schedule;
pub(crate) mod status;
pub(crate) mod tasks;
mod topic_state;
mod workers;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use appbase::telemetry::chain;
use kafkabase::Fetcher;
use tokio::{
    sync::{Semaphore, watch},
    task::{Id, JoinSet},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    owned_topics::OwnedTopics,
    status::LoaderStatus,
    tasks::{Ended, Fetches},
    topic_state::{TopicState, Work},
    workers::Workers,
};
use crate::{
    observe::metrics,
    pauses::PausedDestinations,
    run::{context::RunContext, hand_over},
    topic::OwnedTopic,
};

/// How often the loop looks for topics that are due.
const TICK: Duration = Duration::from_millis(100);
/// How often the positions of topics that are followed are compared with the ledgers.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// Topics that Kafka is brought up to date on at a time when they are given up.
const HAND_OVERS_AT_ONCE: usize = 16;

/// How the loader works; fields, so that a test can make them small.
#[derive(Debug, Clone)]
pub struct LoaderSettings {
    /// Runs at a time.
    pub workers: usize,
    /// Runs at a time of one destination, so that one that hangs leaves workers to the others.
    pub workers_per_destination: usize,
    /// How often the ends of all topics are looked at.
    pub sweep_every: Duration,
    /// How long the batches in hand may take after a stop.
    pub stop_within: Duration,
    /// How long a topic that is due may not move before that is an alarm.
    pub alarm_after: Duration,
    /// After how long without a move its task is ended where it stands, and begun anew. Longer than
    /// any statement of a load that goes well.
    pub heal_after: Duration,
}

/// The scheduler: made once, run as one task.
pub(crate) struct Scheduler {
    context: RunContext,
    source: Arc<OwnedTopics>,
    settings: LoaderSettings,
    rebuild_fetcher: Box<dyn Fn(Fetches) -> Option<Fetcher> + Send>,
    topics: HashMap<String, TopicState>,
    /// Runs and tails.
    tasks: JoinSet<Ended>,
    running: HashMap<Id, String>,
    workers: Workers,
    /// As the source named them last.
    owned: Arc<Vec<Arc<OwnedTopic>>>,
    /// As they were known last.
    paused: Arc<PausedDestinations>,
    hand_overs: JoinSet<()>,
    hand_over_permits: Arc<Semaphore>,
    /// Whether a topic began or ceased to fail or to be held since the status was published.
    status_changed: bool,
    status: watch::Sender<LoaderStatus>,
}

impl Scheduler {
    /// `rebuild_fetcher` makes a new fetcher when the present one is stuck.
    pub(crate) fn new(
        context: RunContext,
        source: Arc<OwnedTopics>,
        settings: LoaderSettings,
        status: watch::Sender<LoaderStatus>,
        rebuild_fetcher: impl Fn(Fetches) -> Option<Fetcher> + Send + 'static,
    ) -> Scheduler {
        Scheduler {
            context,
            source,
            workers: Workers::new(settings.workers, settings.workers_per_destination),
            settings,
            rebuild_fetcher: Box::new(rebuild_fetcher),
            topics: HashMap::new(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            owned: Arc::default(),
            paused: Arc::default(),
            hand_overs: JoinSet::new(),
            hand_over_permits: Arc::new(Semaphore::new(HAND_OVERS_AT_ONCE)),
            status_changed: false,
            status,
        }
    }

    /// Loads until `stop`, then finishes the batches in hand and hands the topics over.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(self.settings.sweep_every);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut compare = tokio::time::interval(COMPARE_EVERY);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweeping: Option<tokio::task::JoinHandle<()>> = None;
        let mut comparing: Option<tokio::task::JoinHandle<()>> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => {
                    if self.task_ended(ended, &stop) {
                        self.queue_due();
                    }
                    self.start_runs(&stop);
                }
                _ = tick.tick() => {
                    self.find_topics(&stop);
                    self.apply_pauses();
                    while self.hand_overs.try_join_next().is_some() {}
                    self.queue_due();
                    self.start_runs(&stop);
                    if self.status_changed {
                        self.publish();
                    }
                }
                _ = sweep.tick() => {
                    if sweeping.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                        sweeping = Some(self.sweep());
                    }
                    self.publish();
                }
                _ = compare.tick() => {
                    if comparing.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                        comparing = Some(self.compare_positions());
                    }
                }
            }
        }
        self.finish(stop).await;
    }

    /// Takes up topics that are new here and gives up those that are gone or another instance's.
    fn find_topics(&mut self, stop: &CancellationToken) {
        let owned = self.source.owned_topics();
        if Arc::ptr_eq(&owned, &self.owned) {
            return;
        }
        self.owned = owned;
        let now = self.context.clock.unix_seconds();
        let names: HashSet<_> = self.owned.iter().map(|topic| topic.id.as_str()).collect();
        let lost: Vec<_> =
            self.topics.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        for name in lost {
            self.give_up(&name, stop);
        }
        for topic in self.owned.iter() {
            let Some(schedule) = self.source.schedule(topic) else {
                continue;
            };
            let state = self.topics.entry(topic.id.clone());
            let state = state.or_insert_with(|| TopicState::new(topic.clone(), now));
            state.is_ours = true;
            if let Work::Tail(task, target) = &state.work
                && self
                    .source
                    .target(&topic.destination_id)
                    .is_none_or(|current| !Arc::ptr_eq(&current, target))
            {
                task.stop.cancel(); // the destination changed; the next run uses it as it is now
            }
            state.follow(&schedule, now);
        }
    }

    /// Ends the work for destinations that were paused, and takes up that for those that were
    /// resumed.
    fn apply_pauses(&mut self) {
        let before = std::mem::replace(&mut self.paused, self.context.pauses.current());
        if Arc::ptr_eq(&before, &self.paused) {
            return;
        }
        let now = self.context.clock.unix_seconds();
        for state in self.topics.values_mut() {
            let id = &state.topic.destination_id;
            let is_paused = self.paused.contains_key(id);
            if is_paused == before.contains_key(id) {
                continue;
            }
            state.due = now; // to be held, or loaded, at once
            if let Some(task) = state.task().filter(|_| is_paused) {
                task.stop.cancel();
            }
        }
    }

    /// Ends the work on a topic, which another instance may go on with, and brings Kafka to where
    /// it stands.
    fn give_up(&mut self, name: &str, stop: &CancellationToken) {
        let Some(state) = self.topics.get_mut(name) else {
            return;
        };
        state.is_ours = false;
        if let Some(task) = state.task() {
            return task.stop.cancel(); // comes back when it ended
        }
        if let Some(state) = self.topics.remove(name) {
            metrics::forget(&state.topic);
            self.start_hand_over(state, stop);
        }
    }

    fn start_hand_over(&mut self, state: TopicState, stop: &CancellationToken) {
        let TopicState { topic, progress, .. } = state;
        let target = self.source.target(&topic.destination_id);
        let (context, stop) = (self.context.clone(), stop.clone());
        let permits = self.hand_over_permits.clone();
        self.hand_overs.spawn(async move {
            let _permit = permits.acquire().await;
            if let Err(error) =
                hand_over::of_topic(&context, (&topic, &progress), target.as_deref(), &stop).await
            {
                warn!(
                    topic = topic.name,
                    error = %chain(&error),
                    "Kafka may not know yet how far the topic is loaded"
                );
            }
        });
    }

    fn hand_over_idle(&mut self, stop: &CancellationToken) {
        let idle: Vec<_> =
            self.topics.extract_if(|_, state| state.is_idle()).map(|(_, state)| state).collect();
        for state in idle {
            self.start_hand_over(state, stop);
        }
    }

    /// Lets the batches in hand end, and brings Kafka to the rows of each topic, all within the deadline.
    async fn finish(mut self, stop: CancellationToken) {
        let deadline = tokio::time::Instant::now() + self.settings.stop_within;
        let work = async {
            // at once where nothing is in hand: one load that hangs holds up its own topic only
            self.hand_over_idle(&stop);
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.task_ended(ended, &stop);
                self.hand_over_idle(&stop);
            }
            while self.hand_overs.join_next().await.is_some() {}
        };
        if tokio::time::timeout_at(deadline, work).await.is_err() {
            warn!("loader stopped by its deadline; the batches in hand are rolled back");
        } else {
            info!("loader stopped");
        }
    }
}
