//! Runs and tails as tasks: started where a worker is free, taken note of when they end.

use std::{sync::Arc, time::Instant};

use kafkabase::TopicMode;
use tokio::task::{Id, JoinError};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span, warn};

use super::{
    Scheduler,
    topic_state::{Task, TopicState, Work},
};
use crate::{
    protocol::start::HoldReason,
    retry::run::RetryRun,
    run::{
        TopicRun,
        error::{RunEnd, RunError},
        tail::{Tail, TailEnd},
    },
    target::LoadTarget,
    topic::OwnedTopic,
};

/// What a fetcher is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetches {
    Runs,
    Tails,
}

/// How a task over a topic ended.
pub(super) enum Ended {
    Run(Result<RunEnd, RunError>),
    Tail(Result<TailEnd, RunError>),
}

impl Ended {
    /// Whether the warehouse could not be reached; `None`: it was not asked.
    fn tells_of_outage(&self, mode: TopicMode) -> Option<bool> {
        match self {
            _ if mode == TopicMode::Retry => None,
            Ended::Run(Ok(RunEnd::At { .. })) | Ended::Tail(Ok(_)) => Some(false),
            Ended::Run(Ok(RunEnd::Held(_))) => None,
            Ended::Run(Err(error)) | Ended::Tail(Err(error)) => error.tells_of_outage(),
        }
    }
}

impl Scheduler {
    pub(super) fn queue_due(&mut self) {
        if self.workers.are_all_busy() {
            return; // what waits is queued already, or by the next tick
        }
        let now = self.context.clock.unix_seconds();
        let due = self.topics.values().filter(|state| state.is_idle() && state.is_due(now));
        self.workers.queue(due.map(|state| (state.due, state.topic.clone())).collect());
    }

    /// Starts what is due, as far as there are workers.
    pub(super) fn start_runs(&mut self, stop: &CancellationToken) {
        while let Some(topic) = self.workers.next() {
            let is_idle = self.topics.get(&topic.id).is_some_and(TopicState::is_idle);
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
        let (name, token) = (topic.id.clone(), stop.clone());
        let Some(progress) = self.topics.get(&name).map(|state| state.progress.clone()) else {
            return;
        };
        let context = self.context.clone();
        let span = info_span!("run", topic = name, destination_id = topic.destination_id);
        let run = async move {
            let (context, topic, progress, stop) = (&context, &*topic, &*progress, &stop);
            if context.pauses.is_paused(&topic.destination_id) {
                return Ended::Run(Ok(RunEnd::Held(HoldReason::Paused)));
            }
            Ended::Run(match target {
                Some(target) if topic.mode != TopicMode::Retry => {
                    TopicRun { context, topic, progress, target: &target, stop }.run().await
                }
                _ => RetryRun { context, topic, progress, stop }.run().await,
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
        let Some(state) = self.topics.get(name) else {
            return;
        };
        let (topic, progress) = (state.topic.clone(), state.progress.clone());
        let Some(target) = self.source.target(&topic.destination_id) else {
            return;
        };
        let (stop, of_tail) = (stop.child_token(), target.clone());
        let token = stop.clone();
        let context = self.context.clone();
        let span = info_span!("tail", topic = name, destination_id = topic.destination_id);
        let tail = async move {
            let run = TopicRun {
                context: &context,
                topic: &topic,
                progress: &progress,
                target: &target,
                stop: &stop,
            };
            Ended::Tail(Tail { run }.follow(from).await)
        };
        let task = self.spawn(name, tail.instrument(span), token);
        if let Some(state) = self.topics.get_mut(name) {
            state.work = Work::Tail(task, of_tail);
        }
    }

    /// Takes note of the end of a run or a tail. `true`: its topic is due at once.
    pub(super) fn task_ended(
        &mut self,
        ended: Result<(Id, Ended), JoinError>,
        stop: &CancellationToken,
    ) -> bool {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(error) if error.is_cancelled() => (error.id(), Ended::Run(Err(RunError::Aborted))),
            Err(error) => (error.id(), Ended::Run(Err(RunError::Panicked))),
        };
        let now = self.context.clock.unix_seconds();
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
        if let Some(is_outage) = ended.tells_of_outage(state.topic.mode) {
            self.workers.set_unreachable(&state.topic.destination_id, is_outage);
        }
        let mut is_stuck = false;
        let mut follows_from = None;
        let is_due = match ended {
            Ended::Tail(Ok(TailEnd::Behind | TailEnd::Stopped)) => {
                state.due = now;
                true
            }
            Ended::Tail(Ok(TailEnd::NoLedger)) => false,
            Ended::Run(result) => {
                is_stuck = result.as_ref().is_err_and(RunError::is_stalled_read);
                if let (Ok(RunEnd::At { next_offset }), TopicMode::Stream) =
                    (&result, state.topic.mode)
                {
                    follows_from = Some(*next_offset);
                }
                state.ended(result, now);
                false
            }
            Ended::Tail(Err(error)) => {
                is_stuck = error.is_stalled_read();
                state.ended(Err(error), now);
                false
            }
        };
        if state.held.is_none() && self.paused.contains_key(&state.topic.destination_id) {
            state.due = now; // paused while it was loaded: to be held at once
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

    /// A reader that got nothing although there was something: the client may be stuck, a new one
    /// is made. Runs that still read with the old one keep it until they end.
    pub(super) fn replace_fetcher(&mut self, fetches: Fetches) {
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
}
