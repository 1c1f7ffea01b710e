//! How many bytes all batches together may have in files.
//!
//! Invariant: what is in files is counted before it is written, and given back with the batch that
//! wrote it, however that ends. So a disk is filled to this limit at most, whatever senders send.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A number of bytes that all batches with a clone of it share; none, unless said otherwise.
#[derive(Debug, Clone, Default)]
pub struct DiskLimit(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    limit: u64,
    used: AtomicU64,
}

/// What one batch has of it. Dropped, it gives that back.
#[derive(Debug)]
pub(super) struct DiskShare {
    limit: DiskLimit,
    bytes: u64,
}

impl DiskLimit {
    /// So many bytes for all who get a clone of this.
    pub fn new(bytes: u64) -> DiskLimit {
        DiskLimit(Some(Arc::new(Shared { limit: bytes, used: AtomicU64::new(0) })))
    }

    /// Nothing of it yet.
    pub(super) fn share(&self) -> DiskShare {
        DiskShare { limit: self.clone(), bytes: 0 }
    }
}

impl DiskShare {
    /// Takes more of it; `false`: there is not so much left, and nothing was taken.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let Some(shared) = &self.limit.0 else {
            return true;
        };
        let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= shared.limit);
        // the number is all that is shared: no other memory hangs on its order
        let grown = shared.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Drop for DiskShare {
    fn drop(&mut self) {
        if let Some(shared) = &self.limit.0 {
            shared.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_with_its_batch() {
        let limit = DiskLimit::new(10);
        let (mut one, mut other) = (limit.share(), limit.share());
        assert!(one.grow(6));
        assert!(!other.grow(5), "more than all together may have");
        assert!(other.grow(4));
        assert!(!one.grow(u64::MAX));
        drop(one);
        assert!(other.grow(6));
        assert!(!other.grow(1));
    }

    #[test]
    fn without_a_number_there_is_no_limit() {
        let mut share = DiskLimit::default().share();
        assert!(share.grow(u64::MAX) && share.grow(u64::MAX));
    }
}
