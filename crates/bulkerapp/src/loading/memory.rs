//! How many bytes of parsed events are held, over all runs of this instance.
//!
//! Nobody ever waits for memory: a reader that finds the limit passed ends its batch early, the batch
//! is loaded, and its bytes come back. So two half-filled batches cannot wait for each other.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Batches smaller than this are never ended for the sake of memory: they would cost more than they free.
const WORTH_ENDING: usize = 1 << 20;

/// The limit and what is held against it; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct MemoryBudget {
    held: Arc<AtomicUsize>,
    limit: usize,
}

impl MemoryBudget {
    /// `limit` in bytes.
    pub(super) fn new(limit: usize) -> MemoryBudget {
        MemoryBudget { held: Arc::default(), limit }
    }

    /// Starts to account for one batch.
    pub(super) fn batch(&self) -> HeldMemory {
        HeldMemory { budget: self.clone(), bytes: 0 }
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// What one batch holds; given back when dropped.
#[derive(Debug)]
pub(super) struct HeldMemory {
    budget: MemoryBudget,
    bytes: usize,
}

impl HeldMemory {
    /// The batch holds `bytes` now. `true`: it should end here.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let held = &self.budget.held;
        if bytes >= self.bytes {
            held.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        bytes >= WORTH_ENDING && self.budget.held() > self.budget.limit
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_ended_only_past_the_limit_and_when_it_frees_something() {
        let budget = MemoryBudget::new(10 << 20);
        let mut large = budget.batch();
        let mut small = budget.batch();
        assert!(!large.set(9 << 20), "below the limit");
        assert!(!small.set(WORTH_ENDING - 1));
        assert!(large.set(10 << 20), "past the limit");
        assert!(!small.set(WORTH_ENDING - 1), "ending it would free next to nothing");
    }

    #[test]
    fn what_a_batch_held_comes_back_with_it() {
        let budget = MemoryBudget::new(1);
        let mut batch = budget.batch();
        batch.set(500);
        batch.set(200);
        assert_eq!(budget.held(), 200);
        drop(batch);
        assert_eq!(budget.held(), 0);
    }
}
