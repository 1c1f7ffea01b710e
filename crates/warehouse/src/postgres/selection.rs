//! Rows of a batch that are sent together.

use std::{ops::Range, sync::Arc};

/// Rows of a batch.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    pub(super) range: Range<usize>,
    /// One flag per row of the batch: whether it is sent. `None`: all are.
    pub(super) kept: Option<Arc<Vec<bool>>>,
}

impl Selection {
    pub(super) fn has(&self, row: usize) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept[row])
    }

    /// Those of its rows that lie in `range`.
    pub(super) fn part(&self, range: Range<usize>) -> Selection {
        Selection { range, kept: self.kept.clone() }
    }

    /// How many rows it has.
    pub(super) fn len(&self) -> usize {
        match &self.kept {
            Some(kept) => kept[self.range.clone()].iter().filter(|is_kept| **is_kept).count(),
            None => self.range.len(),
        }
    }

    /// The first row.
    pub(super) fn first(&self) -> Option<usize> {
        self.range.clone().find(|row| self.has(*row))
    }

    /// The row that COPY counts as this line, from 1.
    pub(super) fn row_of_line(&self, line: u64) -> Option<usize> {
        let index = usize::try_from(line.checked_sub(1)?).ok()?;
        self.range.clone().filter(|row| self.has(*row)).nth(index)
    }
}
