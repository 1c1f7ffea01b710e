//! The loop that keeps every topic moving: what is due runs, what failed comes back soon, what waits is
//! measured.
//!
//! One task owns all state, so there is no lock; runs are tasks of their own, as many at a time as there
//! are workers. An idle topic is a map entry.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use appbase::telemetry::chain;
use kafkabase::{Fetcher, Mode, OffsetSpec};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    backlog::Backlog,
    metrics,
    reader::ReadError,
    retries::RetryRun,
    run::{RunContext, RunEnd, RunError, TopicRun},
    schedule,
    start::HoldReason,
    target::{LoadTarget, OwnedTopic},
};

/// How often the loop looks for topics that are due.
const TICK: Duration = Duration::from_millis(100);
/// Pauses after a failed run: doubled from the first to the last, or to the topic's period.
const RETRY_PAUSES: (i64, i64) = (1, 30);

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
}

/// What the loader works on: topics that exist, and destinations by id.
pub trait LoadSource: Send + Sync + 'static {
    /// The topics that this instance owns. Called often; cheap.
    fn owned_topics(&self) -> Vec<Arc<OwnedTopic>>;
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

/// What the loader says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoaderStatus {
    /// Topics that are not loaded on purpose, with the reason.
    pub held: BTreeMap<String, &'static str>,
    /// Topics whose last run failed, with the error. Never holds a row value.
    pub failing: BTreeMap<String, String>,
    /// Seconds that the oldest unloaded event of all topics waits.
    pub oldest_unloaded_age_seconds: f64,
}

/// The loader: made once, run as one task.
pub(super) struct Loader<S> {
    context: RunContext,
    source: Arc<S>,
    settings: LoaderSettings,
    rebuild_fetcher: Box<dyn Fn() -> Option<Fetcher> + Send>,
    topics: HashMap<String, TopicState>,
    runs: JoinSet<Result<RunEnd, RunError>>,
    running: HashMap<Id, String>,
    status: watch::Sender<LoaderStatus>,
}

struct TopicState {
    topic: Arc<OwnedTopic>,
    period: i64,
    /// Unix seconds of the next start by the schedule.
    start: i64,
    /// Unix seconds before which the topic is left alone; earlier than `start` after a failure.
    due: i64,
    is_running: bool,
    failures: u32,
    backlog: Backlog,
    held: Option<HoldReason>,
    error: Option<String>,
}

impl<S: LoadSource> Loader<S> {
    /// `rebuild_fetcher` makes a new fetcher when the present one is stuck.
    pub(super) fn new(
        context: RunContext,
        source: Arc<S>,
        settings: LoaderSettings,
        status: watch::Sender<LoaderStatus>,
        rebuild_fetcher: impl Fn() -> Option<Fetcher> + Send + 'static,
    ) -> Loader<S> {
        Loader {
            context,
            source,
            settings,
            rebuild_fetcher: Box::new(rebuild_fetcher),
            topics: HashMap::new(),
            runs: JoinSet::new(),
            running: HashMap::new(),
            status,
        }
    }

