//! Cutting out the rows that the database refuses, so that all others load.
//!
//! Invariant: a row counts as refused only after it failed alone, with the rows before it there
//! where they make a difference. What the server says of the place of an error (a line of the COPY,
//! the values of a key) decides where to look first, nothing else: constraints that are checked at
//! the end of a statement name no line, and buffered rows the wrong one.
//!
//! Rows go in segments, each in a subtransaction that stays. Where one fails, trials look for its
//! bad rows, in subtransactions that are always rolled back, and the segment goes again without
//! them. A transaction keeps at most [`sending::MAX_SUBTRANSACTIONS`]: a backend announces 64 to
//! the others, beyond that every snapshot in the server has to look them up on disk. Rolled back
//! ones are taken off that list, so there may be any number of them. Where more would have to stay
//! the transaction is rolled back, and the next one sends all that is known to be good without any
//! and goes on from there.
//!
//! A segment that takes the server too long is cut in two, and what is learned of its size holds
//! for the rest of the load.
//!
//! An error of unknown kind is a row's where the table took another row under the same rules, in
//! this load or before; else all of the load fails with it, because it is the table's.

mod search;
mod sending;
mod suspect;

use std::collections::{BTreeMap, HashSet};

use self::{
    search::{Known, segments},
    sending::Sending,
};
use super::{
    barred::Barred, catalog::TableName, client::Connection, pool::Postgres, prepared::Prepared,
    selection::Selection,
};
use crate::{
    error::{Fault, LoadError, ServerError},
    load::RefusedRow,
};

/// What is known about the rows of a load's batches, from one transaction to the next.
#[derive(Default)]
pub(super) struct Isolation {
    has_begun: bool,
    /// Whether it began because the server ended a statement that took too long.
    is_slow: bool,
    batches: BTreeMap<usize, Known>,
    /// By batch: columns that its table cannot get.
    barred: BTreeMap<usize, Barred>,
    /// Batches whose options cannot be had.
    refused_batches: BTreeMap<usize, ServerError>,
    /// Tables that took a row of this load.
    taken: HashSet<TableName>,
    subtransactions: usize,
}

impl Isolation {
    /// From now on rows are cut out. `false`: that was so already, and did not help.
    pub(super) fn begin(&mut self, error: &LoadError) -> bool {
        self.is_slow |= error.is_too_slow();
        !std::mem::replace(&mut self.has_begun, true)
    }

    /// The same for a batch of more rows than its table took in time before.
    pub(super) fn begin_at(&mut self, batch: usize, pace: Option<usize>) {
        self.has_begun = true;
        let known = self.batches.entry(batch).or_default();
        known.rows_at_a_time = known.rows_at_a_time.or(pace);
        known.pace_was.get_or_insert(pace);
    }

    /// So many rows of a batch were sent at a time, where that was not all of them; and whether none
    /// of it took too long.
    pub(super) fn pace(&self, batch: usize) -> Option<(usize, bool)> {
        let known = self.batches.get(&batch)?;
        let pace = known.rows_at_a_time?;
        Some((pace, known.pace_was == Some(Some(pace))))
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The rows of a batch that were refused, in order.
    pub(super) fn refused(&self, batch: usize) -> Vec<RefusedRow> {
        let refused = self.batches.get(&batch).into_iter().flat_map(|known| &known.refused);
        refused.map(|(row, error)| RefusedRow { batch, row: *row, error: error.clone() }).collect()
    }

    /// What is known of the columns of a batch.
    pub(super) fn barred(&mut self, batch: usize) -> &mut Barred {
        self.barred.entry(batch).or_default()
    }

    /// Why all rows of a batch are refused, if they are.
    pub(super) fn refused_batch(&self, batch: usize) -> Option<&ServerError> {
        self.refused_batches.get(&batch)
    }

    /// Refuses all rows of a batch for what its options ask for.
    pub(super) fn refuse_batch(&mut self, batch: usize, error: &LoadError) {
        if let Some(error) = error.server_error() {
            self.refused_batches
                .insert(batch, ServerError { fault: Fault::Event, ..error.clone() });
        }
    }

    /// Refuses rows of a batch that are known to be at fault.
    pub(super) fn refuse_rows(&mut self, batch: usize, rows: &BTreeMap<usize, ServerError>) {
        if rows.is_empty() {
            return;
        }
        let known = self.batches.entry(batch).or_default();
        let decided = |error: &ServerError| ServerError { fault: Fault::Event, ..error.clone() };
        known.refused.extend(rows.iter().map(|(row, error)| (*row, decided(error))));
    }

    /// A table took rows.
    pub(super) fn took(&mut self, table: &TableName) {
        if !self.taken.contains(table) {
            self.taken.insert(table.clone());
        }
    }

    /// The error that is the table's and not a row's, if there is one, once all rows are sent.
    /// Remembers which tables took some.
    pub(super) fn undecided(
        &self,
        postgres: &Postgres,
        sent: &[(usize, Prepared)],
    ) -> Option<LoadError> {
        for (index, Prepared { batch, name, table, .. }) in sent {
            // a table that events chose must not keep those of others waiting
            let is_chosen = batch.has_event_options && batch.namespace().is_some();
            let Some(table) = table.as_ref().filter(|_| !is_chosen) else {
                continue;
            };
            if self.taken.contains(name) {
                postgres.taken().insert(name, table);
            } else if let Some(known) = self.batches.get(index)
                && let Some(error) = known.refused.values().find(|e| e.fault == Fault::Unknown)
                && !postgres.taken().has(name, table)
            {
                let table = name.table.clone();
                return Some(LoadError::Refused { table, error: Box::new(error.clone()) });
            }
        }
        None
    }

    /// A new transaction.
    pub(super) fn start_over(&mut self) {
        self.subtransactions = 0;
    }

    /// Sends a batch but for its bad rows; answers how many were inserted or updated. `None`: this
    /// transaction has had its share of subtransactions, and is to be rolled back.
    pub(super) async fn send(
        &mut self,
        connection: &mut Connection,
        index: usize,
        prepared: &Prepared,
        mut rows: Selection,
        may_be_all_new: bool,
    ) -> Result<Option<u64>, LoadError> {
        let total = rows.range.end;
        let known = self.batches.entry(index).or_default();
        known.transactions += 1;
        let mut sending = Sending {
            connection,
            prepared,
            subtransactions: &mut self.subtransactions,
            is_all_new: may_be_all_new && !known.has_repeats,
            is_open: false,
            has_taken: false,
            loaded: 0,
        };
        let refused: Vec<_> = known.refused.keys().copied().collect();
        rows.kept = prepared.survivors(&refused)?;
        if self.is_slow && known.rows_at_a_time.is_none() {
            known.rows_at_a_time = Some((total / 2).max(1));
        }
        if known.pieces.is_empty() {
            known.pieces = segments(known.sorted_until..total);
        }
        let is_sorted = sending.sort(known, &mut rows).await?;
        known.has_repeats |= !sending.is_all_new;
        if sending.has_taken {
            self.taken.insert(prepared.name.clone());
        }
        if !is_sorted {
            return Ok(None);
        }
        sending.close().await?;
        // a refused row may have stood for others of its key: the next best of them takes its place
        let refused: Vec<_> = known.refused.keys().copied().collect();
        if prepared.survivors(&refused)? == rows.kept {
            return Ok(Some(sending.loaded));
        }
        known.sorted_until = 0;
        Ok(None)
    }
}
