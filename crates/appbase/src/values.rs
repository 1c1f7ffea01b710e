//! How the text of a variable becomes a value: as leniently as the original reads it.
//!
//! Invariant: reasons never quote the text: it may be a secret that ended up in the wrong variable.

use std::{convert::Infallible, str::FromStr, time::Duration};

/// Why a text is not a value of its type; says what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub &'static str);

/// An integer: decimal, or with a base prefix (`0x`, `0o`, `0b`; a leading `0` is octal). Empty is
/// 0. Fails for other texts, and for numbers that `T` does not hold.
pub fn integer<T: TryFrom<i64>>(text: &str) -> Result<T, ValueError> {
    T::try_from(parse_integer(text)?).map_err(|_| ValueError("out of range"))
}

/// A decimal number. Empty is 0. Fails for other texts.
pub fn float(text: &str) -> Result<f64, ValueError> {
    if text.is_empty() {
        return Ok(0.0);
    }
    text.parse().map_err(|_| ValueError("not a number"))
}

/// One of the words that stand for a bool. Empty is false. Fails for other texts.
pub fn boolean(text: &str) -> Result<bool, ValueError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(ValueError("neither true nor false")),
    }
}

/// Whole milliseconds, as [`integer`] reads them. Fails for negative ones.
pub fn millis(text: &str) -> Result<Duration, ValueError> {
    not_negative(text).map(Duration::from_millis)
}

/// Whole seconds, as [`integer`] reads them. Fails for negative ones.
pub fn seconds(text: &str) -> Result<Duration, ValueError> {
    not_negative(text).map(Duration::from_secs)
}

/// Whole hours, as [`integer`] reads them. Fails for negative ones.
pub fn hours(text: &str) -> Result<Duration, ValueError> {
    let hours = not_negative(text)?;
    hours.checked_mul(3600).map(Duration::from_secs).ok_or(ValueError("out of range"))
}

/// Items separated by commas; spaces belong to the items. An empty text is an empty list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

impl FromStr for List {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<List, Infallible> {
        if text.is_empty() {
            return Ok(List::default());
        }
        Ok(List(text.split(',').map(str::to_owned).collect()))
    }
}

fn not_negative(text: &str) -> Result<u64, ValueError> {
    u64::try_from(parse_integer(text)?).map_err(|_| ValueError("negative"))
}

fn parse_integer(text: &str) -> Result<i64, ValueError> {
    let error = ValueError("not an integer");
    if text.is_empty() {
        return Ok(0);
    }
    let (sign, digits) = match text.as_bytes() {
        [b'-', ..] => (-1, &text[1..]),
        [b'+', ..] => (1, &text[1..]),
        _ => (1, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (&lower[..], 10),
    };
    if digits.starts_with(['-', '+']) {
        return Err(error);
    }
    // wide, so that the smallest integer has a positive form
    let value = i128::from_str_radix(digits, radix).map_err(|_| error)? * sign;
    i64::try_from(value).map_err(|_| ValueError("out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_base_prefixes_and_empty_is_zero() {
        let cases = [
            ("", 0),
            ("0", 0),
            ("300", 300),
            ("-5", -5),
            ("+5", 5),
            ("0x1F", 31),
            ("010", 8),
            ("0b101", 5),
            ("-9223372036854775808", i64::MIN),
        ];
        for (text, value) in cases {
            assert_eq!(integer::<i64>(text), Ok(value), "{text}");
        }
        for text in ["x", "1.5", "08", "0x", "--1", "0x-1", " 1", "1 ", "9223372036854775808"] {
            assert!(integer::<i64>(text).is_err(), "{text}");
        }
        assert_eq!(integer::<u16>("70000"), Err(ValueError("out of range")));
    }

    #[test]
    fn booleans_are_the_words_of_the_original() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["", "0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        for text in ["yes", "on", "tRUE", " true"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_know_their_unit_and_refuse_what_is_negative() {
        assert_eq!(millis("1500"), Ok(Duration::from_millis(1500)));
        assert_eq!(hours("48"), Ok(Duration::from_secs(172_800)));
        assert_eq!(seconds("-1"), Err(ValueError("negative")));
        assert_eq!(hours("9223372036854775807"), Err(ValueError("out of range")));
    }

    #[test]
    fn list_items_are_not_trimmed() {
        let items: List = "a, b,,c".parse().unwrap();
        assert_eq!(items.0, ["a", " b", "", "c"]);
        let empty: List = "".parse().unwrap();
        assert!(empty.0.is_empty());
    }
}
