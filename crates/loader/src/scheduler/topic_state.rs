//! What the loader knows of one topic: when it is due, what is done with it, how far it is, and
//! whether it moves.
//!
//! Invariant: a topic that has something to load and is not kept waiting on purpose either moves,
//! or is *stalled* once it did not for a while: never silently still.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use appbase::{backoff::Backoff, telemetry::chain};
use kafkabase::TopicMode;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    backlog::Backlog,
    schedule::{self, TopicSchedule},
};
use crate::{
    observe::metrics,
    progress::TopicProgress,
    protocol::start::HoldReason,
    run::error::{RunEnd, RunError},
    target::LoadTarget,
    topic::OwnedTopic,
};

/// The pause after a failed run; the next ones are twice as long each, up to the longest or the
/// topic's period.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Seconds that a start may lie ahead beyond one period: the delays of names, and pauses.
const FURTHEST_BEYOND_PERIOD: i64 = 120;

/// What is done with a topic at the moment.
pub(super) enum Work {
    /// It waits for its time.
    Nothing,
    Run(Task),
    /// It is followed, on behalf of this destination as it was then.
    Tail(Task, Arc<LoadTarget>),
}

/// A task over a topic.
pub(super) struct Task {
    /// Lets it end between two batches.
    pub(super) stop: CancellationToken,
    /// Ends it where it stands.
    pub(super) handle: AbortHandle,
    pub(super) since: Instant,
}

pub(super) struct TopicState {
    pub(super) topic: Arc<OwnedTopic>,
    pub(super) progress: Arc<TopicProgress>,
    period: i64,
    /// Unix seconds of the next start by the schedule.
    start: i64,
    /// Unix seconds before which the topic is left alone; earlier than `start` after a failure.
    pub(super) due: i64,
    pub(super) work: Work,
    /// `false`: to be forgotten once its work has ended.
    pub(super) is_ours: bool,
    pub(super) backlog: Backlog,
    pub(super) held: Option<HoldReason>,
    pub(super) error: Option<String>,
    backoff: Backoff,
    /// When it last moved, or had no reason to.
    moved_at: Instant,
    seen_at: i64,
    /// When a load of it last got an answer from the warehouse.
    stepped_at: Instant,
    seen_steps: u64,
    is_stalled: bool,
}

impl TopicState {
    /// A topic that is new here. One with a backlog does not wait for its period after a start.
    /// `now`: Unix seconds.
    pub(super) fn new(topic: Arc<OwnedTopic>, now: i64) -> TopicState {
        TopicState {
            topic,
            progress: Arc::default(),
            period: 0,
            start: 0,
            due: now,
            work: Work::Nothing,
            is_ours: true,
            backlog: Backlog::default(),
            held: None,
            error: None,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            moved_at: Instant::now(),
            seen_at: 0,
            stepped_at: Instant::now(),
            seen_steps: 0,
            is_stalled: false,
        }
    }

