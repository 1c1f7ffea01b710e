//! The loop that keeps every topic moving: what is due runs, what failed comes back soon, what waits is
//! measured.
//!
//! One task owns all state, so there is no lock; runs are tasks of their own, as many at a time as there
//! are workers. An idle topic is a map entry.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use appbase::telemetry::chain;
use kafkabase::{Fetcher, OffsetSpec, TopicMode};
use tokio::{
    sync::{Semaphore, watch},
    task::{Id, JoinSet},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    hand_over, metrics,
    pauses::PausedDestinations,
    retries::RetryRun,
    run::{RunContext, RunEnd, RunError, TopicRun},
    start::HoldReason,
    tail::{Tail, TailEnd},
    target::{LoadTarget, OwnedTopic},
    topic_state::{Task, TopicState, Work, unix_seconds},
    workers::Workers,
};

/// How often the loop looks for topics that are due.
const TICK: Duration = Duration::from_millis(100);
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
    /// After how long without a move its task is ended where it stands, and begun anew. Longer than any statement of a
    /// load that goes well.
    pub heal_after: Duration,
}

impl LoaderSettings {
    /// Ends the task of a topic that has been still for too long. `true`: it was a tail, which may not get what is there.
    fn heal(&self, state: &TopicState, stalled_for: Duration) -> bool {
        let Some(task) = state.task() else {
            return false;
        };
        // a tail that is not given anything is healed as soon as that is an alarm: nothing is half done
        let is_tail = matches!(state.work, Work::Tail(..));
        let patience = if is_tail { self.alarm_after } else { self.heal_after };
        if stalled_for < patience || task.since.elapsed() < patience {
            return false;
        }
        error!(topic = state.topic.name, "stalled topic: its work is ended and begun anew");
        metrics::count_healed(&state.topic);
        task.handle.abort();
        is_tail
    }
}

/// What the loader works on: topics that exist, and destinations by id.
pub trait LoadSource: Send + Sync + 'static {
    /// The topics that this instance owns. Called often; cheap. The same list until they, or the destinations, change.
    fn owned_topics(&self) -> Arc<Vec<Arc<OwnedTopic>>>;
    /// When the topic runs, as it is configured now.
    fn schedule(&self, topic: &OwnedTopic) -> Option<TopicSchedule>;
    /// The destination as it is configured now.
    fn target(&self, destination_id: &str) -> Option<Arc<LoadTarget>>;
}

/// When a topic runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSchedule {
    /// What the start within the period depends on: the destination's id.
    pub id: String,
    /// Seconds.
    pub period: i64,
    /// Spreads the runs over the whole period.
    pub spread_tables: bool,
}

/// What is said of a topic that another loader loads, too.
const OVERTAKEN: &str = "another loader moved its offsets row; again and again: two instances have the same INSTANCE_INDEX";

/// What the loader says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoaderStatus {
    /// Topics that are not loaded on purpose, with the reason.
    pub held: BTreeMap<String, &'static str>,
    /// Topics whose last run failed, with the error. Never holds a row value.
    pub failing: BTreeMap<String, String>,
    /// Topics that another loader loads, too, with what to look at.
    pub overtaken: BTreeMap<String, &'static str>,
    /// Topics that are due and do not move, with the seconds since they last did.
    pub stalled: BTreeMap<String, u64>,
    /// Seconds that the oldest unloaded event of all topics waits.
    pub oldest_unloaded_age_seconds: f64,
}

/// The loader: made once, run as one task.
pub(super) struct Loader<S> {
    context: RunContext,
    source: Arc<S>,
    settings: LoaderSettings,
    rebuild_fetcher: Box<dyn Fn(Fetches) -> Option<Fetcher> + Send>,
    topics: HashMap<String, TopicState>,
    /// Runs and tails.
    tasks: JoinSet<Ended>,
    running: HashMap<Id, String>,
    workers: Workers,
    /// As the source named them last.
    owned: Arc<Vec<Arc<OwnedTopic>>>,
    /// As they were told last.
    paused: Arc<PausedDestinations>,
    hand_overs: JoinSet<()>,
    hand_over_places: Arc<Semaphore>,
    /// Whether a topic began or ceased to fail or to be held since the status was published.
    status_changed: bool,
    status: watch::Sender<LoaderStatus>,
}

