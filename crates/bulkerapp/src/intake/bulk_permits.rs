//! How many `/bulk` calls load at a time, how many wait, and how much memory and disk their rows
//! take.
//!
//! Invariants: a call without a permit waits with its body unread but for its beginning, so that
//! its sender waits too; those that wait have a limit; and a call whose body is here as a whole
//! never waits for one whose body is not: as many of them as of the others load beside them.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warehouse::{DiskLimit, MemoryLimit};

/// Bytes of rows that a call may hold however many calls there are: less would only make small
/// files.
const LEAST: usize = 4 << 20;

/// What calls of `/bulk` may take.
pub struct BulkLimits {
    /// Calls that load at a time.
    pub calls: usize,
    /// Calls that wait for their turn.
    pub waiting: usize,
    /// Bytes that rows of all calls together may take in memory, unless a call's share of it is
    /// very small.
    pub memory: usize,
    /// Bytes that they may take in files.
    pub disk: u64,
    /// Where the files are.
    pub folder: PathBuf,
    /// Bytes per second of a body below which its sender is given up when other calls wait.
    pub least_pace: u64,
}

/// The permits of all calls, and their share of memory.
pub struct BulkPermits {
    loading: Arc<Semaphore>,
    /// Of calls whose bodies are here as a whole.
    whole: Arc<Semaphore>,
    queue: Semaphore,
    waiting: usize,
    limit: MemoryLimit,
    least_pace: u64,
}

/// As many calls wait as may.
#[derive(Debug, thiserror::Error)]
#[error("{0} calls wait for their turn already")]
pub(crate) struct QueueFull(usize);

impl BulkPermits {
    /// All of them free.
    pub fn new(limits: BulkLimits) -> BulkPermits {
        let BulkLimits { calls, waiting, memory, disk, folder, least_pace } = limits;
        let limit = MemoryLimit {
            bytes: (memory / calls.max(1)).max(LEAST),
            folder,
            disk: DiskLimit::new(disk),
        };
        BulkPermits {
            loading: Arc::new(Semaphore::new(calls)),
            whole: Arc::new(Semaphore::new(calls)),
            queue: Semaphore::new(waiting),
            waiting,
            limit,
            least_pace,
        }
    }

    /// A permit, in the order of the calls; it is free again when it is dropped. While the call
    /// waits, `read_ahead` reads the beginning of its body, and tells when that is all of it; it
    /// ends the wait where it fails. Dropped, it gives its turn and its place in the queue up.
    pub(crate) async fn take<E: From<QueueFull>>(
        &self,
        read_ahead: impl Future<Output = Result<IsWhole, E>>,
    ) -> Result<Option<OwnedSemaphorePermit>, E> {
        if let Ok(permit) = self.loading.clone().try_acquire_owned() {
            return Ok(Some(permit));
        }
        let _place = self.queue.try_acquire().map_err(|_| QueueFull(self.waiting))?;
        // the semaphores are never closed; without a permit it would be one call more, no harm
        let turn = async { self.loading.clone().acquire_owned().await.ok() };
        let beside_others = async {
            match read_ahead.await? {
                IsWhole::Yes => Ok(self.whole.clone().acquire_owned().await.ok()),
                IsWhole::No => std::future::pending().await,
            }
        };
        tokio::select! {
            permit = turn => Ok(permit),
            permit = beside_others => permit,
        }
    }

    /// Whether calls wait that a call which is slow could make room for.
    pub(crate) fn are_wanted(&self) -> bool {
        self.queue.available_permits() < self.waiting
    }

    /// What the rows of one call may take.
    pub(crate) fn memory_limit(&self) -> MemoryLimit {
        self.limit.clone()
    }

    /// See [`BulkLimits::least_pace`].
    pub(crate) fn least_pace(&self) -> u64 {
        self.least_pace
    }
}

/// Whether the beginning of a body is all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsWhole {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt;

    use super::*;

    fn permits(calls: usize, waiting: usize) -> BulkPermits {
        let folder = std::env::temp_dir();
        let limits = BulkLimits { calls, waiting, memory: 1, disk: 1, folder, least_pace: 1 };
        BulkPermits::new(limits)
    }

    fn take(
        permits: &BulkPermits,
        is_whole: IsWhole,
    ) -> impl Future<Output = Result<Option<OwnedSemaphorePermit>, QueueFull>> {
        permits.take(ready(Ok(is_whole)))
    }

    #[test]
    fn a_call_waits_for_its_turn_and_one_too_many_is_refused() {
        let permits = permits(1, 1);
        let first = take(&permits, IsWhole::No).now_or_never().unwrap().unwrap();
        assert!(!permits.are_wanted());
        let mut second = Box::pin(take(&permits, IsWhole::No));
        assert!((&mut second).now_or_never().is_none());
        assert!(permits.are_wanted());
        let refused = take(&permits, IsWhole::Yes).now_or_never().unwrap().unwrap_err();
        assert_eq!(refused.to_string(), "1 calls wait for their turn already");
        drop(first);
        assert!(second.now_or_never().unwrap().is_ok());
        assert!(!permits.are_wanted());
    }

    #[test]
    fn a_client_that_goes_away_leaves_the_queue() {
        let permits = permits(1, 1);
        let _first = take(&permits, IsWhole::No).now_or_never().unwrap().unwrap();
        let mut gone = Box::pin(take(&permits, IsWhole::No));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        assert!(take(&permits, IsWhole::Yes).now_or_never().unwrap().is_ok());
    }

    #[test]
    fn a_body_that_is_here_does_not_wait_for_one_that_is_not() {
        let permits = permits(1, 2);
        let _slow = take(&permits, IsWhole::No).now_or_never().unwrap().unwrap();
        let whole = take(&permits, IsWhole::Yes).now_or_never().unwrap().unwrap();
        // as many of them as of the others
        let mut second = Box::pin(take(&permits, IsWhole::Yes));
        assert!((&mut second).now_or_never().is_none());
        drop(whole);
        assert!(second.now_or_never().unwrap().is_ok());
    }

    #[test]
    fn a_body_that_cannot_be_read_ends_the_wait() {
        let permits = permits(1, 1);
        let _first = take(&permits, IsWhole::No).now_or_never().unwrap().unwrap();
        let failed = permits.take(ready(Err(QueueFull(7)))).now_or_never().unwrap();
        assert!(failed.is_err());
        let waits = permits.take::<QueueFull>(pending());
        assert!(waits.now_or_never().is_none(), "the place is free again");
    }
}
