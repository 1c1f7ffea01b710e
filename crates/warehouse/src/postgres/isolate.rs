//! Cutting out the rows that the database refuses, so that all others load.
//!
//! Invariant: a row counts as refused only after it failed alone, after the rows before it were there or would
//! have made no difference. What the server says of the place of an error (a line of the COPY, the values of a
//! key) decides where to look first, nothing else: constraints that are checked at the end of a statement name
//! no line, and buffered rows the wrong one.
//!
//! Rows go in segments, each in a subtransaction. A transaction has at most [`MAX_SUBTRANSACTIONS`] of them,
//! failed ones included: beyond 64 PostgreSQL slows down for everybody. When they are used up the transaction
//! is rolled back, and the next one sends all that is known to be good in one piece and goes on from there.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    client::Connection,
    error::{KeyHint, LoadError, ServerError},
    load::{RefusedRow, survivors},
    prepare::Prepared,
    transfer::{self, Selection},
};
use crate::batch::Batch;

const MAX_SUBTRANSACTIONS: usize = 60;
/// Into so many pieces a batch is cut at first: small enough that a bad row costs little, few enough to leave
/// subtransactions for ten bad rows.
const SEGMENTS: usize = 24;
/// Smaller pieces are not worth their round trips.
const MIN_SEGMENT: usize = 250;
/// What is known about the rows of a load's batches, from one transaction to the next.
#[derive(Default)]
pub(super) struct Isolation {
    has_begun: bool,
    batches: BTreeMap<usize, Known>,
    subtransactions: usize,
}

#[derive(Default)]
struct Known {
    refused: BTreeMap<usize, ServerError>,
    /// Rows before this one are sorted into good and refused.
    sorted_until: usize,
    /// What is left to send, last first. Empty at first.
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Whole(Range<usize>),
    /// A bad row is in `range`; what follows it up to `end` was not looked at.
    Search {
        range: Range<usize>,
        end: usize,
    },
}

impl Isolation {
    /// From now on rows are cut out. `false`: that was so already, and did not help.
    pub(super) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.has_begun, true)
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The rows of a batch that were refused, in order.
    pub(super) fn refused(&self, batch: usize) -> Vec<RefusedRow> {
        let refused = self.batches.get(&batch).into_iter().flat_map(|known| &known.refused);
        refused.map(|(row, error)| RefusedRow { batch, row: *row, error: error.clone() }).collect()
    }

    /// A new transaction.
    pub(super) fn start_over(&mut self) {
        self.subtransactions = 0;
    }

    /// Sends a batch but for its bad rows; answers how many were inserted or updated. `None`: this transaction has
    /// had its share of subtransactions, and is to be rolled back.
    pub(super) async fn send(
        &mut self,
        connection: &mut Connection,
        index: usize,
        prepared: &Prepared,
        mut rows: Selection,
    ) -> Result<Option<u64>, LoadError> {
        let total = rows.range.end;
        let known = self.batches.entry(index).or_default();
        let mut sending =
            Sending { connection, prepared, subtransactions: &mut self.subtransactions, loaded: 0 };
        let refused: Vec<_> = known.refused.keys().copied().collect();
        rows.kept = survivors(prepared, &refused)?;
        if known.pieces.is_empty() {
            known.pieces = segments(known.sorted_until..total);
        }
        if !sending.sort(known, &mut rows).await? {
            return Ok(None);
        }
        // a refused row may have stood for others of its key: the next best of them takes its place
        let refused: Vec<_> = known.refused.keys().copied().collect();
        if survivors(prepared, &refused)? == rows.kept {
            return Ok(Some(sending.loaded));
        }
        known.sorted_until = 0;
        Ok(None)
    }
}

struct Sending<'a> {
    connection: &'a mut Connection,
    prepared: &'a Prepared,
    subtransactions: &'a mut usize,
    loaded: u64,
}

