//! Which strings are timestamps, and how timestamps are written.
//!
//! A timestamp is kept in one canonical text, `YYYY-MM-DDThh:mm:ss[.f]Z` with at most nine digits
//! and no trailing zeros, so that the hot path copies text instead of converting numbers.

use jiff::civil::DateTime;

/// Seconds in an hour.
const HOUR: i64 = 3600;

/// Writes the canonical text of `text` to `out` if it is a timestamp; leaves `out` alone otherwise.
pub(super) fn canonical(text: &str, out: &mut String) -> bool {
    let bytes = text.as_bytes();
    if !(19..=35).contains(&bytes.len()) || !matches!(bytes[0], b'1' | b'2') {
        return false;
    }
    let Some(mut parts) = Parts::parse(bytes) else {
        return false;
    };
    // all bytes up to there were checked to be ASCII
    parts.seconds_text = text.get(..19).unwrap_or_default();
    parts.is_padded = bytes[13] == b':';
    parts.write(out)
}

/// Writes midnight UTC of `YYYY-MM-DD` to `out` if `text` is such a date.
pub(super) fn canonical_date(text: &str, out: &mut String) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || !matches!(bytes[0], b'1' | b'2') {
        return false;
    }
    let Some(parts) = Parts::parse_date(bytes) else {
        return false;
    };
    parts.write(out)
}

/// The canonical text cut to `digits` of fraction, without trailing zeros.
pub(crate) fn cut_fraction(canonical: &str, digits: usize) -> (&str, &str) {
    let Some(point) = canonical.find('.') else {
        return (canonical, "");
    };
    let fraction = &canonical[point + 1..canonical.len() - 1];
    if fraction.len() <= digits {
        return (canonical, "");
    }
    let kept = fraction[..digits].trim_end_matches('0').len();
    if kept == 0 { (&canonical[..point], "Z") } else { (&canonical[..=point + kept], "Z") }
}

struct Parts<'a> {
    year: i16,
    month: i8,
    day: i8,
    hour: i8,
    minute: i8,
    second: i8,
    fraction: &'a [u8],
    /// Seconds east of UTC.
    offset: i64,
    /// The text up to the seconds, and whether it is written as the canonical one is.
    seconds_text: &'a str,
    is_padded: bool,
}

