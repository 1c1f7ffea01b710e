//! How the values of one column of a batch become those of a table's column: copied, or converted
//! one by one.

use super::{
    number::NumberType,
    types::{self, Wire},
};
use crate::rows::{
    columns::{Column, Given},
    convert::{self, TextStyle},
    data_type::DataType,
    row::{Cell, Kind},
    type_names::sql_type,
};

/// A column that the batch brings.
#[derive(Debug)]
pub(super) struct FitColumn {
    pub(super) name: String,
    pub(super) action: Action,
    /// How its values go in binary format, if all of them can.
    pub(super) wire: Option<Wire>,
    /// The type that the batch gives the column, which values are cast to where that can be said.
    pub(super) cast: Option<String>,
}

/// What happens to the values of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Their texts are the column's: they are copied.
    Copy,
    /// Canonical timestamps: copied once their fraction is short enough.
    Timestamp,
    /// Each value is looked at.
    Convert(Conversion),
}

/// How each value of a column is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conversion {
    /// The column's type.
    to: DataType,
    /// The same, where it is one of numbers that none of ours stands for.
    number: Option<NumberType>,
    /// Values of rows before this one go as they are.
    as_it_is_before: usize,
    is_new: bool,
    style: TextStyle,
}

impl Conversion {
    /// Whether the value is the column's as it is.
    fn goes_as_it_is(self, row: usize, cell: &Cell<'_>) -> bool {
        own_type(cell) == self.to || row < self.as_it_is_before
    }

    /// Appends the text of a value. `false`: it is unmapped.
    pub(super) fn apply(self, row: usize, cell: &Cell<'_>, out: &mut String) -> bool {
        let kind = cell.flags.kind();
        let is_text = matches!(kind, Kind::String | Kind::Json);
        let as_it_is = self.goes_as_it_is(row, cell);
        if let Some(number) = self.number.filter(|_| !(as_it_is && is_text)) {
            return match own_type(cell) {
                DataType::Json if is_text => number.write_json(cell.text(), out),
                _ => number.write(kind, cell.text(), out),
            };
        }
        if as_it_is {
            if cell.flags.is_date() && self.is_new && self.to == DataType::String {
                // the batch had taken the date for a timestamp before the column became text
                convert::convert(Kind::String, cell.text(), DataType::Timestamp, self.style, out);
            } else {
                convert::as_it_is(kind, cell.text(), self.to, out);
            }
            return true;
        }
        match (own_type(cell), self.to) {
            // the text of what the event calls JSON, and a number that is text only for want of bits
            (DataType::Json, DataType::Unknown) if is_text => {
                convert::push_text(cell.text(), out);
                true
            }
            (DataType::String, DataType::Unknown) if kind == Kind::Number => {
                convert::convert(kind, cell.text(), DataType::Unknown, self.style, out)
            }
            (own, to) => {
                own.converts_to(to) && convert::convert(kind, cell.text(), to, self.style, out)
            }
        }
    }

    /// Appends the text of a value that is in the column, equal ones spelled equally, and answers
    /// what it is there.
    pub(super) fn key_text(
        self,
        row: usize,
        cell: &Cell<'_>,
        stored: &str,
        out: &mut String,
    ) -> Kind {
        if let Some(number) = self.number {
            number.key_text(stored, out);
            return Kind::Float;
        }
        let kind = self.stored_kind(row, cell);
        convert::key_text(kind, stored, out);
        kind
    }

    /// What a value is once it is in the column; it must not be unmapped.
    fn stored_kind(self, row: usize, cell: &Cell<'_>) -> Kind {
        let kind = cell.flags.kind();
        match (self.goes_as_it_is(row, cell), self.to) {
            (true, DataType::Int64 | DataType::Float64) if kind == Kind::Bool => Kind::Int,
            (true, DataType::Float64) if matches!(kind, Kind::String | Kind::Number) => Kind::Float,
            (true, _) => kind,
            (false, DataType::Bool) => Kind::Bool,
            (false, DataType::Int64) => Kind::Int,
            (false, DataType::Float64) => Kind::Float,
            (false, DataType::Timestamp) => Kind::Timestamp,
            (false, DataType::String | DataType::Json | DataType::Unknown) => Kind::String,
        }
    }
}

