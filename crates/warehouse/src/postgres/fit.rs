//! Fitting a batch to its table: which column each value goes to, and how.
//!
//! The batch is fitted to the table as it is when it is loaded. So a batch that was parsed before another
//! loader added a column finds that column, and converts to its type.

use std::collections::HashSet;

use super::{
    ddl::NewColumn,
    table::{Table, TableName},
    types,
};
use crate::{
    batch::{Batch, Column, Given},
    convert,
    data_type::DataType,
    row::{Cell, Kind},
};

/// The column that takes what fits nowhere else.
const UNMAPPED: &str = "_unmapped_data";
/// PostgreSQL's limit of 1600 columns, less the one for unmapped values.
const MAX_COLUMNS: usize = 1599;

/// How a batch fits its table.
#[derive(Debug)]
pub(crate) struct Fit {
    /// Columns that the batch brings, in the order in which they are sent.
    pub(crate) columns: Vec<FitColumn>,
    /// Columns that the table lacks.
    pub(crate) missing: Vec<NewColumn>,
    /// By slot: index into `columns`; `None` where values go to the unmapped column.
    pub(crate) column_of_slot: Vec<Option<u32>>,
    /// The column of unmapped values, if there are any.
    pub(crate) unmapped: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct FitColumn {
    pub(crate) name: String,
    pub(crate) action: Action,
    /// The type that values must be cast to because COPY would refuse what the cast cuts.
    pub(crate) cutting_cast: Option<String>,
}

/// What happens to the values of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Their texts are the column's: they are copied.
    Copy,
    /// Canonical timestamps: copied once their fraction is short enough.
    Timestamp,
    /// Each value is looked at.
    Convert(Conversion),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conversion {
    /// The column's type.
    to: DataType,
    /// The type that a value has whose event named it.
    hinted_as: DataType,
    /// Values of rows before this one go as they are.
    as_it_is_before: usize,
    is_new: bool,
}

impl Conversion {
    /// Whether the value is the column's as it is.
    fn goes_as_it_is(self, row: usize, cell: &Cell<'_>) -> bool {
        let is_hinted = cell.flags.is_hinted();
        let own_type = if is_hinted { self.hinted_as } else { cell.flags.kind().data_type() };
        own_type == self.to || row < self.as_it_is_before || (self.is_new && is_hinted)
    }

    /// Appends the text of a value. `false`: it is unmapped.
    pub(crate) fn apply(self, row: usize, cell: &Cell<'_>, out: &mut String) -> bool {
        let kind = cell.flags.kind();
        if self.goes_as_it_is(row, cell) {
            let is_date = cell.flags.is_date() && self.is_new;
            if is_date && self.to == DataType::String {
                // the batch had taken the date for a timestamp before the column became text
                convert::convert(Kind::String, cell.text, DataType::Timestamp, out);
            } else {
                convert::as_it_is(kind, cell.text, self.to, out);
            }
            return true;
        }
        convert::convert(kind, cell.text, self.to, out)
    }
}

impl Fit {
    /// Fits `batch` to `table` (`None`: it is to be made). `made` are columns that were made for this batch: their
    /// type is the batch's own, so its values are not converted to it.
    pub(crate) fn new(batch: &Batch, table: Option<&Table>, made: &HashSet<String>) -> Fit {
        let options = &batch.options;
        let limit = usize::try_from(options.max_columns_count).unwrap_or(0).min(MAX_COLUMNS);
        let mut count = table.map_or(0, |table| table.columns.len());
        let mut fit = Fit {
            columns: Vec::with_capacity(batch.order.len()),
            missing: Vec::new(),
            column_of_slot: vec![None; batch.columns.len()],
            unmapped: None,
        };
        let mut has_unmapped = false;
        for slot in &batch.order {
            let column = &batch.columns[*slot as usize];
            let present = table.and_then(|table| table.column(&column.name));
            if present.is_none() && (options.schema_freeze || count >= limit) {
                has_unmapped |= column.kinds != 0;
                continue;
            }
            let fitted = match present {
                Some(present) if made.contains(&present.name) => FitColumn::to_new(column),
                Some(present) => FitColumn::to_present(column, present.data_type),
                None => {
                    count += 1;
                    fit.missing.push(NewColumn {
                        name: column.name.to_string(),
                        ddl_type: ddl_type(column).to_owned(),
                    });
                    FitColumn::to_new(column)
                }
            };
            fit.column_of_slot[*slot as usize] = u32::try_from(fit.columns.len()).ok();
            fit.columns.push(fitted);
        }
        if has_unmapped || fit.some_value_does_not_fit(batch) {
            fit.add_unmapped(table);
        }
        fit
    }

    /// Whether the table's column list covers all values, `None` slots being unmapped.
    fn some_value_does_not_fit(&self, batch: &Batch) -> bool {
        let conversions: Vec<Option<Conversion>> = self
            .column_of_slot
            .iter()
            .map(|column| match self.columns[(*column)? as usize].action {
                Action::Convert(conversion) => Some(conversion),
                Action::Copy | Action::Timestamp => None,
            })
            .collect();
        if conversions.iter().all(Option::is_none) {
            return false;
        }
        let mut scratch = String::new();
        batch.rows.iter().enumerate().any(|(row, cells)| {
            cells.cells().any(|cell| {
                scratch.clear();
                conversions[cell.slot as usize]
                    .is_some_and(|conversion| !conversion.apply(row, &cell, &mut scratch))
            })
        })
    }

