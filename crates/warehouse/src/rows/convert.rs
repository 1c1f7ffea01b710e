//! How a value becomes the text of a column.
//!
//! Two rules: a value that meets a column of its own type, or whose event named the type, goes *as
//! it is*; one that meets another type is *converted*, and where no conversion exists it is
//! unmapped.

use std::fmt::Write;

use crate::rows::{
    data_type::DataType,
    json::write_string,
    options::bool_word,
    postgres_rules::{INFINITY, NAN, NOT_IN_JSON, NOT_IN_TEXT, TIMESTAMP_DIGITS},
    row::Kind,
    timestamp::{canonical_date, cut_fraction},
};

/// Digits of a second in the text of a timestamp that is converted to a string.
const MILLISECONDS: usize = 3;
/// Integral floats from here on are written with an exponent.
const PLAIN_BELOW: f64 = 1e21;

/// How a timestamp is written that is converted to text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextStyle {
    /// Without trailing zeros of the fraction.
    Short,
    /// Always with milliseconds.
    Milliseconds,
}

/// Appends the value to `out` as a column of type `to` takes it, without asking whether it does.
pub(crate) fn as_it_is(kind: Kind, text: &str, to: DataType, out: &mut String) {
    match (to, kind) {
        (DataType::String, Kind::Float) => float_text(text, out),
        // the digits as they came, for the types that have more of them than a float
        (DataType::Float64 | DataType::Unknown | DataType::Json, Kind::Float) => out.push_str(text),
        (_, Kind::Float) => json_float(text, out),
        (DataType::String, Kind::String | Kind::Json) => push_text(text, out),
        (DataType::Json, Kind::String | Kind::Json) => push_json(text, out),
        (DataType::Int64 | DataType::Float64, Kind::Bool) => {
            out.push(if text == "true" { '1' } else { '0' });
        }
        (DataType::Timestamp, Kind::Timestamp) => push_cut(text, TIMESTAMP_DIGITS, out),
        (DataType::Timestamp, Kind::String) => {
            if !canonical_date(text, out) {
                out.push_str(text);
            }
        }
        _ => out.push_str(text),
    }
}

/// Appends the value converted to type `to`. `false`: there is no conversion; `out` is as it was.
pub(crate) fn convert(
    kind: Kind,
    text: &str,
    to: DataType,
    style: TextStyle,
    out: &mut String,
) -> bool {
    match to {
        DataType::String => match kind {
            Kind::Timestamp => push_timestamp_text(text, style, out),
            Kind::Float => push_float(text, out),
            _ => push_text(text, out),
        },
        // an SQL type that we do not know takes texts of numbers, but no strings
        DataType::Unknown => match kind {
            Kind::String | Kind::Json => return false,
            Kind::Timestamp => push_timestamp_text(text, style, out),
            Kind::Bool | Kind::Int | Kind::Float | Kind::Number => out.push_str(text),
        },
        DataType::Json => match kind {
            Kind::String | Kind::Json | Kind::Number => push_json(text, out),
            _ => return false,
        },
        DataType::Int64 => return to_int(kind, text, out),
        DataType::Float64 => return to_float(kind, text, out),
        DataType::Bool => return to_bool(kind, text, out),
        DataType::Timestamp => match kind {
            Kind::Timestamp => push_cut(text, TIMESTAMP_DIGITS, out),
            Kind::String => return canonical_date(text, out),
            _ => return false,
        },
    }
    true
}

/// Appends the value as JSON, as it was before any conversion.
pub(crate) fn as_json(kind: Kind, text: &str, out: &mut String) {
    match kind {
        Kind::Bool | Kind::Int => out.push_str(text),
        Kind::Float => push_float(text, out),
        // NUL cannot be stored in a JSON column, however it is spelled
        Kind::Timestamp | Kind::String | Kind::Json | Kind::Number => {
            match text.contains(NOT_IN_TEXT) {
                true => write_string(&text.replace(NOT_IN_TEXT, ""), out),
                false => write_string(text, out),
            }
        }
    }
}

