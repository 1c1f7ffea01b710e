//! Times in queries: milliseconds since 1970, or a date.

use jiff::{civil::Date, tz::TimeZone};

/// A parameter that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' parameter must be either unix timestamp or date in '2006-01-02' format")]
pub(super) struct BadTime(&'static str);

/// Milliseconds since 1970 of exactly 13 digits, or of a date's midnight in UTC. `name` is the parameter's.
pub(super) fn parse_time(name: &'static str, text: &str) -> Result<i64, BadTime> {
    if text.len() == 13 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| BadTime(name));
    }
    let date = Date::strptime("%Y-%m-%d", text).ok().filter(|_| text.len() == 10);
    let midnight = date.and_then(|date| date.to_zoned_datetime(TimeZone::UTC).ok());
    midnight.map(|at| at.timestamp().as_millisecond()).ok_or(BadTime(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirteen_digits_or_a_date() {
        assert_eq!(parse_time("start", "1700000000000"), Ok(1_700_000_000_000));
        assert_eq!(parse_time("start", "2023-11-15"), Ok(1_700_006_400_000));
        for text in [
            "",
            "170000000000",
            "17000000000000",
            "2023-02-30",
            "2023-1-5",
            "23-11-15",
            "x",
            "+170000000000",
        ] {
            assert_eq!(parse_time("end", text), Err(BadTime("end")), "{text}");
        }
    }
}
