//! Events that are loaded together, with the result of inserting one after the other.
//!
//! A batch gives all of its rows the same columns and each column one type, which single events do
//! not: what one of them lacks stays as it is, and its types are fitted to what those before it
//! left. So events go into one batch as long as they are alike, and the batches are loaded in the
//! order in which their first events came.
//!
//! Where rows are merged by key, order between batches counts too: an event joins the newest batch
//! or begins another.

use std::sync::Arc;

use crate::{
    Batch,
    rows::{
        batch::{MANY_COLUMN_BYTES, table_name},
        options::{OptionError, StreamOptions},
        row::RowError,
    },
};

/// Batches that are open for more events at a time; looking for the right one costs a parse each.
const OPEN_BATCHES: usize = 4;
/// A load of more batches than this costs more than two loads.
const MAX_BATCHES: usize = 64;

/// Events of one table and one set of options.
#[derive(Debug)]
pub struct MicroBatch {
    table: String,
    options: Arc<StreamOptions>,
    has_event_options: bool,
    batches: Vec<Batch>,
}

/// Where an event's row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowIndex {
    /// The batch's index among those of [`MicroBatch::into_batches`].
    pub batch: usize,
    /// The row's number in its batch, from 0.
    pub row: usize,
}

impl MicroBatch {
    /// An empty one for `table` (a raw name). Refuses options that do not fit together, and the
    /// tables of the ledger.
    pub fn new(table: &str, options: &StreamOptions) -> Result<MicroBatch, OptionError> {
        let options = options.clone().of_single_events();
        options.validate()?;
        table_name(table, &options)?;
        let (table, options) = (table.to_owned(), Arc::new(options));
        Ok(MicroBatch { table, options, has_event_options: false, batches: Vec::new() })
    }

    /// Says that the options came with the events, as [`Batch::with_event_options`] does.
    #[must_use]
    pub fn with_event_options(mut self) -> MicroBatch {
        self.has_event_options = true;
        self
    }

    /// Adds one event (JSON). A refused one leaves the rows as they were.
    pub fn push(&mut self, event: &[u8]) -> Result<RowIndex, RowError> {
        // of events with one key the first may have to be the first
        let is_ordered = !self.options.primary_key.is_empty();
        let open = if is_ordered { 1 } else { OPEN_BATCHES };
        let first_open = self.batches.len().saturating_sub(open);
        for (index, batch) in self.batches.iter_mut().enumerate().skip(first_open).rev() {
            if batch.push_alike(event)? {
                return Ok(RowIndex { batch: index, row: batch.row_count() - 1 });
            }
        }
        let mut batch = Batch::new(&self.table, self.options.clone())
            .expect("the options were validated when the micro-batch was made");
        batch.has_event_options = self.has_event_options;
        batch.push_alike(event)?;
        self.batches.push(batch);
        Ok(RowIndex { batch: self.batches.len() - 1, row: 0 })
    }

    /// Whether it should be loaded before it takes more.
    pub fn is_full(&self) -> bool {
        self.batches.len() >= MAX_BATCHES
            || self.batches.iter().map(Batch::column_bytes).sum::<usize>() > MANY_COLUMN_BYTES
    }

    /// Bytes of heap that it holds, roughly.
    pub fn byte_size(&self) -> usize {
        self.batches.iter().map(Batch::byte_size).sum()
    }

    /// The batches, to be loaded in this order with [`RowsOf::Events`](crate::RowsOf::Events).
    pub fn into_batches(self) -> Vec<Batch> {
        self.batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(options: &StreamOptions, events: &[&str]) -> Vec<(usize, usize)> {
        let mut micro_batch = MicroBatch::new("t", options).unwrap();
        let mut push = |event: &&str| {
            let index = micro_batch.push(event.as_bytes()).unwrap();
            (index.batch, index.row)
        };
        events.iter().map(&mut push).collect()
    }

    const MIXED: [&str; 4] =
        [r#"{"id":1}"#, r#"{"id":2,"a":1}"#, r#"{"id":3}"#, r#"{"id":4,"a":2}"#];

    #[test]
    fn rows_that_are_only_added_find_their_batch_among_the_open_ones() {
        let places = places(&StreamOptions::default(), &MIXED);
        assert_eq!(places, [(0, 0), (1, 0), (0, 1), (1, 1)]);
    }

    #[test]
    fn rows_that_are_merged_keep_their_order() {
        let options = StreamOptions {
            deduplicate: true,
            primary_key: vec!["id".to_owned()],
            ..StreamOptions::default()
        };
        assert_eq!(places(&options, &MIXED), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    }

    #[test]
    fn a_refused_event_is_in_no_batch() {
        let mut micro_batch = MicroBatch::new("t", &StreamOptions::default()).unwrap();
        assert!(micro_batch.push(b"null").is_err());
        assert_eq!(micro_batch.push(br#"{"a":{}}"#), Err(RowError::NoColumn));
        assert!(micro_batch.into_batches().is_empty());
    }
}