/// The text of a value that keeps its kind, equal numbers spelled equally: `7` and `7.0` are one
/// key.
pub(crate) fn key_text(kind: Kind, text: &str, out: &mut String) {
    match kind {
        Kind::Float => push_float(text, out),
        Kind::Timestamp => push_cut(text, TIMESTAMP_DIGITS, out),
        Kind::Bool | Kind::Int | Kind::String | Kind::Json | Kind::Number => push_text(text, out),
    }
}

fn to_int(kind: Kind, text: &str, out: &mut String) -> bool {
    match kind {
        Kind::Bool => out.push(if text == "true" { '1' } else { '0' }),
        Kind::Int => out.push_str(text),
        Kind::Float => {
            let value: f64 = text.parse().unwrap_or(f64::NAN);
            // 2^63 as a float: the first that does not fit
            #[allow(clippy::cast_precision_loss)]
            if value.fract() != 0.0 || !(i64::MIN as f64..-(i64::MIN as f64)).contains(&value) {
                return false;
            }
            push(out, format_args!("{value:.0}"));
        }
        Kind::String | Kind::Number => match text.parse::<i64>() {
            Ok(value) => push(out, format_args!("{value}")),
            Err(_) => return false,
        },
        Kind::Timestamp | Kind::Json => return false,
    }
    true
}

fn to_float(kind: Kind, text: &str, out: &mut String) -> bool {
    match kind {
        Kind::Bool => out.push(if text == "true" { '1' } else { '0' }),
        Kind::Int | Kind::Float => out.push_str(text),
        Kind::String | Kind::Number => match parse_float(text) {
            Some(value) if value.is_nan() => out.push_str(NAN),
            // a number beyond a float's range is not the word for what is beyond all numbers
            Some(value) if value.is_infinite() && text.contains(|c: char| c.is_ascii_digit()) => {
                return false;
            }
            Some(value) if value.is_infinite() => {
                out.push_str(if value > 0.0 { "" } else { "-" });
                out.push_str(INFINITY);
            }
            Some(value) => push(out, format_args!("{value:e}")),
            None => return false,
        },
        Kind::Timestamp | Kind::Json => return false,
    }
    true
}

fn to_bool(kind: Kind, text: &str, out: &mut String) -> bool {
    let value = match kind {
        Kind::Bool => text == "true",
        Kind::Int | Kind::Float => match text.parse::<f64>() {
            Ok(1.0) => true,
            Ok(0.0) => false,
            _ => return false,
        },
        Kind::String | Kind::Number => match bool_word(text) {
            Some(value) => value,
            None => return false,
        },
        Kind::Timestamp | Kind::Json => return false,
    };
    out.push_str(if value { "true" } else { "false" });
    true
}

/// A decimal or hexadecimal float; `_` may stand between digits.
fn parse_float(text: &str) -> Option<f64> {
    let digits = without_separators(text)?;
    let (sign, magnitude) = match digits.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, digits.strip_prefix('+').unwrap_or(&digits)),
    };
    match magnitude.strip_prefix("0x").or_else(|| magnitude.strip_prefix("0X")) {
        Some(hexadecimal) => parse_hexadecimal(hexadecimal).map(|value| sign * value),
        None => digits.parse().ok(),
    }
}

fn without_separators(text: &str) -> Option<std::borrow::Cow<'_, str>> {
    if !text.contains('_') {
        return Some(text.into());
    }
    let bytes = text.as_bytes();
    let between = |at: usize| {
        at > 0
            && bytes[at - 1].is_ascii_hexdigit()
            && bytes.get(at + 1).is_some_and(u8::is_ascii_hexdigit)
    };
    let all_between =
        bytes.iter().enumerate().filter(|(_, b)| **b == b'_').all(|(at, _)| between(at));
    all_between.then(|| text.replace('_', "").into())
}

/// `h.hhhp±d`; the exponent is required.
fn parse_hexadecimal(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['p', 'P'])?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = 0.0;
    for digit in whole.chars().chain(fraction.chars()) {
        value = value * 16.0 + f64::from(digit.to_digit(16)?);
    }
    let scale = i32::try_from(fraction.len()).ok()?.checked_mul(-4)?;
    Some(value * 2f64.powi(exponent.parse::<i32>().ok()?.checked_add(scale)?))
}

