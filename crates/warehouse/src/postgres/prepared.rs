//! A batch that fits its table, and what follows from both: which of its rows are sent, and how.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    catalog::{Filled, Table, TableName, Way},
    fit::Fit,
    quote_ident,
};
use crate::{
    error::{LoadError, ServerError},
    rows::{
        batch::{Batch, Replaces},
        dedup,
    },
};

/// A batch that fits its table.
pub(super) struct Prepared {
    pub(super) batch: Arc<Batch>,
    pub(super) name: TableName,
    pub(super) fit: Arc<Fit>,
    /// As it is now. `None`: the batch has no column, and there is no table.
    pub(super) table: Option<Table>,
    /// Whether the table has just been made, in this transaction.
    pub(super) is_new: bool,
    /// A column of the key that no event of the batch has. Without it no row can be stored.
    pub(super) absent_key: Option<String>,
    /// Rows that are refused for a column that they ask for.
    pub(super) refused: BTreeMap<usize, ServerError>,
    /// Whether each row stands for itself: what it lacks keeps its value in the row that it is
    /// merged into, or gets its default.
    pub(super) is_by_event: bool,
    pub(super) one_by_one: OneByOne,
    pub(super) is_literal: bool,
}

/// Whether rows have to be inserted one after the other, because a statement for all of them would
/// leave something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OneByOne {
    Never,
    /// Unless all keys are new: part of each key is the table's to fill, so two rows may turn out
    /// to have the same.
    IfKeysRepeat,
    /// Some rows name columns that others leave to the table.
    Always,
}

impl Prepared {
    /// The columns that rows of the batch are told apart by: those of the stream's key, or of the
    /// key that rows are merged by, if it is the customer's own.
    pub(super) fn row_key(&self) -> Vec<String> {
        let present = self.table.as_ref().and_then(|table| table.key.as_ref());
        let merged_by = present.filter(|_| self.batch.options.merges_into_table());
        match merged_by.filter(|_| !self.is_literal) {
            Some(key) => key.columns.clone(),
            None => self.batch.key_columns(),
        }
    }

    /// Rows per part of the batch, within which equal keys are looked for; 0: the whole batch is
    /// one part. Parts can only refuse what the whole batch would take, so there are parts only
    /// where the original is followed to the letter.
    pub(super) fn part(&self) -> usize {
        let part = usize::try_from(self.batch.options.temporary_batch_size).unwrap_or(0);
        if self.is_literal { part } else { 0 }
    }

    /// Whether the table has to stay as it is for the rows. One whose rows are all replaced is looked
    /// at once more when it is locked for that.
    pub(super) fn is_fitted_to_table(&self) -> bool {
        self.batch.replaces != Replaces::Table || self.is_new
    }

    /// Whether rows go straight into the table: COPY does all that has to be done.
    pub(super) fn goes_by_copy(&self) -> bool {
        self.may_be_copied() && self.one_by_one == OneByOne::Never && self.merged_by().is_none()
    }

    /// Whether rows that are not merged may go straight into the table.
    pub(super) fn may_be_copied(&self) -> bool {
        let takes_copy = self.table.as_ref().is_none_or(|table| table.way == Way::Copy);
        takes_copy && !self.fit.needs_cast()
    }

    /// The constraint of the key that rows are merged by. By one that is deferrable PostgreSQL merges
    /// nothing: a repeat is refused, alone.
    pub(super) fn merged_by(&self) -> Option<&str> {
        let key = self.table.as_ref().and_then(|table| table.key.as_ref());
        let merges = self.batch.options.merges_into_table();
        let key = key.filter(|key| merges && !key.is_deferrable);
        key.map(|key| key.constraint.as_str())
    }

    /// Quoted names of the batch's columns whose identity is always the table's own.
    pub(super) fn always_own(&self) -> Vec<String> {
        let is_own = |name: &String| {
            self.table.as_ref().is_some_and(|table| table.filled(name) == Filled::Always)
        };
        let names = self.fit.columns.iter().map(|column| &column.name);
        names.filter(|name| is_own(name)).map(|name| quote_ident(name)).collect()
    }

    /// What a row has in a column of the batch that it has no value for. `None`: the column is not
    /// named in it.
    pub(super) fn absent_value(&self, column: &str) -> Option<String> {
        let table = self.table.as_ref();
        let key = table.and_then(|table| table.key.as_ref());
        let is_left_to_table = key.is_some_and(|key| key.columns.iter().any(|name| name == column))
            && table.is_some_and(|table| table.filled(column) != Filled::Never);
        (!self.is_by_event && !is_left_to_table).then(|| "null".to_owned())
    }

    /// Which rows are sent: of those with equal keys one, and none of `refused`. `None`: all.
    pub(super) fn survivors(&self, refused: &[usize]) -> Result<Option<Arc<Vec<bool>>>, LoadError> {
        let Prepared { batch, fit, .. } = self;
        let compares = match self.is_by_event {
            // without a merge the first one is stored, and the second refused
            true => batch.options.merges_into_table() && self.one_by_one != OneByOne::Always,
            false => batch.options.deduplicate,
        };
        if compares {
            let (key, part) = (self.row_key(), self.part());
            let survivors = dedup::survivors(batch, &key, refused, part, |row, cell, out| {
                fit.stored(row, cell, out)
            })?;
            return Ok(Some(Arc::new(survivors)));
        }
        if refused.is_empty() {
            return Ok(None);
        }
        let mut kept = vec![true; batch.row_count()];
        refused.iter().for_each(|row| kept[*row] = false);
        Ok(Some(Arc::new(kept)))
    }
}
