//! The search for a poison event: one with which no batch can be loaded, and which the warehouse
//! did not tell apart. It is looked for by halving the batch, until it is alone.
//!
//! Invariant: what one event is to blame for costs that event, and what the table is to blame for
//! costs no event. An error whose kind is not known is the event's only where others were taken
//! while it was looked for: the table may have changed since before. Until then the topic waits,
//! with the reason.
//!
//! What a search learned outlives it: batches grow back by doubling, so the next such event nearby
//! is found in few steps; and a size that took the database too long is not tried again soon.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Loads of the largest size that went well before twice the size is tried again.
const PROBE_AFTER: u32 = 16;

/// Records per batch at the moment, shared with the thread that reads; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct BatchLimit(Arc<AtomicU64>);

impl Default for BatchLimit {
    fn default() -> BatchLimit {
        BatchLimit(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl BatchLimit {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, records: u64) {
        self.0.store(records, Ordering::Relaxed);
    }
}

/// What the failure of a batch says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// One of its events, for sure.
    Event,
    /// One of its events, or the table.
    Unknown,
    /// It took too long.
    Size,
}

/// What is to be done about a batch that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// Start over: with a smaller batch, or to refuse the event that was found.
    StartOver,
    /// Nothing can be said but that it failed.
    Fail,
}

/// A poison event, refused for this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// SQLSTATE, or what else the refusal is called; never a row value.
    pub(crate) code: String,
    /// The whole reason.
    pub(crate) reason: String,
}

/// How far the search of one topic is.
#[derive(Debug, Default)]
pub(crate) struct PoisonSearch {
    limit: BatchLimit,
    /// It is the record at this offset.
    found: Option<(i64, Refusal)>,
    /// Whether an event was loaded since the search began: the table takes some as it is now.
    has_loaded: bool,
    /// More records than this took too long, and since how many loads of that size.
    ceiling: Option<(u64, u32)>,
}

impl PoisonSearch {
    /// Records per batch, as it is and will be.
    pub(crate) fn limit(&self) -> BatchLimit {
        self.limit.clone()
    }

    /// A batch from this offset failed.
    pub(crate) fn failed(
        &mut self,
        first_offset: i64,
        records: u64,
        blame: Blame,
        refusal: Refusal,
    ) -> NextStep {
        if self.limit.get() == u64::MAX {
            self.has_loaded = false;
        }
        if records > 1 {
            let half = records / 2;
            self.limit.set(half);
            if blame == Blame::Size {
                self.ceiling = Some((half, 0));
            }
            return NextStep::StartOver;
        }
        match blame {
            Blame::Event => {}
            Blame::Unknown if self.has_loaded => {}
            Blame::Unknown | Blame::Size => return NextStep::Fail,
        }
        self.limit.set(1); // it comes alone, whatever was appended meanwhile
        self.found = Some((first_offset, refusal));
        NextStep::StartOver
    }

    /// Why a batch that begins here, and is one record, is to be refused.
    pub(crate) fn take(&mut self, first_offset: i64, records: u64) -> Option<Refusal> {
        let is_it = self.found.as_ref().is_some_and(|(found, _)| *found == first_offset);
        if !is_it || records != 1 {
            return None;
        }
        self.found.take().map(|(_, refusal)| refusal)
    }

    /// A batch of so many records is loaded, of which so many are rows now.
    pub(crate) fn loaded(&mut self, records: u64, rows: u64) {
        self.has_loaded |= rows > 0;
        let limit = self.limit.get();
        if limit == u64::MAX || records < limit {
            return;
        }
        let mut next = limit.saturating_mul(2);
        if let Some((most, loads)) = &mut self.ceiling
            && next > *most
        {
            *loads += 1;
            if *loads < PROBE_AFTER {
                next = (*most).max(limit);
            } else {
                self.ceiling = None;
            }
        }
        self.limit.set(next);
    }

    /// The topic is loaded to its end: whatever it was, it is gone.
    pub(crate) fn end(&mut self) {
        self.limit.set(self.ceiling.map_or(u64::MAX, |(most, _)| most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Refusal {
        Refusal { code: "42704".to_owned(), reason: "no such type".to_owned() }
    }

    /// Loads offsets from 0 to `end` as a run does; answers the refused ones and how many batches
    /// were tried.
    fn run(end: i64, poison: &[i64], full: u64) -> (Vec<i64>, u64) {
        let mut search = PoisonSearch::default();
        let (mut position, mut refused, mut tried) = (0, Vec::new(), 0);
        while position < end {
            tried += 1;
            let left = u64::try_from(end - position).unwrap();
            let records = search.limit().get().min(full).min(left);
            let next = position + i64::try_from(records).unwrap();
            if search.take(position, records).is_some() {
                refused.push(position);
            } else if poison.iter().any(|offset| (position..next).contains(offset)) {
                let step = search.failed(position, records, Blame::Event, refusal());
                assert_eq!(step, NextStep::StartOver);
                continue;
            }
            search.loaded(records, records);
            position = next;
        }
        (refused, tried)
    }

    #[test]
    fn each_poison_event_is_found_and_no_other_one() {
        for poison in [vec![0], vec![999], vec![0, 1, 2, 999], vec![500, 501, 777]] {
            assert_eq!(run(1000, &poison, 300).0, poison);
        }
    }

    #[test]
    fn a_search_costs_few_batches_and_goes_back_to_full_size() {
        let poison: Vec<_> = (0..30).map(|number| number * 100 + 50).collect();
        let (refused, tried) = run(100_000, &poison, 10_000);
        assert_eq!(refused, poison);
        assert!(tried < 30 * 20, "{tried} batches");
        // 97,000 records lie behind the last of them
        let (_, tried) = run(100_000, &[0], 10_000);
        assert!(tried < 14 + 14 + 12, "{tried} batches");
    }

    #[test]
    fn an_error_of_unknown_kind_is_the_events_once_another_one_was_loaded_meanwhile() {
        let mut search = PoisonSearch::default();
        search.loaded(100, 100);
        assert_eq!(search.failed(7, 1, Blame::Unknown, refusal()), NextStep::Fail, "long ago");
        assert_eq!(search.take(7, 1), None);
        assert_eq!(search.failed(7, 2, Blame::Unknown, refusal()), NextStep::StartOver);
        search.loaded(1, 1);
        assert_eq!(search.failed(8, 1, Blame::Unknown, refusal()), NextStep::StartOver);
        assert_eq!(search.take(8, 2), None, "not alone");
        assert_eq!(search.take(8, 1), Some(refusal()));
        assert_eq!(search.take(8, 1), None, "only once");
    }

    #[test]
    fn refused_events_alone_do_not_prove_that_the_table_takes_any() {
        let mut search = PoisonSearch::default();
        search.failed(0, 20, Blame::Unknown, refusal());
        search.loaded(10, 0);
        assert_eq!(search.failed(10, 1, Blame::Unknown, refusal()), NextStep::Fail);
    }

    #[test]
    fn what_took_too_long_is_done_in_parts_and_blames_no_event() {
        let mut search = PoisonSearch::default();
        assert_eq!(search.failed(0, 3000, Blame::Size, refusal()), NextStep::StartOver);
        for _ in 0..PROBE_AFTER - 1 {
            assert_eq!(search.limit().get(), 1500);
            search.loaded(1500, 1500);
        }
        search.end();
        assert_eq!(search.limit().get(), 1500, "the next run begins as this one went well");
        search.loaded(1500, 1500);
        assert_eq!(search.limit().get(), 3000, "it may have become faster");
        assert_eq!(search.failed(0, 1, Blame::Size, refusal()), NextStep::Fail);
    }
}