/// A float in a text column that it widened: plain where it is integral, else shortest digits, with
/// an exponent below 1e-4 and from 1e6 on.
fn float_text(literal: &str, out: &mut String) {
    let value: f64 = literal.parse().unwrap_or(f64::NAN);
    if value.fract() == 0.0 && value.abs() < PLAIN_BELOW {
        return push(out, format_args!("{value}"));
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        push(out, format_args!("{value}"));
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        push(out, format_args!("{mantissa}e{sign}{:02}", exponent.abs()));
    }
}

/// The shortest decimal text, with an exponent below 1e-6 and from 1e21 on, as JSON writers have
/// it.
fn json_float(literal: &str, out: &mut String) {
    let value: f64 = literal.parse().unwrap_or(f64::NAN);
    if value == 0.0 || (1e-6..PLAIN_BELOW).contains(&value.abs()) {
        push(out, format_args!("{value}"));
    } else {
        push(out, format_args!("{value:e}"));
    }
}

/// The shortest decimal text without an exponent.
fn push_float(literal: &str, out: &mut String) {
    let value: f64 = literal.parse().unwrap_or(f64::NAN);
    push(out, format_args!("{value}"));
}

fn push_cut(canonical: &str, digits: usize, out: &mut String) {
    let (first, last) = cut_fraction(canonical, digits);
    out.push_str(first);
    out.push_str(last);
}

fn push_timestamp_text(canonical: &str, style: TextStyle, out: &mut String) {
    push_cut(canonical, MILLISECONDS, out);
    if style == TextStyle::Milliseconds {
        let zone = out.pop();
        let digits = out.len() - out.rfind(['.', 'T']).unwrap_or(0) - 1;
        // without a fraction there are the eight characters of the time behind the T
        let zeros = if digits == "hh:mm:ss".len() { ".000" } else { &"000"[digits.min(3)..] };
        out.push_str(zeros);
        out.extend(zone);
    }
}

/// Without NUL, which no text can hold.
pub(crate) fn push_text(text: &str, out: &mut String) {
    for part in text.split(NOT_IN_TEXT) {
        out.push_str(part);
    }
}

