//! What is known of all topics together: how they are watched, healed and told of.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use kafkabase::OffsetSpec;
use tokio::task::JoinHandle;
use tracing::{error, info};

use super::{
    LoaderSettings, Scheduler,
    tasks::Fetches,
    topic_state::{TopicState, Work},
};
use crate::{observe::metrics, target::LoadTarget, topic::OwnedTopic};

/// What `/health` says of a topic whose loads were fenced lately.
const FENCED: &str = "another loader moved its offsets row; again and again: two instances have the same INSTANCE_INDEX";

/// How long a destination may take to tell its positions.
const ASK_FOR: Duration = Duration::from_secs(5);

/// What the loader says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoaderStatus {
    /// Topics that are not loaded on purpose, with the reason.
    pub held: BTreeMap<String, &'static str>,
    /// Topics whose last run failed, with the error. Never holds a row value.
    pub failing: BTreeMap<String, String>,
    /// Topics that another loader loads, too, with what to look at.
    pub fenced: BTreeMap<String, &'static str>,
    /// Topics that are due and do not move, with the seconds since they last did.
    pub stalled: BTreeMap<String, u64>,
    /// Why topics may be nobody's: instances cannot share them out.
    pub not_shared: Option<String>,
    /// Seconds that the oldest unloaded event of all topics waits.
    pub oldest_unloaded_age_seconds: f64,
}

impl LoaderSettings {
    /// Ends the task of a topic that has been still for too long. `true`: it was a tail, which may
    /// not get what is there.
    fn heal(&self, state: &TopicState, stalled_for: Duration) -> bool {
        let Some(task) = state.task() else {
            return false;
        };
        // a tail that is not given anything is healed as soon as that is an alarm: nothing is half
        // done
        let is_tail = matches!(state.work, Work::Tail(..));
        let patience = if is_tail { self.alarm_after } else { self.heal_after };
        let is_answered = state.still_for(Instant::now()) < patience;
        if stalled_for < patience || task.since.elapsed() < patience || is_answered {
            return false;
        }
        error!(topic = state.topic.name, "stalled topic: its work is ended and begun anew");
        metrics::count_healed(&state.topic);
        task.handle.abort();
        is_tail
    }
}

impl Scheduler {
    /// Asks for the ends of all topics, in the background.
    pub(super) fn sweep(&self) -> JoinHandle<()> {
        let admin = self.context.admin.clone();
        let of_state = |state: &TopicState| (state.topic.clone(), state.progress.clone());
        let topics: Vec<_> = self.topics.values().map(of_state).collect();
        tokio::spawn(async move {
            let partitions = topics.iter().map(|(topic, _)| (topic.name.clone(), topic.partition));
            match admin.offsets(partitions.collect(), OffsetSpec::CommittedEnd).await {
                Ok(ends) => {
                    for ((_, progress), end) in topics.iter().zip(ends) {
                        if let Ok(end) = end {
                            progress.set_end(end);
                        }
                    }
                }
                Err(error) => info!(error = %error, "ends of the topics not known"),
            }
        })
    }

    /// Compares the positions of topics whose tails are followed with the ledgers, in the background
    /// and by one question for each destination: a topic that is quiet asks nothing itself.
    pub(super) fn compare_positions(&self) -> JoinHandle<()> {
        let mut followed: HashMap<String, (Arc<LoadTarget>, Vec<_>)> = HashMap::new();
        for state in self.topics.values() {
            if let Work::Tail(_, target) = &state.work {
                let id = target.destination_id.clone();
                let (_, topics) = followed.entry(id).or_insert_with(|| (target.clone(), vec![]));
                topics.push((state.topic.clone(), state.progress.clone()));
            }
        }
        let cluster_id = self.context.cluster_id.clone();
        tokio::spawn(async move {
            for (target, topics) in followed.into_values() {
                let asked = target.warehouse.positions(&cluster_id);
                let Ok(Ok(Some(rows))) = tokio::time::timeout(ASK_FOR, asked).await else {
                    continue; // loads will tell what is the matter
                };
                let epochs: HashMap<_, _> = rows
                    .into_iter()
                    .map(|row| ((row.topic, row.partition), row.position.epoch))
                    .collect();
                for (topic, progress) in topics {
                    let at = (topic.name.clone(), topic.partition);
                    progress.seen_epoch(epochs.get(&at).copied());
                }
            }
        })
    }

    pub(super) fn publish(&mut self) {
        let now = Instant::now();
        let unix_now = self.context.clock.unix_seconds();
        let mut status =
            LoaderStatus { not_shared: self.source.not_shared(), ..LoaderStatus::default() };
        let mut stuck_tails = false;
        let mut backlogs: HashMap<String, (Arc<OwnedTopic>, i64, f64)> = HashMap::new();
        for (name, state) in &mut self.topics {
            let stalled_for = state.watch(now, unix_now, self.settings.alarm_after);
            if let Some(stalled_for) = stalled_for {
                status.stalled.insert(name.clone(), stalled_for.as_secs());
                stuck_tails |= self.settings.heal(state, stalled_for);
            }
            let age = state.age(now).as_secs_f64();
            // of all partitions together
            let (_, size, oldest) = backlogs
                .entry(state.topic.name.clone())
                .or_insert_with(|| (state.topic.clone(), 0, 0.0));
            (*size, *oldest) = (*size + state.backlog.size(), oldest.max(age));
            status.oldest_unloaded_age_seconds = status.oldest_unloaded_age_seconds.max(age);
            if let Some(reason) = state.held {
                status.held.insert(name.clone(), reason.kind());
            }
            if state.progress.was_fenced() {
                status.fenced.insert(name.clone(), FENCED);
            }
            if let Some(error) = &state.error {
                status.failing.insert(name.clone(), error.clone());
            }
        }
        for (topic, size, oldest) in backlogs.into_values() {
            metrics::set_backlog(&topic, size, oldest);
        }
        if stuck_tails {
            self.replace_fetcher(Fetches::Tails);
        }
        self.status.send_replace(status);
        self.status_changed = false;
    }
}
