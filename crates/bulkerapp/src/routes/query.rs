//! The one way to read a query string: its parameters in their order, values that several routes
//! understand in the same way, and cursors.
//!
//! Routes take a parameter at a time from a loop, so that the first wrong one is the one an answer
//! names, and the last one of a name wins.

use std::borrow::Cow;

use appbase::http::error_reply;
use axum::{
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use jiff::{civil::Date, tz::TimeZone};

/// Digits of a time in milliseconds since 1970.
const MILLIS_DIGITS: usize = 13;
/// A day as it may be given.
const DAY: &[u8] = b"0000-00-00";

/// Why a parameter of the query is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParameterError {
    #[error("'{0}' parameter must be an integer number")]
    Integer(&'static str),
    #[error("'{0}' parameter must be either unix timestamp or date in '2006-01-02' format")]
    Time(&'static str),
    /// The name, and what it must be.
    #[error("'{0}' parameter must be {1}")]
    Value(&'static str, &'static str),
}

impl IntoResponse for ParameterError {
    fn into_response(self) -> Response {
        error_reply(StatusCode::BAD_REQUEST, &self.to_string())
    }
}

/// The query string of an address, undecoded; empty where there is none.
pub(super) fn of(uri: &Uri) -> &str {
    uri.query().unwrap_or_default()
}

/// Names and values, decoded, in their order. Nothing is copied that needs no decoding.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    form_urlencoded::parse(query.as_bytes())
}

/// The same without those whose value is empty: for routes where `name=` is as good as nothing.
pub(super) fn filled_parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    parameters(query).filter(|(_, value)| !value.is_empty())
}

/// Milliseconds since 1970, of a text with exactly 13 digits or of a day in UTC. Empty is open.
pub(super) fn time(name: &'static str, text: &str) -> Result<Option<i64>, ParameterError> {
    if text.is_empty() {
        return Ok(None);
    }
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let millis = if text.len() == MILLIS_DIGITS && text.as_bytes().iter().all(is_digit) {
        text.parse().ok()
    } else if is_like(text.as_bytes(), DAY) {
        midnight(text)
    } else {
        None
    };
    millis.map(Some).ok_or(ParameterError::Time(name))
}

/// A number, with a sign or without. Empty is `None`.
pub(super) fn integer(name: &'static str, text: &str) -> Result<Option<i64>, ParameterError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| ParameterError::Integer(name))
}

/// A cursor: what a reply named last, so that the next one goes on behind it. `separator` stands
/// between the fields, and only the last of them may have it in it.
pub(super) fn cursor<const N: usize>(separator: char, fields: [&str; N]) -> String {
    let mut cursor = String::new();
    for (index, field) in fields.into_iter().enumerate() {
        if index > 0 {
            cursor.push(separator);
        }
        cursor.push_str(field);
    }
    cursor
}

/// The fields of a cursor. `None`: there are fewer.
pub(super) fn cursor_fields<const N: usize>(separator: char, cursor: &str) -> Option<[&str; N]> {
    let fields: Vec<&str> = cursor.splitn(N, separator).collect();
    fields.try_into().ok()
}

fn midnight(text: &str) -> Option<i64> {
    let day: Date = text.parse().ok()?;
    Some(TimeZone::UTC.to_timestamp(day.at(0, 0, 0, 0)).ok()?.as_millisecond())
}

/// Digits where the pattern has zeros, the same bytes elsewhere.
fn is_like(text: &[u8], pattern: &[u8]) -> bool {
    let same = |(byte, sample): (&u8, &u8)| match sample {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    };
    text.len() == pattern.len() && text.iter().zip(pattern).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_decoded_and_in_their_order() {
        let read = |query| parameters(query).map(|(n, v)| format!("{n}:{v}")).collect::<Vec<_>>();
        assert_eq!(read("a=b+c&d=%2F&a=&e"), ["a:b c", "d:/", "a:", "e:"]);
        assert_eq!(read(""), [""; 0]);
        assert_eq!(filled_parameters("a=1&a=&b&c=2").count(), 2);
        assert_eq!(of(&"/events?a=%20".parse().unwrap()), "a=%20");
        assert_eq!(of(&"/events".parse().unwrap()), "");
    }

    #[test]
    fn a_time_is_thirteen_digits_or_a_day() {
        let cases = [
            ("", Ok(None)),
            ("1700000000000", Ok(Some(1_700_000_000_000))),
            ("2023-11-14", Ok(Some(1_699_920_000_000))),
            ("1970-01-01", Ok(Some(0))),
            ("2023-02-30", Err(())),
            ("2023-11-14T00:00:00Z", Err(())),
            ("20231114", Err(())),
            ("170000000000", Err(())),
            ("+170000000000", Err(())),
            ("17000000000000", Err(())),
            ("yesterday", Err(())),
        ];
        for (text, expected) in cases {
            assert_eq!(time("start", text).map_err(|_| ()), expected, "{text}");
        }
        assert_eq!(
            time("end", "x").unwrap_err().to_string(),
            "'end' parameter must be either unix timestamp or date in '2006-01-02' format"
        );
    }

    #[test]
    fn a_number_may_be_missing_and_is_named_where_it_is_none() {
        assert_eq!(integer("limit", ""), Ok(None));
        assert_eq!(integer("limit", "-7"), Ok(Some(-7)));
        for text in ["x", "1.5", " 1", "99999999999999999999"] {
            let error = integer("limit", text).unwrap_err().to_string();
            assert_eq!(error, "'limit' parameter must be an integer number", "{text}");
        }
    }

    #[test]
    fn the_last_field_of_a_cursor_may_hold_anything() {
        for fields in [["a", "b", "c"], ["a", "b", "c.d/e."], ["", "", ""]] {
            assert_eq!(cursor_fields('.', &cursor('.', fields)), Some(fields));
        }
        assert_eq!(cursor('/', ["a", ""]), "a/");
        assert_eq!(cursor_fields::<2>('/', "a"), None);
        assert_eq!(cursor_fields::<3>('.', "a.b"), None);
    }
}
