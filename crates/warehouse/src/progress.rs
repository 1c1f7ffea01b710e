//! What tells a load that takes long from one that stands still.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts the steps of loads: each statement that was answered, also one that looks for a refused
/// row, and each look at a key that is still being built. Who watches a load takes a higher count
/// for movement. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a step.
    pub fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
