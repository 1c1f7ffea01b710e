//! Rows in the binary format of COPY: the server reads it a fifth faster than text.
//!
//! Only for batches whose values all are what their columns take, so that no value can fail to be
//! written; the server's checks are the same. Everything else goes as text.

use super::{
    fit::Fit,
    row_writer::{RowWriter, in_order},
    types::Wire,
};
use crate::rows::row::{Cell, Row};

/// What a COPY in binary format begins with: signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// A row of -1 fields ends it.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
const NULL: [u8; 4] = (-1_i32).to_be_bytes();
const MICROSECONDS: i64 = 1_000_000;
/// From 1970-01-01 to 2000-01-01, which PostgreSQL counts from.
const EPOCH_DAYS: i64 = 10_957;

/// Writes the rows of one batch.
pub(super) struct BinaryWriter<'a> {
    fit: &'a Fit,
    wires: Vec<Wire>,
    field_count: i16,
}

impl<'a> BinaryWriter<'a> {
    /// `None`: some value may want to be text.
    pub(super) fn new(fit: &'a Fit) -> Option<BinaryWriter<'a>> {
        let wires: Option<Vec<_>> = fit.columns.iter().map(|column| column.wire).collect();
        let field_count = i16::try_from(fit.columns.len()).ok()?;
        let covers_all = fit.unmapped.is_none();
        Some(BinaryWriter { fit, wires: wires.filter(|_| covers_all)?, field_count })
    }

    fn write_any_order(&self, row: Row<'_>, out: &mut Vec<u8>) {
        let mut cells: Vec<Option<Cell<'_>>> = vec![None; self.wires.len()];
        for cell in row.cells() {
            if let Some(column) = self.fit.column_of_slot[cell.slot as usize] {
                cells[column as usize] = Some(cell);
            }
        }
        for (cell, wire) in cells.iter().zip(&self.wires) {
            match cell {
                Some(cell) => write(*wire, cell, out),
                None => out.extend_from_slice(&NULL),
            }
        }
    }
}

impl RowWriter for BinaryWriter<'_> {
    fn format(&self) -> &'static str {
        "binary"
    }

    fn begin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(HEADER);
    }

    fn row(&mut self, _row_number: usize, row: Row<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.field_count.to_be_bytes());
        let start = out.len();
        let is_written = in_order(self.fit, row, &NULL, out, |column, cell, out| {
            write(self.wires[column as usize], cell, out);
            true
        });
        if !is_written {
            out.truncate(start);
            self.write_any_order(row, out);
        }
    }

    fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&TRAILER);
    }
}

#[inline]
fn write(wire: Wire, cell: &Cell<'_>, out: &mut Vec<u8>) {
    let mut fixed = |bytes: &[u8]| {
        out.extend_from_slice(&u32::to_be_bytes(bytes.len() as u32)); // 1 or 8
        out.extend_from_slice(bytes);
    };
    match wire {
        Wire::Text if cell.flags.may_need_escape() => write_without_nul(cell.bytes, out),
        Wire::Text => write_text(cell.bytes, out),
        Wire::Int8 => fixed(&integer(cell.bytes).to_be_bytes()),
        Wire::Float8 => fixed(&cell.text().parse::<f64>().unwrap_or(f64::NAN).to_be_bytes()),
        Wire::Bool => fixed(&[u8::from(cell.bytes == b"true")]),
        Wire::Timestamptz => fixed(&microseconds(cell.bytes).to_be_bytes()),
    }
}

fn write_text(bytes: &[u8], out: &mut Vec<u8>) {
    // a text is at most as long as its event, which Kafka and HTTP bound far below 2 GB
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// NUL, which no text can hold, is left out.
fn write_without_nul(bytes: &[u8], out: &mut Vec<u8>) {
    match memchr::memchr(0, bytes) {
        None => write_text(bytes, out),
        Some(_) => {
            let kept: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
            write_text(&kept, out);
        }
    }
}

/// A decimal that fits, as its value had to when it was sorted as an integer.
fn integer(text: &[u8]) -> i64 {
    let (is_negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    // downwards, because the lowest number has no positive counterpart
    let value = digits
        .iter()
        .fold(0_i64, |value, digit| value.wrapping_mul(10).wrapping_sub(i64::from(digit - b'0')));
    if is_negative { value } else { value.wrapping_neg() }
}

/// Microseconds since 2000 of a canonical timestamp; what is finer is cut.
fn microseconds(canonical: &[u8]) -> i64 {
    let number = |from: usize, to: usize| {
        let digits = canonical.get(from..to).unwrap_or_default();
        digits.iter().fold(0_i64, |value, digit| value * 10 + i64::from(digit.wrapping_sub(b'0')))
    };
    let days = days_since_1970(number(0, 4), number(5, 7), number(8, 10)) - EPOCH_DAYS;
    let seconds = number(11, 13) * 3600 + number(14, 16) * 60 + number(17, 19);
    let digits = canonical.len().saturating_sub("2022-08-18T14:17:22.Z".len()).min(6);
    let fraction = (digits..6).fold(number(20, 20 + digits), |value, _| value * 10);
    (days * 86_400 + seconds) * MICROSECONDS + fraction
}

/// By the civil calendar; years begin in March, so that a leap day is the last of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_to_both_ends() {
        for value in [0, 7, -7, 1_234_567_890_123, i64::MAX, i64::MIN] {
            assert_eq!(integer(value.to_string().as_bytes()), value);
        }
    }

    #[test]
    fn timestamps_are_microseconds_since_2000() {
        let cases = [
            ("2000-01-01T00:00:00Z", 0),
            ("2000-01-01T00:00:01.5Z", 1_500_000),
            ("1999-12-31T23:59:59.999999Z", -1),
            ("2000-01-01T00:00:00.123456789Z", 123_456),
        ];
        for (text, expected) in cases {
            assert_eq!(microseconds(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn every_day_is_counted_as_the_calendar_library_counts_it() {
        let first = jiff::civil::date(1000, 1, 1);
        let epoch = jiff::civil::date(1970, 1, 1);
        let mut day = first;
        let mut count = days_since_1970(1000, 1, 1);
        let to_epoch = first.until(epoch).map(|span| i64::from(span.get_days())).unwrap();
        assert_eq!(count, -to_epoch);
        while day.year() < 3000 {
            let (year, month) = (i64::from(day.year()), i64::from(day.month()));
            assert_eq!(days_since_1970(year, month, i64::from(day.day())), count, "{day}");
            day = day.tomorrow().unwrap();
            count += 1;
        }
    }
}