/// What a fetcher is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetches {
    Runs,
    Tails,
}

/// How a task over a topic ended.
enum Ended {
    Run(Result<RunEnd, RunError>),
    Tail(Result<TailEnd, RunError>),
}

impl Ended {
    /// Whether the warehouse could not be reached.
    fn is_outage(&self) -> bool {
        let (Ended::Run(Err(error)) | Ended::Tail(Err(error))) = self else {
            return false;
        };
        matches!(error, RunError::Aborted)
            || matches!(error, RunError::Load(error) if error.is_retriable())
    }
}

impl<S: LoadSource> Loader<S> {
    /// `rebuild_fetcher` makes a new fetcher when the present one is stuck.
    pub(super) fn new(
        context: RunContext,
        source: Arc<S>,
        settings: LoaderSettings,
        status: watch::Sender<LoaderStatus>,
        rebuild_fetcher: impl Fn(Fetches) -> Option<Fetcher> + Send + 'static,
    ) -> Loader<S> {
        Loader {
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
            hand_over_places: Arc::new(Semaphore::new(HAND_OVERS_AT_ONCE)),
            status_changed: false,
            status,
        }
    }

    /// Loads until `stop`, then finishes the batches in hand and hands the topics over.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(self.settings.sweep_every);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweeping: Option<tokio::task::JoinHandle<()>> = None;
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
                    self.obey_pauses();
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
            }
        }
        self.finish(stop).await;
    }

    /// Takes up topics that are new here and gives up those that are gone or somebody else's.
    fn find_topics(&mut self, stop: &CancellationToken) {
        let owned = self.source.owned_topics();
        if Arc::ptr_eq(&owned, &self.owned) {
            return;
        }
        self.owned = owned;
        let now = unix_seconds();
        let names: HashSet<_> = self.owned.iter().map(|topic| topic.name.as_str()).collect();
        let lost: Vec<_> =
            self.topics.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        for name in lost {
            self.give_up(&name, stop);
        }
        for topic in self.owned.iter() {
            let Some(schedule) = self.source.schedule(topic) else {
                continue;
            };
            let state = self.topics.entry(topic.name.clone());
            let state = state.or_insert_with(|| TopicState::new(topic.clone()));
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

    /// Ends the work for destinations that were paused, and takes up that for those that were resumed.
    fn obey_pauses(&mut self) {
        let before = std::mem::replace(&mut self.paused, self.context.pauses.current());
        if Arc::ptr_eq(&before, &self.paused) {
            return;
        }
        let now = unix_seconds();
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

    /// Ends the work on a topic, which another instance may go on with, and brings Kafka to where it stands.
    fn give_up(&mut self, name: &str, stop: &CancellationToken) {
        let Some(state) = self.topics.get_mut(name) else {
            return;
        };
        state.is_ours = false;
        if let Some(task) = state.task() {
            return task.stop.cancel(); // comes back when it ended
        }
        if let Some(state) = self.topics.remove(name) {
            metrics::forget(&state.topic, state.held.map(HoldReason::kind));
            self.start_hand_over(state.topic, stop);
        }
    }

    fn start_hand_over(&mut self, topic: Arc<OwnedTopic>, stop: &CancellationToken) {
        let target = self.source.target(&topic.destination_id);
        let (context, stop) = (self.context.clone(), stop.clone());
        let places = self.hand_over_places.clone();
        self.hand_overs.spawn(async move {
            let _place = places.acquire().await;
            if let Err(error) =
                hand_over::of_topic(&context, &topic, target.as_deref(), &stop).await
            {
                warn!(
                    topic = topic.name,
                    error = %chain(&error),
                    "Kafka may not know yet how far the topic is loaded"
                );
            }
        });
    }

    fn queue_due(&mut self) {
        if self.workers.are_all_busy() {
            return; // what waits is queued already, or by the next tick
        }
        let now = unix_seconds();
        let due = self.topics.values().filter(|state| state.is_idle() && state.due <= now);
        self.workers.queue(due.map(|state| (state.due, state.topic.clone())).collect());
    }

    /// Starts what is due, as far as there are workers.
    fn start_runs(&mut self, stop: &CancellationToken) {
        while let Some(topic) = self.workers.next() {
            let is_idle = self.topics.get(&topic.name).is_some_and(TopicState::is_idle);
            let target = self.source.target(&topic.destination_id);
            if is_idle && (target.is_some() || topic.mode == TopicMode::Retry) {
                self.start_run(topic, target, stop.child_token());
            } else {
                self.workers.release(&topic.destination_id);
            }
        }
    }

    fn start_run(
        &mut self,
        topic: Arc<OwnedTopic>,
        target: Option<Arc<LoadTarget>>,
        stop: CancellationToken,
    ) {
        let (name, token) = (topic.name.clone(), stop.clone());
        let context = self.context.clone();
        let span = info_span!("run", topic = name, destination_id = topic.destination_id);
        let run = async move {
            let (context, stop) = (&context, &stop);
            if context.pauses.is_paused(&topic.destination_id) {
                return Ended::Run(Ok(RunEnd::Held(HoldReason::Paused)));
            }
            Ended::Run(match target {
                Some(target) if topic.mode != TopicMode::Retry => {
                    TopicRun { context, topic: &topic, target: &target, stop }.run().await
                }
                _ => RetryRun { context, topic: &topic, stop }.run().await,
            })
        };
        let task = self.spawn(&name, run.instrument(span), token);
        if let Some(state) = self.topics.get_mut(&name) {
            state.work = Work::Run(task);
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl Future<Output = Ended> + Send + 'static,
        stop: CancellationToken,
    ) -> Task {
        let handle = self.tasks.spawn(work);
        self.running.insert(handle.id(), name.to_owned());
        Task { stop, handle, since: Instant::now() }
    }

    /// Follows a stream topic from where its run ended.
    fn start_tail(&mut self, name: &str, from: i64, stop: &CancellationToken) {
        let Some(topic) = self.topics.get(name).map(|state| state.topic.clone()) else {
            return;
        };
        let Some(target) = self.source.target(&topic.destination_id) else {
            return;
        };
        let (stop, of_tail) = (stop.child_token(), target.clone());
        let token = stop.clone();
        let context = self.context.clone();
        let span = info_span!("tail", topic = name, destination_id = topic.destination_id);
        let tail = async move {
            let run = TopicRun { context: &context, topic: &topic, target: &target, stop: &stop };
            Ended::Tail(Tail { run }.follow(from).await)
        };
        let task = self.spawn(name, tail.instrument(span), token);
        if let Some(state) = self.topics.get_mut(name) {
            state.work = Work::Tail(task, of_tail);
        }
    }

    /// Takes note of the end of a run or a tail. `true`: its topic is due at once.
    fn task_ended(
        &mut self,
        ended: Result<(Id, Ended), tokio::task::JoinError>,
        stop: &CancellationToken,
    ) -> bool {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(error) if error.is_cancelled() => (error.id(), Ended::Run(Err(RunError::Aborted))),
            Err(error) => (error.id(), Ended::Run(Err(RunError::Panicked))),
        };
        let name = self.running.remove(&id).unwrap_or_default();
        let Some(state) = self.topics.get_mut(&name) else {
            return false;
        };
        let was_healthy = state.is_healthy();
        let was_run = state.is_running();
        state.work = Work::Nothing;
        if was_run {
            self.workers.release(&state.topic.destination_id);
        }
        self.workers.set_unreachable(&state.topic.destination_id, ended.is_outage());
        let mut is_stuck = false;
        let mut follows_from = None;
        let is_due = match ended {
            Ended::Tail(Ok(TailEnd::Behind | TailEnd::Stopped)) => {
                state.due = unix_seconds();
                true
            }
            Ended::Tail(Ok(TailEnd::NoRows)) => false,
            Ended::Run(result) => {
                is_stuck = matches!(&result, Err(RunError::Read(error)) if error.is_stalled());
                if let (Ok(RunEnd::At { next_offset }), TopicMode::Stream) =
                    (&result, state.topic.mode)
                {
                    follows_from = Some(*next_offset);
                }
                state.ended(result);
                false
            }
            Ended::Tail(Err(error)) => {
                is_stuck = matches!(&error, RunError::Read(error) if error.is_stalled());
                state.ended(Err(error));
                false
            }
        };
        if state.held.is_none() && self.paused.contains_key(&state.topic.destination_id) {
            state.due = unix_seconds(); // paused while it was loaded: to be held at once
            follows_from = None;
        }
        self.status_changed |= !was_healthy || !state.is_healthy();
        let is_ours = state.is_ours;
        if is_stuck {
            self.replace_fetcher(if was_run { Fetches::Runs } else { Fetches::Tails });
        }
        if !is_ours {
            self.give_up(&name, stop);
        } else if let Some(from) = follows_from.filter(|_| !stop.is_cancelled()) {
            self.start_tail(&name, from, stop);
        }
        is_due && is_ours
    }

    /// A reader that got nothing although there was something: the client may be stuck, a new one is made.
    /// Runs that still read with the old one keep it until they end.
    fn replace_fetcher(&mut self, fetches: Fetches) {
        match (self.rebuild_fetcher)(fetches).map(Arc::new) {
            Some(fetcher) => {
                warn!(?fetches, "fetcher rebuilt after a stalled read");
                match fetches {
                    Fetches::Runs => self.context.fetcher = fetcher,
                    Fetches::Tails => self.context.tail_fetcher = fetcher,
                }
            }
            None => error!("fetcher could not be rebuilt"),
        }
    }

    /// Asks for the ends of all topics, in the background.
    fn sweep(&self) -> tokio::task::JoinHandle<()> {
        let admin = self.context.admin.clone();
        let topics: Vec<_> = self.topics.values().map(|state| state.topic.clone()).collect();
        tokio::spawn(async move {
            let partitions = topics.iter().map(|topic| (topic.name.clone(), topic.partition));
            match admin.offsets(partitions.collect(), OffsetSpec::CommittedEnd).await {
                Ok(ends) => {
                    for (topic, end) in topics.iter().zip(ends) {
                        if let Ok(end) = end {
                            topic.set_end(end);
                        }
                    }
                }
                Err(error) => info!(error = %error, "ends of the topics not known"),
            }
        })
    }

    fn publish(&mut self) {
        let now = Instant::now();
        let mut status = LoaderStatus::default();
        let mut stuck_tails = false;
        for (name, state) in &mut self.topics {
            let stalled_for = state.watch(now, self.settings.alarm_after);
            if let Some(stalled_for) = stalled_for {
                status.stalled.insert(name.clone(), stalled_for.as_secs());
                stuck_tails |= self.settings.heal(state, stalled_for);
            }
            let age = state.age(now).as_secs_f64();
            metrics::set_backlog(&state.topic, state.backlog.size(), age);
            status.oldest_unloaded_age_seconds = status.oldest_unloaded_age_seconds.max(age);
            if let Some(reason) = state.held {
                status.held.insert(name.clone(), reason.kind());
            }
            if state.topic.was_overtaken() {
                status.overtaken.insert(name.clone(), OVERTAKEN);
            }
            if let Some(error) = &state.error {
                status.failing.insert(name.clone(), error.clone());
            }
        }
        if stuck_tails {
            self.replace_fetcher(Fetches::Tails);
        }
        self.status.send_replace(status);
        self.status_changed = false;
    }

    /// Lets the batches in hand end, then brings Kafka to the rows, all within the deadline.
    async fn finish(mut self, stop: CancellationToken) {
        let deadline = tokio::time::Instant::now() + self.settings.stop_within;
        let work = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.task_ended(ended, &stop);
            }
            for state in std::mem::take(&mut self.topics).into_values() {
                self.start_hand_over(state.topic, &stop);
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
