//! Fitting a batch to its table: which column each value goes to, and how.
//!
//! The batch is fitted to the table as it is when it is loaded. So a batch that was parsed before
//! another loader added a column finds that column, and converts to its type. What is decided here
//! is what event after event would have decided: a column counts from the row that brings it, the
//! column of unmapped values from the first row that needs it.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use super::{
    barred::Barred,
    catalog::{Filled, Table, TableColumn},
    ddl::NewColumn,
    fit_column::{Action, Conversion, FitColumn, ddl_type},
    quote_ident,
};
use crate::rows::{
    batch::Batch,
    columns::Column,
    convert::{self, TextStyle},
    data_type::DataType,
    row::{Cell, Kind},
    type_names::sql_type,
};

/// The column that takes what fits nowhere else.
pub(super) const UNMAPPED: &str = "_unmapped_data";
/// Names that every table has for itself, in lower case only.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];
/// PostgreSQL's limit of columns; dropped ones count (`MaxHeapAttributeNumber`).
const MAX_ATTRIBUTES: usize = 1600;

/// What a batch is fitted to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Against<'a> {
    /// `None`: a table that is to be made.
    pub(super) table: Option<&'a Table>,
    /// The table that rows end up in, also if they are not fitted to its columns.
    pub(super) target: Option<&'a Table>,
    /// Columns that were made for this batch: their type is the batch's own, so its values are not
    /// converted to it.
    pub(super) made: &'a HashSet<String>,
    /// Columns that cannot be made.
    pub(super) barred: &'a Barred,
    pub(super) free: Free,
    pub(super) style: TextStyle,
    /// Whether each row stands for itself: what it lacks is not NULL.
    pub(super) is_by_event: bool,
}

/// Which columns are made whatever `schemaFreeze` and `maxColumnsCount` say, and do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Free {
    None,
    /// Those of the first row.
    FirstRow,
    /// Those that the `schema` option declares.
    Declared,
}

/// How a batch fits its table.
#[derive(Debug)]
pub(super) struct Fit {
    /// Columns that the batch brings, in the order in which they are sent.
    pub(super) columns: Vec<FitColumn>,
    /// Columns that the table lacks.
    pub(super) missing: Vec<NewColumn>,
    /// By slot: index into `columns`; `None` where values go to the unmapped column.
    pub(super) column_of_slot: Vec<Option<u32>>,
    /// The column of unmapped values, if there are any.
    pub(super) unmapped: Option<u32>,
    /// Columns for which PostgreSQL has no room.
    pub(super) beyond_limit: usize,
    /// Some column takes the values of some rows and not those of others.
    pub(super) is_uneven: bool,
}

impl Fit {
    pub(super) fn new(batch: &Batch, against: Against<'_>) -> io::Result<Fit> {
        let present = by_name(against.table);
        let fitted = |slot: u32| {
            let column = against.barred.column(batch, slot);
            match present.get(&*column.name) {
                Some(present) if !against.made.contains(&present.name) => FitColumn::to_present(
                    column,
                    present.data_type,
                    &present.sql_type,
                    against.style,
                ),
                _ => FitColumn::to_new(column, against.style),
            }
        };
        let mut candidates: Vec<Option<FitColumn>> =
            (0..).take(batch.columns().len()).map(|slot| Some(fitted(slot))).collect();
        let misfits = Misfits::look(batch, &candidates, against.barred, against.is_by_event)?;
        let is_uneven = misfits.by_slot.iter().any(|count| (1..batch.row_count()).contains(count));
        let mut making = Making::new(batch, against, present, misfits);
        for slot in order(batch, against)? {
            if let Some(candidate) = candidates[slot as usize].take() {
                making.take(slot, candidate);
            }
        }
        let mut fit = making.finish();
        fit.is_uneven = is_uneven;
        if against.table.is_some_and(|table| !table.is_lockable) {
            // a column may get another type under us, and has to read what we send then, too
            fit.columns.iter_mut().for_each(|column| column.wire = None);
        }
        Ok(fit)
    }

