//! Parsed rows, kept as small as the text they came from.
//!
//! A row is a run of cells; a cell is a column's slot, the kind of its value, and the value's text in its own
//! form, without JSON escapes. Rows lie one after another in chunks, so a batch costs a handful of
//! allocations, and chunks can be freed as soon as they are sent.

use crate::data_type::DataType;

/// Why an event cannot become a row. Never holds a value of the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("Error parsing JSON: {0}")]
    Json(&'static str),
    #[error("Error parsing JSON: nested deeper than {} levels", crate::json::MAX_DEPTH)]
    TooDeep,
    /// `omitNils` is off.
    #[error("Error getting type of field [{field}] value <nil>: null has no type")]
    Null { field: String },
    #[error("incorrect type of value for '__sql_type_' hint: {kind}")]
    Hint { kind: &'static str },
    /// The hint is text, but not the name of a type; what it says instead is not repeated.
    #[error("the type hint of field [{field}] is not an SQL type")]
    SqlType { field: String },
    /// A batch with more names than any table could take.
    #[error("the batch has more than {} columns", u32::MAX)]
    TooManyColumns,
}

impl RowError {
    /// Whether the text was no JSON object at all, rather than an object that cannot be taken.
    pub fn is_parse_error(&self) -> bool {
        matches!(self, RowError::Json(_) | RowError::TooDeep)
    }

    pub(crate) fn json(reason: &'static str) -> RowError {
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
}

impl Kind {
    pub(crate) fn data_type(self) -> DataType {
        match self {
            Kind::Bool => DataType::Bool,
            Kind::Int => DataType::Int64,
            Kind::Float => DataType::Float64,
            Kind::Timestamp => DataType::Timestamp,
            Kind::String | Kind::Json => DataType::String,
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
            _ => Kind::Json,
        }
    }
}

/// A value's kind and what is special about it, in one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    const HINTED: u8 = 1 << 3;
    const DATE: u8 = 1 << 4;
    const ESCAPED: u8 = 1 << 5;

    pub(crate) fn new(kind: Kind) -> Flags {
        Flags(kind as u8)
    }

    pub(crate) fn kind(self) -> Kind {
        Kind::from_bits(self.0 & 7)
    }

    /// The event itself named the column's type: the value is sent as it is.
    pub(crate) fn is_hinted(self) -> bool {
        self.0 & Flags::HINTED != 0
    }

    pub(crate) fn set_hinted(&mut self, hinted: bool) {
        self.0 = if hinted { self.0 | Flags::HINTED } else { self.0 & !Flags::HINTED };
    }

    /// A date in a column that this batch has taken for timestamps.
    pub(crate) fn is_date(self) -> bool {
        self.0 & Flags::DATE != 0
    }

    pub(crate) fn set_date(&mut self) {
        self.0 |= Flags::DATE;
    }

    /// The text may hold characters that COPY wants escaped: it was escaped in JSON.
    pub(crate) fn may_need_escape(self) -> bool {
        self.0 & Flags::ESCAPED != 0
    }

    pub(crate) fn set_escaped(&mut self) {
        self.0 |= Flags::ESCAPED;
    }
}

/// One value of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub(crate) slot: u32,
    pub(crate) flags: Flags,
    pub(crate) text: &'a str,
}

/// Bytes of one chunk; a larger row gets a chunk of its own.
const CHUNK: usize = 1 << 20;

/// Rows in chunks.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    chunks: Vec<Chunk>,
    row_count: usize,
    held: usize,
}

#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    row_count: usize,
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.row_count
    }

    /// Bytes of heap.
    pub(crate) fn byte_size(&self) -> usize {
        self.held
    }

    pub(crate) fn push<'a>(&mut self, cells: impl Iterator<Item = Cell<'a>> + Clone) {
        // at most five bytes for each of the two varints, and the flags
        let size: usize = 4 + cells.clone().map(|cell| 11 + cell.text.len()).sum::<usize>();
        let fits = |chunk: &Chunk| chunk.bytes.capacity() - chunk.bytes.len() >= size;
        if !self.chunks.last().is_some_and(fits) {
            let capacity = CHUNK.max(size);
            self.chunks.push(Chunk { bytes: Vec::with_capacity(capacity), row_count: 0 });
            self.held += capacity;
        }
        let Some(chunk) = self.chunks.last_mut() else {
            return;
        };
        let start = chunk.bytes.len();
        chunk.bytes.extend_from_slice(&[0; 4]);
        for cell in cells {
            write_varint(&mut chunk.bytes, cell.slot);
            chunk.bytes.push(cell.flags.0);
            write_varint(&mut chunk.bytes, u32::try_from(cell.text.len()).unwrap_or(u32::MAX));
            chunk.bytes.extend_from_slice(cell.text.as_bytes());
        }
        let length = u32::try_from(chunk.bytes.len() - start - 4).unwrap_or(u32::MAX);
        chunk.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        chunk.row_count += 1;
        self.row_count += 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.chunks.iter().flat_map(Chunk::rows)
    }

    /// The chunks, in order, to be freed one by one.
    pub(crate) fn into_chunks(self) -> Vec<Chunk> {
        self.chunks
    }
}

impl Chunk {
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let mut rest = self.bytes.as_slice();
        (0..self.row_count).map_while(move |_| {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*length) as usize;
            let (row, after) = after.split_at_checked(length)?;
            rest = after;
            Some(Row(row))
        })
    }
}

/// One stored row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a>(&'a [u8]);

impl<'a> Row<'a> {
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
            let (text, after) = rest.split_at_checked(length)?;
            rest = after;
            // it was a `str` when it was pushed; the check is a few nanoseconds and keeps this file safe
            let text = std::str::from_utf8(text).ok()?;
            Some(Cell { slot, flags: Flags(*flags), text })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were_pushed() {
        let mut rows = Rows::default();
        let long = "x".repeat(3 * CHUNK);
        for text in ["", "é", long.as_str(), "end"] {
            let mut flags = Flags::new(Kind::String);
            flags.set_hinted(true);
            let cells = [Cell { slot: 300, flags, text }, Cell { slot: 0, flags, text: "1" }];
            rows.push(cells.into_iter());
        }
        let texts: Vec<_> =
            rows.iter().map(|row| row.cell(300).map(|cell| cell.text.len())).collect();
        assert_eq!(texts, [Some(0), Some(2), Some(long.len()), Some(3)]);
        assert!(rows.iter().all(|row| row.cells().all(|cell| cell.flags.is_hinted())));
        assert_eq!(rows.iter().map(|row| row.cells().count()).sum::<usize>(), 8);
    }
}
