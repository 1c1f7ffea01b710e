//! Parameters that the routes of the events log have in common.

use appbase::http::error_reply;
use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use eventslog::StoreError;
use jiff::{civil::Date, tz::TimeZone};
use tracing::warn;

/// Digits of a time in milliseconds since 1970.
const MILLIS_DIGITS: usize = 13;
/// A day as it may be given.
const DAY: &[u8] = b"0000-00-00";

/// Why the log is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error("'eventType' must be <type>.<level>, for example bulker_batch.error")]
    EventType,
    #[error("'{0}' parameter must be an integer number")]
    Integer(&'static str),
    #[error("'{0}' parameter must be either unix timestamp or date in '2006-01-02' format")]
    Time(&'static str),
    #[error("'{0}' parameter must be {1}")]
    Parameter(&'static str, &'static str),
    #[error("Failed to get events log: {0}")]
    Store(#[from] StoreError),
}

impl IntoResponse for LogError {
    fn into_response(self) -> Response {
        let status = match &self {
            LogError::Store(error) => {
                warn!(error = %error, "events log cannot be read");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            _ => StatusCode::BAD_REQUEST,
        };
        error_reply(status, &self.to_string())
    }
}

/// Milliseconds since 1970, of a text with exactly 13 digits or of a day in UTC. Empty is open.
pub(super) fn time(name: &'static str, text: &str) -> Result<Option<i64>, LogError> {
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
    millis.map(Some).ok_or(LogError::Time(name))
}

/// A number, with a sign or without. Empty is `None`.
pub(super) fn integer(name: &'static str, text: &str) -> Result<Option<i64>, LogError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| LogError::Integer(name))
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
}