    /// Loads until `stop`, then finishes the batches in hand and hands the topics over.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(self.settings.sweep_every);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ends = Arc::new(Mutex::new(Vec::new()));
        let mut sweeping: Option<tokio::task::JoinHandle<()>> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.runs.join_next_with_id() => self.run_ended(ended),
                _ = tick.tick() => {
                    self.find_topics();
                    self.start_due_runs(&stop);
                }
                _ = sweep.tick() => {
                    if sweeping.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                        self.note_ends(&ends);
                        sweeping = Some(self.sweep(ends.clone()));
                    }
                    self.publish();
                }
            }
        }
        self.finish(stop).await;
    }

    /// Takes up topics that are new here and drops those that are gone.
    fn find_topics(&mut self) {
        let owned = self.source.owned_topics();
        let now = unix_seconds();
        if owned.len() < self.topics.len() {
            let names: std::collections::HashSet<_> = owned.iter().map(|t| &t.name).collect();
            self.topics.retain(|name, state| state.is_running || names.contains(name));
        }
        for topic in owned {
            let Some(schedule) = self.source.schedule(&topic) else {
                continue;
            };
            let period = schedule.period;
            let state = self.topics.entry(topic.name.clone()).or_insert_with(|| TopicState {
                topic,
                period: 0,
                start: 0,
                due: now, // a topic with a backlog does not wait for its period after a start
                is_running: false,
                failures: 0,
                backlog: Backlog::default(),
                held: None,
                error: None,
            });
            if state.period != period {
                let delay = schedule::delay(
                    &state.topic.name,
                    &schedule.id,
                    period,
                    schedule.spread_tables,
                );
                state.period = period;
                state.start = schedule::first_start(now, period, delay);
                state.due = state.due.min(state.start);
            }
        }
    }

    /// Starts what is due, longest waiting first, as far as there are workers.
    fn start_due_runs(&mut self, stop: &CancellationToken) {
        let mut free = self.settings.workers.saturating_sub(self.runs.len());
        if free == 0 {
            return;
        }
        let now = unix_seconds();
        let mut busy: HashMap<String, usize> = HashMap::new();
        for state in self.topics.values().filter(|state| state.is_running) {
            *busy.entry(state.topic.destination_id.clone()).or_default() += 1;
        }
        let mut due: Vec<_> = self
            .topics
            .values()
            .filter(|state| !state.is_running && state.due <= now)
            .map(|state| (state.due, state.topic.clone()))
            .collect();
        due.sort_unstable_by_key(|(due, _)| *due);
        for (_, topic) in due {
            if free == 0 {
                return;
            }
            let of_destination = busy.entry(topic.destination_id.clone()).or_default();
            if *of_destination >= self.settings.workers_per_destination {
                continue;
            }
            let target = self.source.target(&topic.destination_id);
            if target.is_none() && topic.mode != Mode::Retry {
                continue;
            }
            *of_destination += 1;
            free -= 1;
            self.start_run(topic, target, stop.clone());
        }
    }

    fn start_run(
        &mut self,
        topic: Arc<OwnedTopic>,
        target: Option<Arc<LoadTarget>>,
        stop: CancellationToken,
    ) {
        let name = topic.name.clone();
        if let Some(state) = self.topics.get_mut(&name) {
            state.is_running = true;
        }
        let context = self.context.clone();
        let span = info_span!("run", topic = name, destination_id = topic.destination_id);
        let run = async move {
            let (context, stop) = (&context, &stop);
            match target {
                Some(target) if topic.mode != Mode::Retry => {
                    TopicRun { context, topic: &topic, target: &target, stop }.run().await
                }
                _ => RetryRun { context, topic: &topic, stop }.run().await,
            }
        };
        let task = self.runs.spawn(run.instrument(span));
        self.running.insert(task.id(), name);
    }

    fn run_ended(&mut self, ended: Result<(Id, Result<RunEnd, RunError>), tokio::task::JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, Some(result)),
            Err(error) => (error.id(), None),
        };
        let name = self.running.remove(&id).unwrap_or_default();
        if let Some(Err(RunError::Read(ReadError::Stalled { .. }))) = &result {
            self.replace_fetcher();
        }
        let Some(state) = self.topics.get_mut(&name) else {
            return;
        };
        state.ended(result);
        self.publish();
    }

    /// A reader that got nothing although there was something: the client may be stuck, a new one is made.
    /// Runs that still read with the old one keep it until they end.
    fn replace_fetcher(&mut self) {
        match (self.rebuild_fetcher)() {
            Some(fetcher) => {
                warn!("fetcher rebuilt after a stalled read");
                self.context.fetcher = Arc::new(fetcher);
            }
            None => error!("fetcher could not be rebuilt"),
        }
    }

    /// Asks for the ends of all topics, in the background.
    fn sweep(&self, ends: Arc<Mutex<Vec<(String, i64)>>>) -> tokio::task::JoinHandle<()> {
        let admin = self.context.admin.clone();
        let partitions: Vec<_> =
            self.topics.values().map(|s| (s.topic.name.clone(), s.topic.partition)).collect();
        tokio::spawn(async move {
            let names: Vec<_> = partitions.iter().map(|(name, _)| name.clone()).collect();
            let found = match admin.offsets(partitions, OffsetSpec::CommittedEnd).await {
                Ok(found) => found,
                Err(error) => {
                    info!(error = %error, "ends of the topics not known");
                    return;
                }
            };
            let found = names.into_iter().zip(found).filter_map(|(n, end)| Some((n, end.ok()?)));
            if let Ok(mut ends) = ends.lock() {
                *ends = found.collect();
            }
        })
    }

    fn note_ends(&mut self, ends: &Mutex<Vec<(String, i64)>>) {
        let found = ends.lock().map(|mut ends| std::mem::take(&mut *ends)).unwrap_or_default();
        let now = Instant::now();
        for (name, end) in found {
            if let Some(state) = self.topics.get_mut(&name) {
                state.backlog.seen(end, now);
            }
        }
    }

    fn publish(&self) {
        let now = Instant::now();
        let mut status = LoaderStatus::default();
        for (name, state) in &self.topics {
            // what waits in a retry topic waits on purpose
            let age = match state.topic.mode {
                Mode::Retry => 0.0,
                _ => state.backlog.age(now).as_secs_f64(),
            };
            metrics::set_backlog(&state.topic, state.backlog.size(), age);
            status.oldest_unloaded_age_seconds = status.oldest_unloaded_age_seconds.max(age);
            if let Some(reason) = state.held {
                status.held.insert(name.clone(), reason.kind());
            }
            if let Some(error) = &state.error {
                status.failing.insert(name.clone(), error.clone());
            }
        }
        self.status.send_replace(status);
    }

    /// Lets the batches in hand end, then brings Kafka to the rows, all within the deadline.
    async fn finish(mut self, stop: CancellationToken) {
        let deadline = tokio::time::Instant::now() + self.settings.stop_within;
        let work = async {
            while let Some(ended) = self.runs.join_next_with_id().await {
                self.run_ended(ended);
            }
            let mut handovers = JoinSet::new();
            for state in self.topics.values() {
                let target = self.source.target(&state.topic.destination_id);
                let (context, topic, stop) =
                    (self.context.clone(), state.topic.clone(), stop.clone());
                handovers.spawn(async move {
                    if let Err(error) = hand_over(&context, &topic, target.as_deref(), &stop).await
                    {
                        warn!(
                            topic = topic.name,
                            error = %chain(&error),
                            "Kafka may not know yet how far the topic is loaded"
                        );
                    }
                });
            }
            while handovers.join_next().await.is_some() {}
        };
        if tokio::time::timeout_at(deadline, work).await.is_err() {
            warn!("loader stopped by its deadline; the batches in hand are rolled back");
        } else {
            info!("loader stopped");
        }
    }
}

