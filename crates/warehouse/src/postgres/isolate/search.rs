//! The search through one batch: pieces that stay, and trials that lead to a bad row.
//!
//! Invariant: rows before `sorted_until` are good or refused, whatever the next transaction meets.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    sending::{Attempt, Sending},
    suspect::row_pointed_at,
};
use crate::{
    error::{Fault, LoadError, ServerError},
    postgres::selection::Selection,
};

/// Into so many segments a batch is cut: small enough that a bad row costs little, few enough to
/// leave subtransactions for rows that are bad only because of others.
const SEGMENTS: usize = 24;
/// Smaller segments are not worth their round trips.
const MIN_SEGMENT: usize = 250;
/// From so many transactions on a row is also refused that fails only after others: the load has to
/// end, and a later one takes the row without those.
const MAX_TRANSACTIONS: usize = 8;
/// Rows of the first trial behind a bad row; the next ones are twice as long each.
const FIRST_WINDOW: usize = 64;
/// After so many bad rows side by side the next ones are tried one by one: trials of more would
/// only fail.
const STREAK: usize = 2;

/// What is known about the rows of one batch.
#[derive(Default)]
pub(super) struct Known {
    /// How many transactions tried these rows.
    pub(super) transactions: usize,
    /// Some key is in the table already.
    pub(super) has_repeats: bool,
    pub(super) refused: BTreeMap<usize, ServerError>,
    /// Rows before this one are sorted into good and refused.
    pub(super) sorted_until: usize,
    /// What is left to send, last first. Empty at first.
    pub(super) pieces: Vec<Range<usize>>,
    /// So many rows at a time are not known to take too long.
    pub(super) rows_at_a_time: Option<usize>,
    /// What was known of that when the load began.
    pub(super) pace_was: Option<Option<usize>>,
}

