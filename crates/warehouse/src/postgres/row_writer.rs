//! What the formats of COPY have in common.

use super::fit::Fit;
use crate::rows::row::{Cell, Row};

/// Turns the rows of one batch into what COPY reads.
pub(super) trait RowWriter {
    /// The name of the format.
    fn format(&self) -> &'static str;
    /// What comes before the first row.
    fn begin(&self, out: &mut Vec<u8>);
    fn row(&mut self, row_number: usize, row: Row<'_>, out: &mut Vec<u8>);
    /// What comes after the last.
    fn end(&self, out: &mut Vec<u8>);
}

/// The common case: a row's values come in the order of the columns, and `write` takes all of them.
/// `false`: not so, and what was written is of no use.
#[inline]
pub(super) fn in_order(
    fit: &Fit,
    row: Row<'_>,
    null: &[u8],
    out: &mut Vec<u8>,
    mut write: impl FnMut(u32, &Cell<'_>, &mut Vec<u8>) -> bool,
) -> bool {
    let mut next = 0;
    for cell in row.cells() {
        let Some(column) = fit.column_of_slot[cell.slot as usize] else {
            return false;
        };
        if column < next {
            return false;
        }
        (next..column).for_each(|_| out.extend_from_slice(null));
        if !write(column, &cell, out) {
            return false;
        }
        next = column + 1;
    }
    (next as usize..fit.columns.len()).for_each(|_| out.extend_from_slice(null));
    true
}
