//! How far a topic is, as far as this instance knows, for as long as it owns the topic.
//!
//! Made once by the scheduler and shared with the one task that works on the topic. Nothing of it
//! is needed to load each event once: that rests on the ledger. It saves questions, and feeds
//! status and metrics.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use warehouse::Progress;

use crate::{batch::poison::PoisonSearch, retry::state::RetryState};

/// How long it is said that another loader was at work.
const FENCED_FOR: Duration = Duration::from_secs(600);
/// How long a speed is measured.
const SPEED_WINDOW: Duration = Duration::from_secs(10);
/// No offset, or no epoch: it is not known.
const UNKNOWN: i64 = -1;

/// What is known of one topic.
#[derive(Debug)]
pub(crate) struct TopicProgress {
    loaded_to: AtomicI64,
    group_offset: AtomicI64,
    end: AtomicI64,
    /// Of the position that a tail follows from.
    epoch: AtomicI64,
    moved_elsewhere: Notify,
    fenced_at: Mutex<Option<Instant>>,
    /// Counted by the warehouse while a batch is on its way.
    load: Progress,
    speed: Mutex<Speed>,
    memory: Mutex<RunMemory>,
}

/// What one run leaves to the next.
#[derive(Debug, Default)]
pub(crate) struct RunMemory {
    /// Whether Kafka acknowledged a start of ours since this instance owns the topic.
    pub(crate) is_claimed: bool,
    pub(crate) poison: PoisonSearch,
    /// Of a retry topic.
    pub(crate) retries: RetryState,
}

/// Messages per second, over the last full window.
#[derive(Debug, Default)]
struct Speed {
    since: Option<Instant>,
    count: u64,
    last: f64,
}

impl Default for TopicProgress {
    fn default() -> TopicProgress {
        TopicProgress {
            loaded_to: AtomicI64::new(0),
            group_offset: AtomicI64::new(UNKNOWN),
            end: AtomicI64::new(0),
            epoch: AtomicI64::new(UNKNOWN),
            moved_elsewhere: Notify::new(),
            fenced_at: Mutex::default(),
            load: Progress::default(),
            speed: Mutex::default(),
            memory: Mutex::default(),
        }
    }
}

impl TopicProgress {
    /// How far the topic is loaded: the first offset that is not.
    pub(crate) fn loaded_to(&self) -> i64 {
        self.loaded_to.load(Ordering::Relaxed)
    }

    pub(crate) fn set_loaded_to(&self, offset: i64) {
        self.loaded_to.store(offset, Ordering::Relaxed);
    }

    /// The offset that Kafka's group is known to have, with our mark.
    pub(crate) fn set_group_offset(&self, offset: i64) {
        self.group_offset.store(offset, Ordering::Relaxed);
    }

    /// Whether Kafka's group is known to stand where the topic does.
    pub(crate) fn is_group_current(&self) -> bool {
        self.group_offset.load(Ordering::Relaxed) == self.loaded_to()
    }

    /// The end of the topic, as it was seen last.
    pub(crate) fn end(&self) -> i64 {
        self.end.load(Ordering::Relaxed)
    }

    pub(crate) fn set_end(&self, offset: i64) {
        self.end.store(offset, Ordering::Relaxed);
    }

    /// The epoch of the position that a tail follows from; `None`: it has no position yet.
    pub(crate) fn set_epoch(&self, epoch: Option<i64>) {
        self.epoch.store(epoch.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// The position has this epoch in the ledger; `None`: there is none. Another one than a tail
    /// follows from was moved from outside, and the tail is told.
    pub(crate) fn seen_epoch(&self, epoch: Option<i64>) {
        let known = self.epoch.load(Ordering::Relaxed);
        if known != UNKNOWN && epoch != Some(known) {
            self.moved_elsewhere.notify_one();
        }
    }

    /// Notified when the position was moved from outside.
    pub(crate) fn moved_elsewhere(&self) -> &Notify {
        &self.moved_elsewhere
    }

    /// Messages that wait, as far as is known.
    pub(crate) fn queue_size(&self) -> u64 {
        u64::try_from(self.end() - self.loaded_to()).unwrap_or(0)
    }

    /// Counts messages of this moment.
    pub(crate) fn count(&self, messages: u64) {
        let mut speed = self.speed.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *speed.since.get_or_insert_with(Instant::now);
        speed.count += messages;
        let elapsed = since.elapsed();
        if elapsed >= SPEED_WINDOW {
            #[allow(clippy::cast_precision_loss)] // it is shown with a digit or two
            let last = speed.count as f64 / elapsed.as_secs_f64();
            *speed = Speed { since: Some(Instant::now()), count: 0, last };
        }
    }

    /// Messages per second.
    pub(crate) fn speed(&self) -> f64 {
        self.speed.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// What the loads of the topic count their steps in: a load that takes long is told from one
    /// that stands still by it.
    pub(crate) fn load(&self) -> &Progress {
        &self.load
    }

    /// Another loader moved the position while we loaded: it happens when a topic changes hands,
    /// and again and again where two instances were given the same part.
    pub(crate) fn set_fenced(&self) {
        *self.fenced_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether that happened lately.
    pub(crate) fn was_fenced(&self) -> bool {
        let fenced_at = self.fenced_at.lock().unwrap_or_else(PoisonError::into_inner);
        fenced_at.is_some_and(|at| at.elapsed() < FENCED_FOR)
    }

    /// What runs leave to each other. Not to be held over an await.
    pub(crate) fn memory(&self) -> MutexGuard<'_, RunMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