    fn add_unmapped(&mut self, table: Option<&Table>) {
        if let Some(present) = self.columns.iter().position(|column| column.name == UNMAPPED) {
            self.unmapped = u32::try_from(present).ok();
            return;
        }
        if table.and_then(|table| table.column(UNMAPPED)).is_none() {
            self.missing.push(NewColumn {
                name: UNMAPPED.to_owned(),
                ddl_type: types::sql_type(DataType::Json).to_owned(),
            });
        }
        self.unmapped = u32::try_from(self.columns.len()).ok();
        self.columns.push(FitColumn {
            name: UNMAPPED.to_owned(),
            action: Action::Copy,
            cutting_cast: None,
        });
    }

    /// Appends the text that a value has in its column, equal numbers spelled equally, and answers what it is there.
    /// `None`: it is unmapped.
    pub(crate) fn stored(&self, row: usize, cell: &Cell<'_>, out: &mut String) -> Option<Kind> {
        let column = self.column_of_slot[cell.slot as usize]?;
        let kind = cell.flags.kind();
        let Action::Convert(conversion) = self.columns[column as usize].action else {
            convert::key_text(kind, cell.text, out);
            return Some(kind);
        };
        let mut text = String::new();
        if !conversion.apply(row, cell, &mut text) {
            return None;
        }
        let stored_kind = match (conversion.goes_as_it_is(row, cell), conversion.to) {
            (true, DataType::Int64 | DataType::Float64) if kind == Kind::Bool => Kind::Int,
            (true, DataType::Float64) if kind == Kind::String => Kind::Float,
            (true, _) => kind,
            (false, DataType::Bool) => Kind::Bool,
            (false, DataType::Int64) => Kind::Int,
            (false, DataType::Float64) => Kind::Float,
            (false, DataType::Timestamp) => Kind::Timestamp,
            (false, DataType::String | DataType::Json | DataType::Unknown) => Kind::String,
        };
        convert::key_text(stored_kind, &text, out);
        Some(stored_kind)
    }

    /// Quoted names of the columns, in order.
    pub(crate) fn quoted_columns(&self) -> Vec<String> {
        self.columns.iter().map(|column| super::quote_ident(&column.name)).collect()
    }

    /// Whether COPY straight into the table could refuse what an insert with casts takes.
    pub(crate) fn needs_cast(&self) -> bool {
        self.columns.iter().any(|column| column.cutting_cast.is_some())
    }
}

impl FitColumn {
    fn to_present(column: &Column, to: DataType) -> FitColumn {
        let conversion = Conversion {
            to,
            hinted_as: given_type(column).unwrap_or(to),
            as_it_is_before: 0,
            is_new: false,
        };
        FitColumn {
            name: column.name.to_string(),
            action: quick_action(column, to, true).unwrap_or(Action::Convert(conversion)),
            cutting_cast: cutting_cast(column),
        }
    }

    fn to_new(column: &Column) -> FitColumn {
        let name = column.name.to_string();
        let Some(definition) = &column.definition else {
            let to = column.inferred.unwrap_or(DataType::String);
            let conversion =
                Conversion { to, hinted_as: to, as_it_is_before: usize::MAX, is_new: true };
            let action = quick_action(column, to, false).unwrap_or(Action::Convert(conversion));
            return FitColumn { name, action, cutting_cast: None };
        };
        let to = given_type(column).unwrap_or(DataType::Unknown);
        let as_it_is_before = definition.since_row;
        let conversion = Conversion { to, hinted_as: to, as_it_is_before, is_new: true };
        FitColumn {
            name,
            action: quick_action(column, to, true).unwrap_or(Action::Convert(conversion)),
            cutting_cast: cutting_cast(column),
        }
    }
}

/// The action that does without looking at each value, if the kinds of the column's values allow one.
fn quick_action(column: &Column, to: DataType, converts: bool) -> Option<Action> {
    let only = |kinds: &[Kind]| {
        let allowed = kinds.iter().fold(0, |set, kind| set | kind.bit());
        column.kinds & !allowed == 0
    };
    let is_hinted = matches!(&column.definition, Some(d) if matches!(d.given, Given::Sql(_)));
    if is_hinted {
        return None;
    }
    match to {
        DataType::Timestamp if only(&[Kind::Timestamp]) => Some(Action::Timestamp),
        DataType::Bool if only(&[Kind::Bool]) => Some(Action::Copy),
        DataType::Int64 if only(&[Kind::Int]) => Some(Action::Copy),
        DataType::Float64 if only(&[Kind::Int, Kind::Float]) => Some(Action::Copy),
        DataType::String if only(&[Kind::Bool, Kind::Int, Kind::String, Kind::Json]) => {
            Some(Action::Copy)
        }
        // a timestamp that was not converted keeps its canonical text
        DataType::String if !converts && only(&[Kind::Timestamp, Kind::Json]) => Some(Action::Copy),
        _ => None,
    }
}

fn given_type(column: &Column) -> Option<DataType> {
    column.definition.as_ref().map(|definition| match &definition.given {
        Given::Sql(sql_type) => types::data_type(&sql_type.cast),
        Given::Declared(data_type) => *data_type,
    })
}

fn ddl_type(column: &Column) -> &str {
    match &column.definition {
        Some(definition) => match &definition.given {
            Given::Sql(sql_type) => &sql_type.ddl,
            Given::Declared(data_type) => types::sql_type(*data_type),
        },
        None => types::sql_type(column.inferred.unwrap_or(DataType::String)),
    }
}

fn cutting_cast(column: &Column) -> Option<String> {
    match &column.definition.as_ref()?.given {
        Given::Sql(sql_type) if types::cast_cuts(&sql_type.cast) => Some(sql_type.cast.clone()),
        Given::Sql(_) | Given::Declared(_) => None,
    }
}

/// The name of the table that a batch goes to.
pub(crate) fn target(batch: &Batch, default_schema: &str) -> TableName {
    TableName {
        schema: batch.namespace().unwrap_or_else(|| default_schema.to_owned()),
        table: batch.table.clone(),
    }
}