    /// Whether it may be worked on at this Unix second. A time that lies further ahead than any that
    /// is planned was planned before the clock went back.
    pub(super) fn is_due(&self, now: i64) -> bool {
        let furthest = self.period.saturating_add(FURTHEST_BEYOND_PERIOD);
        self.due <= now || self.due > now.saturating_add(furthest)
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.work, Work::Nothing)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.work, Work::Run(_))
    }

    pub(super) fn task(&self) -> Option<&Task> {
        match &self.work {
            Work::Run(task) | Work::Tail(task, _) => Some(task),
            Work::Nothing => None,
        }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.held.is_none() && self.error.is_none()
    }

    /// Takes over the times of a schedule.
    pub(super) fn follow(&mut self, schedule: &TopicSchedule, now: i64) {
        let TopicSchedule { id, period, spread_tables } = schedule;
        if self.period != *period {
            let delay = schedule::delay(&self.topic.name, id, *period, *spread_tables);
            self.period = *period;
            self.start = schedule::first_start(now, *period, delay);
            self.due = self.due.min(self.start);
        }
    }

    /// Age of the oldest event that is not loaded. What waits in a retry topic waits on purpose.
    pub(super) fn age(&self, now: Instant) -> Duration {
        match self.topic.mode {
            TopicMode::Retry => Duration::ZERO,
            _ => self.backlog.age(now),
        }
    }

    /// Looks whether the topic moves. Answers for how long it has not, although it should.
    /// `unix_now`: Unix seconds.
    pub(super) fn watch(
        &mut self,
        now: Instant,
        unix_now: i64,
        alarm_after: Duration,
    ) -> Option<Duration> {
        let at = self.progress.loaded_to();
        self.backlog.seen(self.progress.end(), now);
        if matches!(self.work, Work::Tail(..)) {
            self.backlog.loaded(at, now);
        }
        let waits_on_purpose = self.held == Some(HoldReason::Paused)
            || (self.is_idle() && self.is_healthy() && !self.is_due(unix_now));
        let steps = self.progress.load().steps();
        let has_stepped = std::mem::replace(&mut self.seen_steps, steps) != steps;
        if has_stepped {
            self.stepped_at = now;
        }
        // a load that takes long moves; one that is tried again and again in vain does not
        let is_moving = at != self.seen_at || (has_stepped && self.is_healthy());
        if is_moving || waits_on_purpose || self.age(now).is_zero() {
            (self.seen_at, self.moved_at) = (at, now);
        }
        let still = now.saturating_duration_since(self.moved_at);
        let is_stalled = still >= alarm_after;
        if is_stalled != self.is_stalled {
            self.is_stalled = is_stalled;
            metrics::count_stalled(&self.topic, is_stalled);
            let topic = &self.topic.name;
            match is_stalled {
                true => {
                    error!(topic, for_seconds = still.as_secs(), "topic is due and does not move")
                }
                false => info!(topic, "topic moves again"),
            }
        }
        is_stalled.then_some(still)
    }

    /// For how long no load of it has got an answer from the warehouse.
    pub(super) fn still_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stepped_at)
    }

    /// Takes note of how a run, or a tail, ended. `None`: it was ended where it stood, or panicked.
    /// `now`: Unix seconds.
    pub(super) fn ended(&mut self, result: Result<RunEnd, RunError>, now: i64) {
        let (held, failed) = match result {
            Ok(RunEnd::At { next_offset }) => {
                self.backlog.loaded(next_offset, Instant::now());
                self.progress.set_loaded_to(next_offset);
                (None, None)
            }
            Ok(RunEnd::Held(reason)) => (Some(reason), None),
            Err(error) => (None, Some((error.kind(), chain(&error).to_string()))),
        };
        self.note_hold(held);
        if let Some((kind, error)) = &failed {
            metrics::count_error(&self.topic, kind);
            error!(topic = self.topic.name, error, "run failed; the topic is tried again");
        }
        self.error = failed.map(|(_, error)| error);
        metrics::count_run(&self.topic, self.is_healthy());
        self.plan_next(now);
    }

    fn plan_next(&mut self, now: i64) {
        self.start = schedule::next_start(self.start, now, self.period);
        if self.is_healthy() {
            self.backoff.reset();
            self.due = self.start;
        } else {
            let after = |pause: Duration| now.saturating_add_unsigned(pause.as_secs());
            self.due = after(self.backoff.next_pause()).min(self.start.max(after(FIRST_PAUSE)));
        }
    }

    fn note_hold(&mut self, held: Option<HoldReason>) {
        if self.held == held {
            return;
        }
        if let Some(reason) = self.held {
            metrics::count_held(&self.topic, reason.kind(), false);
        }
        if let Some(reason) = held {
            metrics::count_held(&self.topic, reason.kind(), true);
        }
        match held {
            Some(HoldReason::Paused) => {
                info!(topic = self.topic.name, "topic held: its destination is paused");
            }
            Some(reason) => error!(
                topic = self.topic.name,
                reason = reason.kind(),
                "topic held: nothing is loaded"
            ),
            None => info!(topic = self.topic.name, "topic no longer held"),
        }
        self.held = held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW: i64 = 1_764_200_000;
    const ALARM: Duration = Duration::from_secs(30);

    fn with_backlog(start: Instant) -> TopicState {
        let topic = Arc::new(OwnedTopic::new("t", "pg", TopicMode::Batch, "t"));
        let mut state = TopicState::new(topic, 0);
        state.moved_at = start;
        state.progress.set_end(10);
        assert_eq!(state.watch(start, NOW, ALARM), None);
        state
    }

    #[test]
    fn a_topic_that_is_due_and_does_not_move_is_stalled() {
        let start = Instant::now();
        let mut state = with_backlog(start);
        state.due = 0;
        assert_eq!(state.watch(start + 29 * SECOND, NOW, ALARM), None);
        assert_eq!(state.watch(start + 30 * SECOND, NOW, ALARM), Some(30 * SECOND));
        state.progress.set_loaded_to(5);
        assert_eq!(state.watch(start + 31 * SECOND, NOW, ALARM), None, "it moved");
    }

    #[test]
    fn a_topic_that_waits_for_its_time_is_not_stalled() {
        let start = Instant::now();
        let mut state = with_backlog(start);
        state.due = NOW + 60;
        assert_eq!(state.watch(start + 300 * SECOND, NOW, ALARM), None);
        state.due = 0;
        assert_eq!(state.watch(start + 301 * SECOND, NOW, ALARM), None, "it is due since now");
        assert_eq!(state.watch(start + 330 * SECOND, NOW, ALARM), Some(30 * SECOND));
    }

    #[test]
    fn a_topic_whose_time_lies_ahead_because_the_clock_went_back_is_due() {
        let topic = Arc::new(OwnedTopic::new("t", "pg", TopicMode::Batch, "t"));
        let mut state = TopicState::new(topic, NOW);
        let schedule = TopicSchedule { id: "pg".to_owned(), period: 300, spread_tables: false };
        state.follow(&schedule, NOW);
        state.ended(Ok(RunEnd::At { next_offset: 0 }), NOW);
        assert!(!state.is_due(NOW), "its period begins");
        let a_day_before = NOW - 86_400;
        assert!(state.is_due(a_day_before));
        state.ended(Ok(RunEnd::At { next_offset: 0 }), a_day_before);
        assert!(!state.is_due(a_day_before), "the next period is counted anew");
        assert!(state.is_due(a_day_before + 300));
    }

    #[test]
    fn a_failing_topic_is_stalled_although_it_is_tried_again_and_again() {
        let start = Instant::now();
        let mut state = with_backlog(start);
        state.error = Some("no".to_owned());
        state.due = NOW + 60;
        assert_eq!(state.watch(start + 30 * SECOND, NOW, ALARM), Some(30 * SECOND));
    }

    #[test]
    fn a_load_that_gets_answers_is_no_stall_and_one_that_failed_before_is() {
        let start = Instant::now();
        let mut state = with_backlog(start);
        state.due = 0;
        let load = state.progress.load().clone();
        load.step();
        assert_eq!(state.watch(start + 29 * SECOND, NOW, ALARM), None);
        assert_eq!(state.watch(start + 58 * SECOND, NOW, ALARM), None, "it moved 29 s ago");
        assert_eq!(state.still_for(start + 58 * SECOND), 29 * SECOND);
        state.error = Some("no".to_owned());
        load.step();
        assert_eq!(state.watch(start + 60 * SECOND, NOW, ALARM), Some(31 * SECOND));
        assert_eq!(state.still_for(start + 60 * SECOND), Duration::ZERO, "not to be ended");
    }

    #[test]
    fn a_topic_without_a_backlog_is_not_stalled() {
        let start = Instant::now();
        let topic = Arc::new(OwnedTopic::new("t", "pg", TopicMode::Batch, "t"));
        let mut state = TopicState::new(topic, 0);
        assert_eq!(state.watch(start + 300 * SECOND, NOW, ALARM), None);
    }
}