impl Sending<'_> {
    /// Sends what is known to be good, then piece after piece. `false`: no subtransaction is left.
    pub(super) async fn sort(
        &mut self,
        known: &mut Known,
        rows: &mut Selection,
    ) -> Result<bool, LoadError> {
        let most = known.rows_at_a_time.unwrap_or(usize::MAX);
        let count = rows.part(0..known.sorted_until).len();
        for range in cut_evenly(0..known.sorted_until, count.div_ceil(most)) {
            let Some(error) = self.send_good(&rows.part(range)).await? else {
                continue;
            };
            // they were good in another transaction: the table was changed in between
            known.sorted_until = 0;
            known.pieces.clear();
            if error.is_too_slow() {
                known.rows_at_a_time = Some((count.min(most) / 2).max(1));
            }
            return Ok(false);
        }
        while let Some(range) = known.pieces.pop() {
            let count = rows.part(range.clone()).len();
            if let Some(most) = known.rows_at_a_time.filter(|most| count > *most) {
                known.pieces.extend(cut_evenly(range, count.div_ceil(most)).into_iter().rev());
                continue;
            }
            match self.settle(known, rows, range.clone()).await? {
                Settled::Done => known.sorted_until = range.end,
                Settled::InPieces(pieces) => known.pieces.extend(pieces.into_iter().rev()),
                Settled::TooSlow => {
                    known.rows_at_a_time = Some(count / 2);
                    known.pieces.push(range);
                }
                Settled::NoneLeft => {
                    known.pieces.push(range);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Sends a range without its bad rows.
    async fn settle(
        &mut self,
        known: &mut Known,
        rows: &mut Selection,
        range: Range<usize>,
    ) -> Result<Settled, LoadError> {
        let mut looked_until = range.start;
        let mut is_first_failure = true;
        loop {
            let piece = rows.part(range.clone());
            if piece.first().is_none() {
                return Ok(Settled::Done);
            }
            let error = match self.attempt(&piece).await? {
                Attempt::Loaded => return Ok(Settled::Done),
                Attempt::NoneLeft => return Ok(Settled::NoneLeft),
                Attempt::Failed(error) => error,
            };
            if error.is_too_slow() && piece.len() > 1 {
                return Ok(Settled::TooSlow);
            }
            if piece.len() == 1 {
                let row = piece.first().unwrap_or(range.start);
                self.refuse(known, rows, row, *error);
                return Ok(Settled::Done);
            }
            let suspect =
                row_pointed_at(self.prepared, &piece, &error)?.filter(|row| *row >= looked_until);
            let unseen = looked_until..range.end;
            let found = match is_first_failure {
                true => self.find_one(known, rows, unseen, suspect).await?,
                false => self.find_all(known, rows, unseen, suspect).await?,
            };
            is_first_failure = false;
            let row = match found {
                Found::BadUntil(row) => {
                    looked_until = row;
                    continue;
                }
                Found::Innocent(Some(row)) => row,
                Found::Innocent(None) => self.first_to_fail_with_others(rows, &range).await?,
            };
            if known.transactions > MAX_TRANSACTIONS {
                self.refuse(known, rows, row, *error);
                continue;
            }
            // it is bad because of the rows before it: they go first, then it, alone
            let Range { start, end } = range;
            let pieces = [start..row, row..row + 1, row + 1..end];
            let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
            return Ok(Settled::InPieces(pieces.collect()));
        }
    }

    /// The last row of the shortest beginning of a range that fails as a whole.
    async fn first_to_fail_with_others(
        &mut self,
        rows: &Selection,
        range: &Range<usize>,
    ) -> Result<usize, LoadError> {
        let Range { mut start, mut end } = *range;
        while end - start > 1 {
            let middle = start + (end - start) / 2;
            match self.trial(&rows.part(range.start..middle)).await? {
                None => start = middle,
                Some(_) => end = middle,
            }
        }
        Ok(start)
    }

    /// Refuses the first bad row of a range: the suspect, else the one that trials of ever smaller
    /// halves lead to.
    async fn find_one(
        &mut self,
        known: &mut Known,
        rows: &mut Selection,
        range: Range<usize>,
        suspect: Option<usize>,
    ) -> Result<Found, LoadError> {
        let suspect = match suspect {
            Some(row) => Some(row),
            None => self.search(rows, range.clone()).await?,
        };
        let Some(row) = suspect else {
            return Ok(Found::Innocent(None));
        };
        match self.trial(&rows.part(row..row + 1)).await? {
            Some(error) => {
                self.refuse(known, rows, row, *error);
                Ok(Found::BadUntil(row + 1))
            }
            None => Ok(Found::Innocent(Some(row))),
        }
    }

    /// Refuses all bad rows of a range, from the suspect on.
    async fn find_all(
        &mut self,
        known: &mut Known,
        rows: &mut Selection,
        range: Range<usize>,
        mut suspect: Option<usize>,
    ) -> Result<Found, LoadError> {
        let Range { mut start, end } = range;
        let mut failed = start..end;
        let mut streak = 0;
        loop {
            match self.find_one(known, rows, failed, suspect).await? {
                Found::BadUntil(row) => {
                    streak = if row == start + 1 { streak + 1 } else { 1 };
                    start = row;
                }
                innocent @ Found::Innocent(_) => return Ok(innocent),
            }
            let mut length = FIRST_WINDOW;
            loop {
                while streak >= STREAK && start < end {
                    match self.trial(&rows.part(start..start + 1)).await? {
                        Some(error) => self.refuse(known, rows, start, *error),
                        None => streak = 0,
                    }
                    start += 1;
                }
                if start >= end {
                    return Ok(Found::BadUntil(end));
                }
                let window = rows.part(start..end.min(start + length));
                match self.trial(&window).await? {
                    None => (start, length) = (window.range.end, length * 2),
                    Some(error) => {
                        suspect = row_pointed_at(self.prepared, &window, &error)?;
                        failed = window.range;
                        break;
                    }
                }
            }
        }
    }

    /// The first row of a range that fails, by trials of halves; rows before it are good.
    async fn search(
        &mut self,
        rows: &Selection,
        range: Range<usize>,
    ) -> Result<Option<usize>, LoadError> {
        let Range { mut start, mut end } = range;
        while end - start > 1 {
            let half = rows.part(start..start + (end - start) / 2);
            match self.trial(&half).await? {
                None => start = half.range.end,
                Some(error) => {
                    if let Some(row) = row_pointed_at(self.prepared, &half, &error)? {
                        return Ok(Some(row));
                    }
                    end = half.range.end;
                }
            }
        }
        Ok(rows.part(start..end).first())
    }

    fn refuse(&self, known: &mut Known, rows: &mut Selection, row: usize, mut error: ServerError) {
        if error.is_too_slow() {
            error.fault = Fault::Unknown; // nothing smaller can be sent: the row's, or the table's
        }
        known.refused.insert(row, error);
        let all = || Arc::new(vec![true; self.prepared.batch.row_count()]);
        Arc::make_mut(rows.kept.get_or_insert_with(all))[row] = false;
    }
}

/// What became of a range.
enum Settled {
    Done,
    /// It has to be sent in these pieces, one after another.
    InPieces(Vec<Range<usize>>),
    /// The server ended it because it took too long.
    TooSlow,
    /// No subtransaction is left.
    NoneLeft,
}

/// What a look for bad rows found.
enum Found {
    /// There were some; rows before this one are good or refused.
    BadUntil(usize),
    /// What was taken for one (`None`: nothing) is good by itself.
    Innocent(Option<usize>),
}

/// The segments of a batch, last first.
pub(super) fn segments(rows: Range<usize>) -> Vec<Range<usize>> {
    let count = SEGMENTS.min(rows.len() / MIN_SEGMENT).max(1);
    cut_evenly(rows, count).into_iter().rev().collect()
}

fn cut_evenly(rows: Range<usize>, count: usize) -> Vec<Range<usize>> {
    let size = rows.len().div_ceil(count.max(1)).max(1);
    rows.clone().step_by(size).map(|start| start..(start + size).min(rows.end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_rows_once() {
        for (rows, count) in [(0..10, 3), (5..6, 8), (0..8, 8), (3..3, 4), (0..9, 0)] {
            let pieces = cut_evenly(rows.clone(), count);
            assert!(pieces.len() <= count.max(1));
            let covered: Vec<_> = pieces.into_iter().flatten().collect();
            assert_eq!(covered, rows.collect::<Vec<_>>());
        }
        assert_eq!(segments(0..100_000).len(), SEGMENTS);
        assert_eq!(segments(0..100_000).last(), Some(&(0..4167)), "the first comes first");
        assert_eq!(segments(0..300).len(), 1);
    }
}