impl Sending<'_> {
    /// Sends what is known to be good, then piece after piece. `false`: no subtransaction is left.
    async fn sort(&mut self, known: &mut Known, rows: &mut Selection) -> Result<bool, LoadError> {
        let good = Selection { range: 0..known.sorted_until, kept: rows.kept.clone() };
        if good.first().is_some() {
            match self.attempt(&good).await? {
                Attempt::Loaded => {}
                Attempt::NoneLeft => return Ok(false),
                Attempt::Failed(_) => {
                    // they were good in another transaction: somebody changed the table in between
                    known.sorted_until = 0;
                    known.pieces.clear();
                    return Ok(false);
                }
            }
        }
        while let Some(piece) = known.pieces.pop() {
            let range = match &piece {
                Piece::Whole(range) => range.clone(),
                Piece::Search { range, .. } => first_half(range),
            };
            let sent = Selection { range: range.clone(), kept: rows.kept.clone() };
            let attempt = match sent.first() {
                Some(_) => self.attempt(&sent).await?,
                None => Attempt::Loaded, // nothing to send
            };
            match attempt {
                Attempt::Loaded => {
                    known.sorted_until = range.end;
                    if let Piece::Search { range: searched, end } = piece {
                        known.pieces.push(match range.end == searched.end {
                            true => Piece::Whole(range.end..end),
                            false => Piece::Search { range: range.end..searched.end, end },
                        });
                    }
                }
                Attempt::NoneLeft => {
                    known.pieces.push(piece);
                    return Ok(false);
                }
                Attempt::Failed(error) => {
                    if let Piece::Search { end, .. } = piece {
                        known.pieces.push(Piece::Whole(range.end..end));
                    }
                    if sent.len() > 1 {
                        known.pieces.extend(self.cut(&sent, &error)?);
                        continue;
                    }
                    let row = sent.first().unwrap_or(range.start);
                    known.refused.insert(row, *error);
                    let kept = rows.kept.get_or_insert_with(|| {
                        Arc::new(vec![true; self.prepared.batch.row_count()])
                    });
                    Arc::make_mut(kept)[row] = false;
                    known.sorted_until = range.end;
                }
            }
        }
        Ok(true)
    }

    /// Sends rows in a subtransaction.
    async fn attempt(&mut self, rows: &Selection) -> Result<Attempt, LoadError> {
        if *self.subtransactions >= MAX_SUBTRANSACTIONS {
            return Ok(Attempt::NoneLeft);
        }
        *self.subtransactions += 1;
        self.connection.run("savepoint piece").await?;
        match transfer::send(self.connection, self.prepared, rows).await {
            Ok(loaded) => {
                self.connection.run("release savepoint piece").await?;
                self.loaded += loaded;
                Ok(Attempt::Loaded)
            }
            Err(LoadError::Refused { error, .. }) => {
                self.connection.run("rollback to savepoint piece; release savepoint piece").await?;
                Ok(Attempt::Failed(error))
            }
            Err(error) => Err(error),
        }
    }

    /// How to go on with rows that failed together, last first. The row that the server points at is a piece of its
    /// own.
    fn cut(&self, failed: &Selection, error: &ServerError) -> Result<Vec<Piece>, LoadError> {
        let Range { start, end } = failed.range;
        let by_line = error.copy_line.and_then(|line| failed.row_of_line(line));
        let suspect = match (by_line, self.key_hint(error)) {
            (Some(row), _) => Some(row),
            (None, Some(key)) => self.row_with_key(failed, &key)?,
            (None, None) => None,
        };
        Ok(match suspect {
            Some(row) => {
                let pieces = [row + 1..end, row..row + 1, start..row];
                pieces.into_iter().filter(|piece| !piece.is_empty()).map(Piece::Whole).collect()
            }
            None => vec![Piece::Search { range: start..end, end }],
        })
    }

    /// The values that the server said it was at: those of a key, or of the whole row, by its first column.
    fn key_hint(&self, error: &ServerError) -> Option<KeyHint> {
        let of_row = || {
            let columns = self.prepared.table.as_ref()?.columns.first()?.name.clone();
            Some(KeyHint { columns, values: error.first_value.clone()? })
        };
        error.key.clone().or_else(of_row)
    }

    /// The last row of the piece that has the values of a violated key: the earlier ones may be why it is violated.
    fn row_with_key(&self, piece: &Selection, key: &KeyHint) -> Result<Option<usize>, LoadError> {
        let batch: &Batch = &self.prepared.batch;
        let slots: Option<Vec<u32>> =
            key.columns.split(", ").map(|column| batch.slot_of(column)).collect();
        let Some(slots) = slots else {
            return Ok(None);
        };
        let mut found = None;
        let kept = piece.kept.clone();
        batch.rows.visit(piece.range.clone(), |number, row| {
            let is_sent = kept.as_ref().is_none_or(|kept| kept[number]);
            let texts: Option<Vec<_>> =
                slots.iter().map(|slot| row.cell(*slot).map(|cell| cell.text())).collect();
            if is_sent && texts.is_some_and(|texts| texts.join(", ") == key.values) {
                found = Some(number);
            }
            true
        })?;
        Ok(found)
    }
}

enum Attempt {
    Loaded,
    Failed(Box<ServerError>),
    /// No subtransaction is left.
    NoneLeft,
}

/// The pieces of a batch, last first.
fn segments(rows: Range<usize>) -> Vec<Piece> {
    let count = SEGMENTS.min(rows.len() / MIN_SEGMENT).max(1);
    cut_evenly(rows, count).into_iter().rev().map(Piece::Whole).collect()
}

fn first_half(rows: &Range<usize>) -> Range<usize> {
    rows.start..rows.start + rows.len().div_ceil(2)
}

fn cut_evenly(rows: Range<usize>, count: usize) -> Vec<Range<usize>> {
    let size = rows.len().div_ceil(count).max(1);
    rows.clone().step_by(size).map(|start| start..(start + size).min(rows.end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_rows_once() {
        for (rows, count) in [(0..10, 3), (5..6, 8), (0..8, 8), (3..3, 4)] {
            let pieces = cut_evenly(rows.clone(), count);
            assert!(pieces.len() <= count);
            let covered: Vec<_> = pieces.into_iter().flatten().collect();
            assert_eq!(covered, rows.collect::<Vec<_>>());
        }
        assert_eq!(segments(0..100_000).len(), SEGMENTS);
        assert_eq!(
            segments(0..100_000).last(),
            Some(&Piece::Whole(0..4167)),
            "the first comes first"
        );
        assert_eq!(segments(0..300).len(), 1);
    }
}