    /// Appends the text that a value has in its column, equal numbers spelled equally, and answers
    /// what it is there. `None`: it is unmapped.
    pub(super) fn stored(&self, row: usize, cell: &Cell<'_>, out: &mut String) -> Option<Kind> {
        let column = self.column_of_slot[cell.slot as usize]?;
        let kind = cell.flags.kind();
        let Action::Convert(conversion) = self.columns[column as usize].action else {
            convert::key_text(kind, cell.text(), out);
            return Some(kind);
        };
        let mut text = String::new();
        if !conversion.apply(row, cell, &mut text) {
            return None;
        }
        Some(conversion.key_text(row, cell, &text, out))
    }

    /// Quoted names of the columns, in order.
    pub(super) fn quoted_columns(&self) -> Vec<String> {
        self.columns.iter().map(|column| quote_ident(&column.name)).collect()
    }

    /// Whether COPY straight into the table could refuse what an insert with casts takes.
    pub(super) fn needs_cast(&self) -> bool {
        self.columns.iter().any(|column| column.cutting_cast().is_some())
    }
}

/// A fit in the making: columns are taken in the order in which rows bring them.
struct Making<'a> {
    batch: &'a Batch,
    against: Against<'a>,
    /// The columns of the table that rows are fitted to.
    present: HashMap<&'a str, &'a TableColumn>,
    /// Columns whose values PostgreSQL computes.
    computed: HashSet<&'a str>,
    /// By slot: rows whose value the column does not take.
    misfits: Vec<usize>,
    fit: Fit,
    /// Columns that count, against `maxColumnsCount`.
    count: usize,
    /// The first row with an unmapped value, as far as is known.
    unmapped_since: Option<usize>,
}

impl<'a> Making<'a> {
    fn new(
        batch: &'a Batch,
        against: Against<'a>,
        present: HashMap<&'a str, &'a TableColumn>,
        misfits: Misfits,
    ) -> Making<'a> {
        let fit = Fit {
            columns: Vec::with_capacity(batch.columns().order().len()),
            missing: Vec::new(),
            column_of_slot: vec![None; batch.columns().len()],
            unmapped: None,
            beyond_limit: 0,
            is_uneven: false,
        };
        let columns = against.target.into_iter().flat_map(|table| &table.columns);
        let computed = columns.filter(|column| column.filled == Filled::Computed);
        Making {
            batch,
            against,
            count: present.len(),
            present,
            computed: computed.map(|column| column.name.as_str()).collect(),
            misfits: misfits.by_slot,
            fit,
            unmapped_since: misfits.first_row,
        }
    }

    fn take(&mut self, slot: u32, candidate: FitColumn) {
        let column = self.against.barred.column(self.batch, slot);
        if column.first_row.is_none() && !column.is_declared() {
            return; // only refused rows have it
        }
        if column.first_row > self.unmapped_since && self.unmapped_since.is_some() {
            self.add_unmapped();
        }
        if let Some(unmapped) = self.fit.unmapped.filter(|_| &*column.name == UNMAPPED) {
            // the event brings values of its own
            self.fit.columns[unmapped as usize] =
                FitColumn::to_present(column, DataType::Json, "jsonb", self.against.style);
            self.fit.column_of_slot[slot as usize] = Some(unmapped);
            return;
        }
        let is_present = self.present.contains_key(&*column.name);
        let is_computed = self.computed.contains(&*column.name);
        let is_barred =
            self.against.barred.is_unmapped(slot) || SYSTEM_COLUMNS.contains(&&*column.name);
        if is_computed || (!is_present && (is_barred || !self.may_be_made(column))) {
            if let Some(row) = column.first_row {
                self.unmapped_since = Some(self.unmapped_since.map_or(row, |since| since.min(row)));
            }
            return;
        }
        if !is_present {
            let ddl_type = ddl_type(column).to_owned();
            self.fit.missing.push(NewColumn { name: column.name.to_string(), ddl_type });
        }
        if self.against.is_by_event && self.misfits[slot as usize] == self.batch.row_count() {
            return; // no row names it: it keeps what it has, or gets its default
        }
        self.fit.column_of_slot[slot as usize] = u32::try_from(self.fit.columns.len()).ok();
        self.fit.columns.push(candidate);
    }

    /// Whether the table may get this column; counts it.
    fn may_be_made(&mut self, column: &Column) -> bool {
        let has_unmapped =
            self.fit.unmapped.is_some() || self.table_has(UNMAPPED) || &*column.name == UNMAPPED;
        let dropped_too = self.against.table.map_or(0, |table| table.attribute_count);
        let room_wanted = self.fit.missing.len() + 1 + usize::from(!has_unmapped);
        if dropped_too + room_wanted > MAX_ATTRIBUTES {
            self.fit.beyond_limit += 1;
            return false;
        }
        let is_free = match self.against.free {
            Free::None => false,
            Free::FirstRow => column.first_row == Some(0),
            Free::Declared => column.is_declared(),
        };
        if is_free {
            return true;
        }
        let options = &self.batch.options;
        let limit = usize::try_from(options.max_columns_count).unwrap_or(0);
        let is_allowed = !options.schema_freeze && self.count < limit;
        self.count += usize::from(is_allowed);
        is_allowed
    }

    fn table_has(&self, name: &str) -> bool {
        self.present.contains_key(name)
    }

    fn add_unmapped(&mut self) {
        if self.fit.unmapped.is_some() || !self.against.barred.may_have_unmapped() {
            return;
        }
        let index = self.fit.columns.iter().position(|column| column.name == UNMAPPED);
        let index = index.unwrap_or_else(|| {
            if !self.table_has(UNMAPPED) {
                self.count += 1;
                self.fit.missing.push(NewColumn {
                    name: UNMAPPED.to_owned(),
                    ddl_type: sql_type(DataType::Json).to_owned(),
                });
            }
            let name = UNMAPPED.to_owned();
            self.fit.columns.push(FitColumn { name, action: Action::Copy, wire: None, cast: None });
            self.fit.columns.len() - 1
        });
        self.fit.unmapped = u32::try_from(index).ok();
    }

    fn finish(mut self) -> Fit {
        if self.unmapped_since.is_some() {
            self.add_unmapped();
        }
        self.fit
    }
}

