//! How many `/bulk` calls load at a time, and how much memory their rows take.
//!
//! Invariant: a call without a permit waits with its body unread, so that its sender waits too.

use std::path::PathBuf;

use tokio::sync::{Semaphore, SemaphorePermit};
use warehouse::MemoryLimit;

/// Bytes of rows that a call may hold however many calls there are: less would only make small
/// files.
const LEAST: usize = 4 << 20;

/// The permits of all calls, and their share of memory.
pub struct BulkPermits {
    free: Semaphore,
    limit: MemoryLimit,
}

impl BulkPermits {
    /// `memory` are the bytes that rows of all calls together may take, unless a call's share of it
    /// is very small; rows beyond it are written into `folder`.
    pub fn new(calls: usize, memory: usize, folder: PathBuf) -> BulkPermits {
        let limit = MemoryLimit { bytes: (memory / calls.max(1)).max(LEAST), folder };
        BulkPermits { free: Semaphore::new(calls), limit }
    }

    /// Waits for a permit, in the order of the calls; it is free again when it is dropped. `None`
    /// would mean that the semaphore is closed, which it never is. Dropped, it gives its turn up.
    pub(crate) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.free.acquire().await.ok()
    }

    /// What the rows of one call may take.
    pub(crate) fn memory_limit(&self) -> MemoryLimit {
        self.limit.clone()
    }
}
