//! One pass over JSON text, strict, without a tree: what the quick walk reads by.
//!
//! Invariant: what it lets pass is JSON as RFC 8259 has it, but for escapes: the caller that takes
//! a string apart checks them (`unescape`), and [`Scan::skip`] those of the strings that it
//! steps over. It never reads beyond the text, and its depth is bounded by the caller's count.

use crate::rows::{
    escape::unescape,
    row::{MAX_DEPTH, RowError},
};

/// A place in a document.
#[derive(Debug, Clone)]
pub(super) struct Scan<'a> {
    text: &'a str,
    at: usize,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str) -> Scan<'a> {
        Scan { text, at: 0 }
    }

    /// The next byte that is no white space; `None` at the end.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Steps over `byte` if it is next.
    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    #[inline]
    pub(super) fn expect(&mut self, byte: u8, missing: &'static str) -> Result<(), RowError> {
        if self.take(byte) { Ok(()) } else { Err(RowError::json(missing)) }
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), RowError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(RowError::json("something follows the object")),
        }
    }

    /// The text between the quotes of the string that is next, and whether it holds escapes.
    #[inline]
    pub(super) fn string(&mut self) -> Result<(&'a str, bool), RowError> {
        self.expect(b'"', "a string is missing")?;
        let bytes = self.text.as_bytes();
        let (start, mut has_escapes) = (self.at, false);
        loop {
            self.at = next_special(bytes, self.at);
            match bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    // both ends are quotes or backslashes, which are no part of another character
                    let inner = self.text.get(start..self.at - 1).unwrap_or_default();
                    return Ok((inner, has_escapes));
                }
                Some(b'\\') => {
                    has_escapes = true;
                    self.at += 2;
                }
                Some(_) => return Err(RowError::json("control character in a string")),
                None => return Err(RowError::json("a string does not end")),
            }
        }
    }

    /// The literal of the number that is next, and whether it has a fraction or an exponent.
    #[inline]
    pub(super) fn number(&mut self) -> Result<(&'a str, bool), RowError> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let digits = |from: usize| {
            let after = bytes[from..].iter().position(|byte| !byte.is_ascii_digit());
            after.map_or(bytes.len(), |count| from + count)
        };
        let whole = start + usize::from(bytes.get(start) == Some(&b'-'));
        let mut end = digits(whole);
        let is_padded = bytes.get(whole) == Some(&b'0') && end > whole + 1;
        let mut is_sound = end > whole && !is_padded;
        let mut is_float = false;
        if bytes.get(end) == Some(&b'.') {
            let after = digits(end + 1);
            is_sound &= after > end + 1;
            (is_float, end) = (true, after);
        }
        if let Some(b'e' | b'E') = bytes.get(end) {
            let signed = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let after = digits(signed.min(bytes.len()));
            is_sound &= after > signed;
            (is_float, end) = (true, after);
        }
        if !is_sound {
            return Err(RowError::json("broken number"));
        }
        self.at = end;
        Ok((self.text.get(start..end).unwrap_or_default(), is_float))
    }

    /// Steps over `word`, which is the only thing that may be next.
    #[inline]
    pub(super) fn word(&mut self, word: &'static str) -> Result<&'a str, RowError> {
        let found = self.text.get(self.at..self.at + word.len());
        match found.filter(|found| *found == word) {
            Some(found) => {
                self.at += word.len();
                Ok(found)
            }
            None => Err(RowError::json("a value is missing")),
        }
    }

    /// Steps over the value that is next, whatever it is, and checks all of it. `depth` is that of
    /// what holds it.
    pub(super) fn skip(&mut self, depth: usize) -> Result<&'a str, RowError> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => self.skip_string()?,
            Some(open @ (b'{' | b'[')) => self.skip_nested(open, depth + 1)?,
            Some(b't') => drop(self.word("true")?),
            Some(b'f') => drop(self.word("false")?),
            Some(b'n') => drop(self.word("null")?),
            _ => drop(self.number()?),
        }
        Ok(self.text.get(start..self.at).unwrap_or_default())
    }

    fn skip_string(&mut self) -> Result<(), RowError> {
        let (inner, has_escapes) = self.string()?;
        if has_escapes { unescape(inner, &mut String::new()) } else { Ok(()) }
    }

    fn skip_nested(&mut self, open: u8, depth: usize) -> Result<(), RowError> {
        if depth >= MAX_DEPTH {
            return Err(RowError::TooDeep);
        }
        self.at += 1;
        let close = if open == b'{' { b'}' } else { b']' };
        if self.take(close) {
            return Ok(());
        }
        loop {
            if open == b'{' {
                self.peek();
                self.skip_string()?;
                self.expect(b':', "a colon is missing")?;
            }
            self.skip(depth)?;
            if self.take(close) {
                return Ok(());
            }
            self.expect(b',', "a comma is missing")?;
        }
    }
}

/// The place of the next quote, backslash or control character, from `at` on; the end if there is
/// none.
#[inline]
fn next_special(bytes: &[u8], mut at: usize) -> usize {
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*word);
        // the high bit of each byte that is one of the three; a byte above a hit may be marked too,
        // the first never is
        let quotes = word ^ (ONES * u64::from(b'"'));
        let backslashes = word ^ (ONES * u64::from(b'\\'));
        let is_special = (quotes.wrapping_sub(ONES) & !quotes)
            | (backslashes.wrapping_sub(ONES) & !backslashes)
            | (word.wrapping_sub(ONES * u64::from(b' ')) & !word);
        let hits = is_special & HIGH_BITS;
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let found = rest.iter().position(|byte| matches!(byte, b'"' | b'\\') || *byte < b' ');
    found.map_or(bytes.len(), |count| at + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_bytes_are_found_at_every_place() {
        for length in 0..40 {
            for at in 0..length {
                for special in [b'"', b'\\', 0, 0x1f] {
                    let mut bytes = "é!\u{7f}\u{20}x".repeat(9).into_bytes();
                    bytes.truncate(length);
                    assert_eq!(next_special(&bytes, 0), length);
                    bytes[at] = special;
                    assert_eq!(next_special(&bytes, 0), at, "{special} in {length}");
                    assert_eq!(next_special(&bytes, at), at);
                }
            }
        }
    }

    #[test]
    fn numbers_are_those_of_json() {
        for good in ["0", "-0", "10", "1.5", "-1.50e3", "1E+2", "1e-2"] {
            let mut scan = Scan::new(good);
            assert_eq!(scan.number().map(|(text, _)| text), Ok(good));
        }
        for bad in ["", "-", "01", "1.", ".5", "1e", "1e+", "+1", "--1", "x"] {
            assert!(Scan::new(bad).number().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_stepped_over_is_checked() {
        let good = r#" {"a" : [1, "x\n\u00e9", {} , []], "b":null}  rest"#;
        let mut scan = Scan::new(good);
        assert_eq!(scan.skip(0), Ok(good.trim_start().trim_end_matches("  rest")));
        let bad = [
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "[1 2]",
            "[\"\\x\"]",
            "[\"\\u12\"]",
            "[\"\t\"]",
            "[tru]",
            "[",
            "{\"a\":1",
            "\"x",
            "\"x\\",
        ];
        for bad in bad {
            assert!(Scan::new(bad).skip(0).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Scan::new(&nested(MAX_DEPTH - 1)).skip(0).is_ok());
        assert_eq!(Scan::new(&nested(MAX_DEPTH)).skip(0), Err(RowError::TooDeep));
        assert_eq!(Scan::new(&"[".repeat(500_000)).skip(0), Err(RowError::TooDeep));
    }
}