/// Slots in the order in which their columns are made.
fn order(batch: &Batch, against: Against<'_>) -> io::Result<Vec<u32>> {
    if against.free != Free::FirstRow || batch.options.schema.is_empty() {
        return Ok(batch.columns().order().to_vec());
    }
    // the first event makes the table; what is declared besides comes after its columns
    let mut slots = Vec::new();
    batch.rows.visit(0..1, |_, row| {
        slots.extend(row.cells().map(|cell| cell.slot));
        true
    })?;
    let rest: Vec<_> =
        batch.columns().order().iter().filter(|slot| !slots.contains(slot)).copied().collect();
    slots.extend(rest);
    Ok(slots)
}

/// Values that their columns do not take.
struct Misfits {
    /// The first row that has one.
    first_row: Option<usize>,
    /// By slot: how many rows have one; 0 for all where only the first row was asked for.
    by_slot: Vec<usize>,
}

impl Misfits {
    fn look(
        batch: &Batch,
        columns: &[Option<FitColumn>],
        barred: &Barred,
        counts_all: bool,
    ) -> io::Result<Misfits> {
        let conversions: Vec<Option<Conversion>> = columns
            .iter()
            .map(|column| match column.as_ref()?.action {
                Action::Convert(conversion) => Some(conversion),
                Action::Copy | Action::Timestamp => None,
            })
            .collect();
        let mut misfits = Misfits { first_row: None, by_slot: vec![0; columns.len()] };
        if conversions.iter().all(Option::is_none) {
            return Ok(misfits);
        }
        let mut scratch = String::new();
        batch.rows.visit(0..batch.row_count(), |number, row| {
            if barred.is_refused(number) {
                return true;
            }
            for cell in row.cells() {
                scratch.clear();
                let conversion = conversions[cell.slot as usize];
                if conversion.is_none_or(|conversion| conversion.apply(number, &cell, &mut scratch))
                {
                    continue;
                }
                misfits.first_row.get_or_insert(number);
                if !counts_all {
                    return false;
                }
                misfits.by_slot[cell.slot as usize] += 1;
            }
            true
        })?;
        Ok(misfits)
    }
}

/// The table's columns by their names.
fn by_name(table: Option<&Table>) -> HashMap<&str, &TableColumn> {
    let columns = table.into_iter().flat_map(|table| &table.columns);
    columns.map(|column| (column.name.as_str(), column)).collect()
}
