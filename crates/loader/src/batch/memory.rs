//! How many bytes of parsed events are held, over all runs of this instance.
//!
//! A batch may take half of what the others leave, and ends there. So all of them together stay
//! below the limit, and as much is left to the batch after it: of one run that reads a batch while
//! another is loaded each gets a third in the end, of many runs each a small part. No batch ever
//! waits for memory, so two half-filled batches cannot wait for each other.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Batches smaller than this are never ended for the sake of memory: they would cost more than they
/// free, and it is about what an empty one takes.
const WORTH_ENDING: usize = 2 << 20;

/// The limit and what is held against it; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct MemoryBudget {
    held: Arc<AtomicUsize>,
    limit: usize,
}

impl MemoryBudget {
    /// `limit` in bytes.
    pub(crate) fn new(limit: usize) -> MemoryBudget {
        MemoryBudget { held: Arc::default(), limit }
    }

    /// Starts to account for one batch.
    pub(crate) fn batch(&self) -> HeldMemory {
        HeldMemory { budget: self.clone(), bytes: 0 }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// What one batch holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct HeldMemory {
    budget: MemoryBudget,
    bytes: usize,
}

impl HeldMemory {
    /// The batch holds `bytes` now. `true`: it should end here.
    pub(crate) fn set(&mut self, bytes: usize) -> bool {
        let held = &self.budget.held;
        if bytes >= self.bytes {
            held.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        let others = self.budget.held().saturating_sub(bytes);
        bytes >= WORTH_ENDING && bytes >= self.budget.limit.saturating_sub(others) / 2
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
    fn a_batch_may_take_half_of_what_the_others_leave() {
        let budget = MemoryBudget::new(64 << 20);
        let (mut first, mut second) = (budget.batch(), budget.batch());
        assert!(!first.set((32 << 20) - 1));
        assert!(first.set(32 << 20), "half of 64 MiB");
        assert!(!second.set((16 << 20) - 1));
        assert!(second.set(16 << 20), "half of the 32 MiB that are left");
        drop(first);
        assert!(!second.set(16 << 20), "it is free again");
    }

    #[test]
    fn a_small_batch_goes_on_whatever_is_held() {
        let budget = MemoryBudget::new(8 << 20);
        let (mut large, mut small) = (budget.batch(), budget.batch());
        large.set(9 << 20);
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
