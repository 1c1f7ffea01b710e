//! Columns that a table cannot get, and what becomes of the events that bring them.
//!
//! Invariant: an event is refused for a column only where a hint of its own asks for the type that
//! cannot be made, or where not even `_unmapped_data` can be had for its value. Where the name is
//! what is impossible, or no hint is involved, no event is to blame: the values are unmapped.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
};

use crate::{
    error::ServerError,
    rows::{batch::Batch, columns::Column, row::Cell},
};

/// What is known of the columns of one batch that its table cannot get.
#[derive(Debug, Default)]
pub(super) struct Barred {
    /// By slot: what the column is without the rows that are refused for it.
    changed: HashMap<u32, Column>,
    /// Slots whose values go to `_unmapped_data`.
    unmapped: HashSet<u32>,
    /// Why there can be no `_unmapped_data`.
    no_unmapped: Option<ServerError>,
    refused: BTreeMap<usize, ServerError>,
}

impl Barred {
    /// The column, as the rows that are left have it.
    pub(super) fn column<'a>(&'a self, batch: &'a Batch, slot: u32) -> &'a Column {
        self.changed.get(&slot).unwrap_or_else(|| &batch.columns()[slot as usize])
    }

    pub(super) fn is_unmapped(&self, slot: u32) -> bool {
        self.unmapped.contains(&slot)
    }

    pub(super) fn may_have_unmapped(&self) -> bool {
        self.no_unmapped.is_none()
    }

    pub(super) fn is_refused(&self, row: usize) -> bool {
        self.refused.contains_key(&row)
    }

    /// Rows that are refused for what they ask for, with the server's reasons.
    pub(super) fn refused(&self) -> &BTreeMap<usize, ServerError> {
        &self.refused
    }

    /// There can be no column of unmapped values.
    pub(super) fn bar_unmapped(&mut self, error: ServerError) {
        self.no_unmapped = Some(error);
    }

    /// Takes note of columns (by their slots) that the table cannot get. Rows whose hints ask for
    /// them are refused; the other rows decide anew what the columns are.
    pub(super) fn bar(
        &mut self,
        batch: &Batch,
        errors: &HashMap<u32, ServerError>,
    ) -> io::Result<()> {
        let mut hinted: HashMap<u32, Column> = HashMap::new();
        for slot in errors.keys() {
            let column = self.column(batch, *slot);
            match column.hint() {
                Some(_) => drop(hinted.insert(*slot, column.without_rows())),
                None => drop(self.unmapped.insert(*slot)),
            }
        }
        if hinted.is_empty() {
            return Ok(());
        }
        let all = 0..batch.row_count();
        let mut refused = BTreeMap::new();
        batch.rows.visit(all.clone(), |number, row| {
            for cell in row.cells().filter(|cell| hinted.contains_key(&cell.slot)) {
                let column = self.column(batch, cell.slot);
                let asks = cell.flags.hint().is_some() && column.hint_of(number) == column.hint();
                if asks && !self.is_refused(number) {
                    refused.insert(number, errors[&cell.slot].clone());
                    break;
                }
            }
            true
        })?;
        self.refused.append(&mut refused);
        batch.rows.visit(all, |number, row| {
            if self.is_refused(number) {
                return true;
            }
            for cell in row.cells() {
                if let Some(column) = hinted.get_mut(&cell.slot) {
                    let had = self.column(batch, cell.slot);
                    let hint = cell.flags.hint().and_then(|_| had.hint_of(number).cloned());
                    column.learn_again(cell.flags, hint, number);
                }
            }
            true
        })?;
        self.changed.extend(hinted);
        Ok(())
    }

    /// Refuses the rows with a value that has no place, where there can be no `_unmapped_data`.
    /// `true`: there are some.
    pub(super) fn refuse_unmapped(
        &mut self,
        batch: &Batch,
        mut has_place: impl FnMut(usize, &Cell<'_>) -> bool,
    ) -> io::Result<bool> {
        let Some(error) = &self.no_unmapped else {
            return Ok(false);
        };
        let mut found = BTreeMap::new();
        batch.rows.visit(0..batch.row_count(), |number, row| {
            let is_placed = row.cells().all(|cell| has_place(number, &cell));
            if !is_placed && !self.refused.contains_key(&number) {
                found.insert(number, error.clone());
            }
            true
        })?;
        let has_any = !found.is_empty();
        self.refused.append(&mut found);
        Ok(has_any)
    }
}
