//! What is known of all topics together: how they are watched, healed and told of.

use std::{
    collections::BTreeMap,
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
use crate::observe::metrics;

/// What `/health` says of a topic whose loads were fenced lately.
const FENCED: &str = "another loader moved its offsets row; again and again: two instances have the same INSTANCE_INDEX";

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

    pub(super) fn publish(&mut self) {
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
            if state.progress.was_fenced() {
                status.fenced.insert(name.clone(), FENCED);
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
}
