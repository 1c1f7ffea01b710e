//! A parsed row, kept as small as the text it came from.
//!
//! A row is a run of cells; a cell is a column's slot, the kind of its value, and the value's text
//! in its own form, without JSON escapes.

use crate::rows::data_type::DataType;

/// Objects and arrays nested deeper than this are refused. The scanner recurses and takes about 16
/// KiB of stack for each level, so an unbounded depth would end the process; and nested text is
/// scanned once per level.
pub(super) const MAX_DEPTH: usize = 64;

/// Why an event cannot become a row. Never holds a value of the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The text is not one JSON object.
    #[error("Error parsing JSON: {0}")]
    Json(&'static str),
    /// The text is nested deeper than 64 levels.
    #[error("Error parsing JSON: nested deeper than {} levels", MAX_DEPTH)]
    TooDeep,
    /// A null, with `omitNils` off.
    #[error("Error getting type of field [{field}] value <nil>: null has no type")]
    Null {
        /// The joined path of the field, or its beginning.
        field: String,
    },
    /// A type hint that is no text.
    #[error("incorrect type of value for '__sql_type_' hint: {kind}")]
    Hint {
        /// The kind of JSON value that it is.
        kind: &'static str,
    },
    /// The hint is text, but not the name of a type; what it says instead is not repeated.
    #[error("the type hint of field [{field}] is not an SQL type")]
    SqlType {
        /// The name of the field that the hint is for, in its object.
        field: String,
    },
    /// Nothing is left of it once nulls and empty objects are gone.
    #[error("the event has no column; an event needs at least one value")]
    NoColumn,
    /// A batch with more names than any table could take.
    #[error("the batch has more than {} columns", u32::MAX)]
    TooManyColumns,
}

impl RowError {
    /// Whether the text was no JSON object at all, rather than an object that cannot be taken.
    pub fn is_parse_error(&self) -> bool {
        matches!(self, RowError::Json(_) | RowError::TooDeep)
    }

    pub(super) fn json(reason: &'static str) -> RowError {
        RowError::Json(reason)
    }
}

/// What a value was in its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Bool = 0,
    Int = 1,
    Float = 2,
    /// A string that is a timestamp, in its canonical text.
    Timestamp = 3,
    String = 4,
    /// An array or an object that was not flattened, as its compact JSON text.
    Json = 5,
    /// A number that neither an integer nor a float of 64 bits stands for, as its literal. It is
    /// text, but for types that hold it.
    Number = 6,
}

impl Kind {
    pub(crate) fn data_type(self) -> DataType {
        match self {
            Kind::Bool => DataType::Bool,
            Kind::Int => DataType::Int64,
            Kind::Float => DataType::Float64,
            Kind::Timestamp => DataType::Timestamp,
            Kind::String | Kind::Json | Kind::Number => DataType::String,
        }
    }

    /// This kind's bit in a set of kinds.
    pub(crate) fn bit(self) -> u8 {
        1 << self as u8
    }

    fn from_bits(bits: u8) -> Kind {
        match bits {
            0 => Kind::Bool,
            1 => Kind::Int,
            2 => Kind::Float,
            3 => Kind::Timestamp,
            4 => Kind::String,
            5 => Kind::Json,
            _ => Kind::Number,
        }
    }
}

/// A value's kind and what is special about it, in one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    const DATE: u8 = 1 << 3;
    const ESCAPED: u8 = 1 << 4;
    /// Where the hint's type begins: three bits, 0 for none.
    const HINT: u32 = 5;

    pub(crate) fn new(kind: Kind) -> Flags {
        Flags(kind as u8)
    }

    pub(crate) fn kind(self) -> Kind {
        Kind::from_bits(self.0 & 7)
    }

    /// The type that the event itself, or `columnTypes`, gave the value.
    pub(crate) fn hint(self) -> Option<DataType> {
        DataType::from_number((self.0 >> Flags::HINT).checked_sub(1)?)
    }

    pub(super) fn set_hint(&mut self, data_type: DataType) {
        self.0 |= (data_type as u8 + 1) << Flags::HINT;
    }

    /// A date in a column that this batch has taken for timestamps.
    pub(crate) fn is_date(self) -> bool {
        self.0 & Flags::DATE != 0
    }

    pub(super) fn set_date(&mut self) {
        self.0 |= Flags::DATE;
    }

    /// The text may hold characters that COPY wants escaped: it was escaped in JSON.
    pub(crate) fn may_need_escape(self) -> bool {
        self.0 & Flags::ESCAPED != 0
    }

    pub(super) fn set_escaped(&mut self) {
        self.0 |= Flags::ESCAPED;
    }
}

/// One value of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub(crate) slot: u32,
    pub(crate) flags: Flags,
    /// UTF-8.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Cell<'a> {
    pub(crate) fn text(&self) -> &'a str {
        // it was a `str` when it was pushed; the check is a few nanoseconds and keeps this file
        // safe
        std::str::from_utf8(self.bytes).unwrap_or_default()
    }
}

/// One stored row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a>(pub(crate) &'a [u8]);

impl<'a> Row<'a> {
    /// At most so many bytes are taken by a row of these cells.
    pub(super) fn max_size<'c>(cells: impl Iterator<Item = Cell<'c>>) -> usize {
        // at most five bytes for each of the two varints, and the flags
        cells.map(|cell| 11 + cell.bytes.len()).sum()
    }

    /// Appends a row of these cells.
    pub(super) fn write<'c>(cells: impl Iterator<Item = Cell<'c>>, out: &mut Vec<u8>) {
        for cell in cells {
            write_varint(out, cell.slot);
            out.push(cell.flags.0);
            write_varint(out, u32::try_from(cell.bytes.len()).unwrap_or(u32::MAX));
            out.extend_from_slice(cell.bytes);
        }
    }

    pub(crate) fn cells(self) -> impl Iterator<Item = Cell<'a>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let slot = read_varint(&mut rest)?;
            let (flags, after) = rest.split_first()?;
            rest = after;
            let length = read_varint(&mut rest)? as usize;
            let (bytes, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(Cell { slot, flags: Flags(*flags), bytes })
        })
    }

    pub(crate) fn cell(self, slot: u32) -> Option<Cell<'a>> {
        self.cells().find(|cell| cell.slot == slot)
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        #[allow(clippy::cast_possible_truncation)] // the low seven bits are meant
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[allow(clippy::cast_possible_truncation)] // less than 0x80
    out.push(value as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u32> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, after) = bytes.split_first()?;
        *bytes = after;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
    }
}