/// The text of a JSON value without NUL, which no JSON value can hold. Behind a backslash that is
/// text itself, what spells it is text, too.
fn push_json(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        push_text(&rest[..at], out);
        let escape = &rest[at..];
        if let Some(after) = escape.strip_prefix(NOT_IN_JSON) {
            rest = after;
            continue;
        }
        // the backslash and what it escapes
        let end = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
        out.push_str(&escape[..end]);
        rest = &escape[end..];
    }
    push_text(rest, out);
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "writing to a String does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(kind: Kind, text: &str, to: DataType) -> Option<String> {
        let mut out = String::new();
        convert(kind, text, to, TextStyle::Short, &mut out).then_some(out)
    }

    #[test]
    fn a_timestamp_as_text_has_milliseconds_where_they_are_wanted() {
        let cases = [
            ("2022-08-18T14:17:22Z", "2022-08-18T14:17:22Z", "2022-08-18T14:17:22.000Z"),
            ("2022-08-18T14:17:22.5Z", "2022-08-18T14:17:22.5Z", "2022-08-18T14:17:22.500Z"),
            ("2022-08-18T14:17:22.1239Z", "2022-08-18T14:17:22.123Z", "2022-08-18T14:17:22.123Z"),
        ];
        for (text, short, long) in cases {
            for (style, expected) in [(TextStyle::Short, short), (TextStyle::Milliseconds, long)] {
                let mut out = "before.".to_owned();
                assert!(convert(Kind::Timestamp, text, DataType::String, style, &mut out));
                assert_eq!(out, format!("before.{expected}"));
            }
        }
    }

    #[test]
    fn values_are_converted_by_the_table() {
        use DataType::{Bool, Float64, Int64, Json, String, Timestamp, Unknown};
        let at = "2022-08-18T14:17:22.123456789Z";
        let cases = [
            (Kind::Bool, "true", String, Some("true")),
            (Kind::Bool, "true", Int64, Some("1")),
            (Kind::Bool, "true", Timestamp, None),
            (Kind::Int, "1", Bool, Some("true")),
            (Kind::Int, "2", Bool, None),
            (Kind::Int, "2", Json, None),
            (Kind::Float, "12345678.5", String, Some("12345678.5")),
            (Kind::Float, "1e21", String, Some("1000000000000000000000")),
            (Kind::Float, "3.0", Int64, Some("3")),
            (Kind::Float, "3.5", Int64, None),
            (Kind::Float, "9.3e18", Int64, None),
            (Kind::Timestamp, at, String, Some("2022-08-18T14:17:22.123Z")),
            (Kind::Timestamp, at, Timestamp, Some("2022-08-18T14:17:22.123456Z")),
            (Kind::Timestamp, at, Int64, None),
            (Kind::String, "42", Int64, Some("42")),
            (Kind::String, " 5", Int64, None),
            (Kind::String, "9223372036854775808", Int64, None),
            (Kind::String, "x", Int64, None),
            (Kind::String, "1_000.5", Float64, Some("1.0005e3")),
            (Kind::String, "0x1.8p1", Float64, Some("3e0")),
            (Kind::String, "nan", Float64, Some("NaN")),
            (Kind::String, "_1", Float64, None),
            (Kind::String, "1e400", Float64, None),
            (Kind::String, "-1e999", Float64, None),
            (Kind::String, "0x1p1024", Float64, None),
            (Kind::String, "-Infinity", Float64, Some("-Infinity")),
            (Kind::Number, "1e400", Float64, None),
            (Kind::Number, "12345678901234567890", Float64, Some("1.2345678901234567e19")),
            (Kind::Number, "12345678901234567890", Unknown, Some("12345678901234567890")),
            (Kind::Float, "9234567890.1234567890", Unknown, Some("9234567890.1234567890")),
            (Kind::String, "T", Bool, Some("true")),
            (Kind::String, "yes", Bool, None),
            (Kind::String, "2023-05-06", Timestamp, Some("2023-05-06T00:00:00Z")),
            (Kind::String, "x", Unknown, None),
            (Kind::Int, "5", Unknown, Some("5")),
        ];
        for (kind, text, to, expected) in cases {
            assert_eq!(converted(kind, text, to).as_deref(), expected, "{kind:?} {text} {to:?}");
        }
    }

    #[test]
    fn floats_in_a_text_column_are_written_as_the_original_does() {
        let cases = [
            ("4.0", "4"),
            ("250000.0", "250000"),
            ("1234567.5", "1.2345675e+06"),
            ("0.00002", "2e-05"),
            ("1e21", "1e+21"),
            ("123456.5", "123456.5"),
            ("0.0001", "0.0001"),
            ("0.0", "0"),
        ];
        for (literal, expected) in cases {
            let mut out = String::new();
            as_it_is(Kind::Float, literal, DataType::String, &mut out);
            assert_eq!(out, expected, "{literal}");
        }
    }

    #[test]
    fn what_postgresql_cannot_store_in_a_text_is_left_out() {
        let mut out = String::new();
        as_it_is(Kind::String, "a\0b", DataType::String, &mut out);
        as_it_is(Kind::String, r#"{"a":"\u0000x"}"#, DataType::Json, &mut out);
        assert_eq!(out, r#"ab{"a":"x"}"#);
    }

    #[test]
    fn text_that_speaks_of_what_cannot_be_stored_is_stored() {
        let cases = [
            (r#"["\\u0000 is text"]"#, r#"["\\u0000 is text"]"#),
            (r#"["dir\\\u0000new"]"#, r#"["dir\\new"]"#),
            (r#"["\u0000\\\\u0000\u0000"]"#, r#"["\\\\u0000"]"#),
            ("\u{0}\"a\"", "\"a\""),
            (r"\", r"\"),
        ];
        for (text, expected) in cases {
            let mut out = String::new();
            as_it_is(Kind::String, text, DataType::Json, &mut out);
            assert_eq!(out, expected, "{text}");
        }
    }
}
