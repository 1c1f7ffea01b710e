//! Rows as the text that the server reads: in the text format of COPY, or value by value.

use super::{
    fit::Fit,
    fit_column::Action,
    row_writer::{RowWriter, in_order},
};
use crate::rows::{
    columns::Column,
    convert,
    json::write_string,
    postgres_rules::TIMESTAMP_DIGITS,
    row::{Cell, Row},
    timestamp::cut_fraction,
};

/// What stands for NULL.
const NULL: &[u8] = b"\\N";
const NULL_FIELD: &[u8] = b"\\N\t";
/// Canonical timestamps up to this length have no more than that.
const SHORT_TIMESTAMP: usize = "2022-08-18T14:17:22.123456Z".len();

impl RowWriter for Encoder<'_> {
    fn format(&self) -> &'static str {
        "text"
    }

    fn begin(&self, _out: &mut Vec<u8>) {}

    fn row(&mut self, row_number: usize, row: Row<'_>, out: &mut Vec<u8>) {
        self.encode(row_number, row, out);
    }

    fn end(&self, _out: &mut Vec<u8>) {}
}

/// Turns the rows of one batch into COPY text.
pub(super) struct Encoder<'a> {
    fit: &'a Fit,
    /// The batch's, by slot.
    columns: &'a [Column],
    converted: String,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(fit: &'a Fit, columns: &'a [Column]) -> Encoder<'a> {
        Encoder { fit, columns, converted: String::new() }
    }

    /// The values of one row with their columns, as plain text. Columns without a value are left
    /// out.
    pub(super) fn texts(&mut self, row_number: usize, row: Row<'_>) -> Vec<(u32, String)> {
        let mut texts: Vec<(u32, String)> = Vec::new();
        let mut unmapped = String::new();
        for cell in row.cells() {
            let mut text = String::new();
            match self.fit.column_of_slot[cell.slot as usize] {
                Some(column) if self.push_plain(row_number, column, &cell, &mut text) => {
                    texts.push((column, text));
                }
                _ => self.add_unmapped(&cell, &mut unmapped),
            }
        }
        if let Some(column) = self.fit.unmapped.filter(|_| !unmapped.is_empty()) {
            unmapped.push('}');
            // it replaces what the event itself may have had there
            texts.retain(|(present, _)| *present != column);
            texts.push((column, unmapped));
        }
        texts
    }

    /// Appends one value. `false`: it does not fit the column.
    fn push_plain(
        &self,
        row_number: usize,
        column: u32,
        cell: &Cell<'_>,
        out: &mut String,
    ) -> bool {
        match self.fit.columns[column as usize].action {
            Action::Copy => out.push_str(cell.text()),
            Action::Timestamp => {
                let (first, last) = cut_fraction(cell.text(), TIMESTAMP_DIGITS);
                out.push_str(first);
                out.push_str(last);
            }
            Action::Convert(conversion) => return conversion.apply(row_number, cell, out),
        }
        true
    }

    /// Appends one row.
    pub(super) fn encode(&mut self, row_number: usize, row: Row<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        let fit = self.fit;
        let is_written = in_order(fit, row, NULL_FIELD, out, |column, cell, out| {
            let is_written = self.write(row_number, column, cell, out);
            out.push(b'\t');
            is_written
        });
        if !is_written {
            out.truncate(start);
            self.encode_any_order(row_number, row, out);
        }
        // every value is followed by a tab; the last one ends the row
        match out.last_mut() {
            Some(last) if !self.fit.columns.is_empty() => *last = b'\n',
            _ => out.push(b'\n'),
        }
    }

    fn encode_any_order(&mut self, row_number: usize, row: Row<'_>, out: &mut Vec<u8>) {
        let mut cells: Vec<Option<Cell<'_>>> = vec![None; self.fit.columns.len()];
        let mut unmapped = String::new();
        for cell in row.cells() {
            match self.fit.column_of_slot[cell.slot as usize] {
                Some(column) => cells[column as usize] = Some(cell),
                None => self.add_unmapped(&cell, &mut unmapped),
            }
        }
        let mut unmapped_at = None;
        for (column, cell) in (0..).zip(&cells) {
            let start = out.len();
            let is_written = match cell {
                Some(cell) => {
                    let is_written = self.write(row_number, column, cell, out);
                    if !is_written {
                        self.add_unmapped(cell, &mut unmapped);
                    }
                    is_written
                }
                None => false,
            };
            if !is_written {
                out.truncate(start);
                out.extend_from_slice(NULL);
            }
            if self.fit.unmapped == Some(column) {
                unmapped_at = Some(start..out.len());
            }
            out.push(b'\t');
        }
        // known only now; it replaces what the event itself may have had there
        if let Some(range) = unmapped_at
            && !unmapped.is_empty()
        {
            unmapped.push('}');
            let mut text = Vec::with_capacity(unmapped.len());
            push_escaped(unmapped.as_bytes(), &mut text);
            out.splice(range, text);
        }
    }

    fn add_unmapped(&self, cell: &Cell<'_>, unmapped: &mut String) {
        unmapped.push(if unmapped.is_empty() { '{' } else { ',' });
        write_string(&self.columns[cell.slot as usize].name, unmapped);
        unmapped.push(':');
        convert::as_json(cell.flags.kind(), cell.text(), unmapped);
    }

    /// Appends one value. `false`: it does not fit the column.
    fn write(
        &mut self,
        row_number: usize,
        column: u32,
        cell: &Cell<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        match self.fit.columns[column as usize].action {
            Action::Copy if cell.flags.may_need_escape() => push_escaped(cell.bytes, out),
            Action::Copy => out.extend_from_slice(cell.bytes),
            Action::Timestamp if cell.bytes.len() <= SHORT_TIMESTAMP => {
                out.extend_from_slice(cell.bytes);
            }
            Action::Timestamp => {
                let (first, last) = cut_fraction(cell.text(), TIMESTAMP_DIGITS);
                out.extend_from_slice(first.as_bytes());
                out.extend_from_slice(last.as_bytes());
            }
            Action::Convert(conversion) => {
                self.converted.clear();
                if !conversion.apply(row_number, cell, &mut self.converted) {
                    return false;
                }
                push_escaped(self.converted.as_bytes(), out);
            }
        }
        true
    }
}

/// Appends text with what COPY reads specially escaped. NUL, which no text can hold, is left out.
fn push_escaped(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        match *byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0 => {}
            other => out.push(other),
        }
    }
}