impl<'a> Parts<'a> {
    fn parse_date(bytes: &'a [u8]) -> Option<Parts<'a>> {
        if bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        Some(Parts {
            year: number(&bytes[..4])?,
            month: small(&bytes[5..7])?,
            day: small(&bytes[8..10])?,
            hour: 0,
            minute: 0,
            second: 0,
            fraction: &[],
            offset: 0,
            seconds_text: "",
            is_padded: false,
        })
    }

    /// One of the three layouts: RFC 3339; without zone; at exactly 24 bytes also with `±hhmm`.
    fn parse(bytes: &'a [u8]) -> Option<Parts<'a>> {
        let mut parts = Parts::parse_date(bytes)?;
        if bytes[10] != b'T' {
            return None;
        }
        // the hour may have one digit
        let colon = if bytes.get(12) == Some(&b':') { 12 } else { 13 };
        parts.hour = small(bytes.get(11..colon)?)?;
        let rest = bytes.get(colon..)?;
        if rest.len() < 6 || rest[0] != b':' || rest[3] != b':' {
            return None;
        }
        parts.minute = small(&rest[1..3])?;
        parts.second = small(&rest[4..6])?;
        if parts.hour > 23 || parts.minute > 59 || parts.second > 59 {
            return None;
        }
        let mut zone = &rest[6..];
        if let [b'.' | b',', after @ ..] = zone {
            let digits = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 {
                return None;
            }
            parts.fraction = &after[..digits];
            zone = &after[digits..];
        }
        parts.offset = match zone {
            b"" | b"Z" => 0,
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => offset(*sign, [*h1, *h2, *m1, *m2])?,
            [sign @ (b'+' | b'-'), h1, h2, m1, m2]
                if bytes.len() == 24 && parts.fraction.is_empty() =>
            {
                offset(*sign, [*h1, *h2, *m1, *m2])?
            }
            _ => return None,
        };
        Some(parts)
    }

    /// Appends the canonical text. `false`: no such day, or the year in UTC has not four digits.
    fn write(&self, out: &mut String) -> bool {
        use std::fmt::Write;
        let Ok(local) =
            DateTime::new(self.year, self.month, self.day, self.hour, self.minute, self.second, 0)
        else {
            return false;
        };
        if self.offset == 0 && self.is_padded {
            out.push_str(self.seconds_text); // the common case needs no formatting
        } else {
            let Ok(utc) = local.checked_sub(jiff::SignedDuration::from_secs(self.offset)) else {
                return false;
            };
            let (year, month, day) = (utc.year(), utc.month(), utc.day());
            let (hour, minute, second) = (utc.hour(), utc.minute(), utc.second());
            let written =
                write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
            debug_assert!(written.is_ok(), "writing to a String does not fail");
        }
        let nanos = &self.fraction[..self.fraction.len().min(9)];
        let kept = nanos.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
        if kept > 0 {
            out.push('.');
            out.extend(nanos[..kept].iter().map(|digit| char::from(*digit)));
        }
        out.push('Z');
        true
    }
}

fn number(digits: &[u8]) -> Option<i16> {
    digits.iter().try_fold(0, |value: i16, digit| {
        digit.is_ascii_digit().then(|| value * 10 + i16::from(digit - b'0'))
    })
}

fn small(digits: &[u8]) -> Option<i8> {
    if digits.is_empty() {
        return None;
    }
    number(digits).and_then(|value| i8::try_from(value).ok())
}

fn offset(sign: u8, digits: [u8; 4]) -> Option<i64> {
    let hours = i64::from(small(&digits[..2])?);
    let minutes = i64::from(small(&digits[2..])?);
    if hours > 24 || minutes > 59 {
        return None;
    }
    let seconds = hours * HOUR + minutes * 60;
    Some(if sign == b'-' { -seconds } else { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        let mut out = String::new();
        canonical(text, &mut out).then_some(out)
    }

    #[test]
    fn timestamps_are_recognised_and_brought_to_utc() {
        let cases = [
            ("2022-08-18T14:17:22.375Z", "2022-08-18T14:17:22.375Z"),
            ("2022-08-18T14:17:22Z", "2022-08-18T14:17:22Z"),
            ("2022-08-18T14:17:22.500000Z", "2022-08-18T14:17:22.5Z"),
            ("2022-08-18T14:17:22,5Z", "2022-08-18T14:17:22.5Z"),
            ("2022-08-18T14:17:22.000Z", "2022-08-18T14:17:22Z"),
            ("2022-08-18T14:17:22.1234567891Z", "2022-08-18T14:17:22.123456789Z"),
            ("2022-08-18T00:30:00+02:00", "2022-08-17T22:30:00Z"),
            ("2022-08-18T00:30:00+0200", "2022-08-17T22:30:00Z"),
            ("2022-08-18T14:17:22", "2022-08-18T14:17:22Z"),
            ("2022-08-18T4:17:22Z", "2022-08-18T04:17:22Z"),
            ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_strings_stay_strings() {
        let cases = [
            "2023-05-06 07:08:09",
            "2023-05-06",
            "2023-05-06T07:08Z",
            "2023-05-06T00:00:00.5+0100",
            " 2023-05-06T07:08:09Z",
            "2023-05-06T07:08:09z",
            "2023-05-06t07:08:09Z",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-05-06T24:00:00Z",
            "2023-05-06T07:08:60Z",
            "3023-05-06T07:08:09Z",
            "2023-05-06T07:08:09.Z",
            "2023-05-06T07:08:09+25:00",
            "20230506T070809000Z",
        ];
        for text in cases {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_date_is_midnight() {
        let mut out = String::new();
        assert!(canonical_date("2023-05-06", &mut out));
        assert_eq!(out, "2023-05-06T00:00:00Z");
        assert!(!canonical_date("2023-02-30", &mut String::new()));
    }

    #[test]
    fn a_fraction_is_cut_and_not_rounded() {
        let cut = |text, digits| {
            let (first, last) = cut_fraction(text, digits);
            format!("{first}{last}")
        };
        assert_eq!(cut("2022-08-18T14:17:22.1239999Z", 6), "2022-08-18T14:17:22.123999Z");
        assert_eq!(cut("2022-08-18T14:17:22.1000009Z", 6), "2022-08-18T14:17:22.1Z");
        assert_eq!(cut("2022-08-18T14:17:22.0000009Z", 6), "2022-08-18T14:17:22Z");
        assert_eq!(cut("2022-08-18T14:17:22.5Z", 6), "2022-08-18T14:17:22.5Z");
        assert_eq!(cut("2022-08-18T14:17:22Z", 6), "2022-08-18T14:17:22Z");
    }
}