/// Brings Kafka to where the topic stands.
async fn hand_over(
    context: &RunContext,
    topic: &Arc<OwnedTopic>,
    target: Option<&LoadTarget>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    match target {
        _ if topic.mode == Mode::Retry => RetryRun { context, topic, stop }.hand_over().await,
        Some(target) if topic.is_claimed() => {
            TopicRun { context, topic, target, stop }.hand_over().await
        }
        _ => Ok(()),
    }
}

impl TopicState {
    fn ended(&mut self, result: Option<Result<RunEnd, RunError>>) {
        let now = unix_seconds();
        self.is_running = false;
        let (held, failed) = match result {
            Some(Ok(RunEnd::At { next_offset })) => {
                self.backlog.loaded(next_offset, Instant::now());
                (None, None)
            }
            Some(Ok(RunEnd::Held(reason))) => (Some(reason), None),
            Some(Err(error)) => (None, Some((error.kind(), chain(&error).to_string()))),
            None => (None, Some(("panic", "the run panicked".to_owned()))),
        };
        self.note_hold(held);
        metrics::count_run(&self.topic, held.is_none() && failed.is_none());
        if let Some((kind, error)) = &failed {
            metrics::count_error(&self.topic, kind);
            error!(topic = self.topic.name, error, "run failed; the topic is tried again");
        }
        self.error = failed.map(|(_, error)| error);
        self.start = schedule::next_start(self.start, now, self.period);
        if self.error.is_none() && self.held.is_none() {
            self.failures = 0;
            self.due = self.start;
        } else {
            let (first, last) = RETRY_PAUSES;
            let pause = (first << self.failures.min(5)).min(last);
            self.failures += 1;
            self.due = (now + pause).min(self.start.max(now + first));
        }
    }

    fn note_hold(&mut self, held: Option<HoldReason>) {
        if self.held == held {
            return;
        }
        if let Some(reason) = self.held {
            metrics::set_held(&self.topic, reason.kind(), false);
        }
        match held {
            Some(reason) => {
                metrics::set_held(&self.topic, reason.kind(), true);
                error!(
                    topic = self.topic.name,
                    reason = reason.kind(),
                    "topic held: nothing is loaded"
                );
            }
            None => info!(topic = self.topic.name, "topic no longer held"),
        }
        self.held = held;
    }
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