/// The type that the event gave the value, else the one of its kind.
fn own_type(cell: &Cell<'_>) -> DataType {
    cell.flags.hint().unwrap_or_else(|| cell.flags.kind().data_type())
}

impl FitColumn {
    /// A column that the table has, of type `to`, which the catalog calls `sql_type`.
    pub(super) fn to_present(
        column: &Column,
        to: DataType,
        sql_type: &str,
        style: TextStyle,
    ) -> FitColumn {
        let number = NumberType::of(sql_type).filter(|_| to == DataType::Unknown);
        let conversion = Conversion { to, number, as_it_is_before: 0, is_new: false, style };
        let quick = quick_action(column, to, true);
        FitColumn {
            name: column.name.to_string(),
            action: quick.unwrap_or(Action::Convert(conversion)),
            wire: Wire::of(sql_type).filter(|_| quick.is_some()),
            cast: None, // the column is what it is, whatever the event says
        }
    }

    /// A column that is made for the batch, or was: its type is the batch's own.
    pub(super) fn to_new(column: &Column, style: TextStyle) -> FitColumn {
        let (to, as_it_is_before) = match &column.definition {
            Some(definition) => (definition.given.data_type(), definition.since_row),
            None => (column.inferred.unwrap_or(DataType::String), usize::MAX),
        };
        let number = NumberType::of(ddl_type(column)).filter(|_| to == DataType::Unknown);
        let conversion = Conversion { to, number, as_it_is_before, is_new: true, style };
        let quick = quick_action(column, to, column.definition.is_some());
        FitColumn {
            name: column.name.to_string(),
            action: quick.unwrap_or(Action::Convert(conversion)),
            wire: Wire::of(ddl_type(column)).filter(|_| quick.is_some()),
            cast: given_cast(column),
        }
    }

    /// The type that values must be cast to because COPY would refuse what the cast cuts.
    pub(super) fn cutting_cast(&self) -> Option<&str> {
        self.cast.as_deref().filter(|cast| types::cast_cuts(cast))
    }
}

/// The action that does without looking at each value, if the kinds of the column's values allow
/// one.
fn quick_action(column: &Column, to: DataType, converts: bool) -> Option<Action> {
    let only = |kinds: &[Kind]| {
        let allowed = kinds.iter().fold(0, |set, kind| set | kind.bit());
        column.kinds & !allowed == 0
    };
    if column.has_hints {
        return None;
    }
    match to {
        DataType::Timestamp if only(&[Kind::Timestamp]) => Some(Action::Timestamp),
        DataType::Bool if only(&[Kind::Bool]) => Some(Action::Copy),
        DataType::Int64 if only(&[Kind::Int]) => Some(Action::Copy),
        DataType::Float64 if only(&[Kind::Int, Kind::Float]) => Some(Action::Copy),
        DataType::String
            if only(&[Kind::Bool, Kind::Int, Kind::String, Kind::Json, Kind::Number]) =>
        {
            Some(Action::Copy)
        }
        // a timestamp that was not converted keeps its canonical text
        DataType::String if !converts && only(&[Kind::Timestamp, Kind::Json]) => Some(Action::Copy),
        _ => None,
    }
}

/// The type that the column is made with.
pub(super) fn ddl_type(column: &Column) -> &str {
    match &column.definition {
        Some(definition) => match &definition.given {
            Given::Sql(sql_type) => &sql_type.ddl,
            Given::Declared(data_type) => sql_type(*data_type),
        },
        None => sql_type(column.inferred.unwrap_or(DataType::String)),
    }
}

/// The type that the batch gives the column for casts.
fn given_cast(column: &Column) -> Option<String> {
    match &column.definition.as_ref()?.given {
        Given::Sql(sql_type) => Some(sql_type.cast.clone()),
        Given::Declared(_) => None,
    }
}
