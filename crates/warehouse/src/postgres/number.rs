//! Numbers on their way into types that hold other numbers than ours do: `numeric` keeps all
//! digits, `integer`, `smallint` and `real` hold less.
//!
//! Invariant: a number is there as it came, rounded at most to the digits that the column was made
//! with, or it is not there at all. A number of the right kind that is too large for a column which
//! the customer made narrow (`smallint`, `numeric(5,2)`) is sent, and PostgreSQL refuses its event:
//! it waits until the column is wider. Of what no column of the kind can hold, nothing is sent.

use std::fmt::Write;

use crate::rows::row::Kind;

/// Digits before and behind the point that `numeric` without a precision can hold.
const NUMERIC_DIGITS: (i64, i64) = (131_072, 16_383);

/// A type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberType {
    /// So many digits in all, and so many behind the point.
    Numeric(Option<(i64, i64)>),
    /// Whole numbers.
    Integer,
    Real,
    Double,
}

impl NumberType {
    /// The type that the catalog prints, or a column is declared with, as this. `None`: it is none
    /// of numbers, or one that is ours.
    pub(super) fn of(sql_type: &str) -> Option<NumberType> {
        let end = sql_type.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(sql_type.len());
        let (name, rest) = sql_type.split_at(end);
        let rest = rest.trim_start();
        let (arguments, rest) = match rest.strip_prefix('(') {
            Some(inner) => inner.split_once(')').map(|(within, rest)| (Some(within), rest))?,
            None => (None, rest),
        };
        if rest.trim_start().starts_with(['[', '.', '"']) || rest.starts_with('_') {
            return None;
        }
        Some(match (name.to_ascii_lowercase().as_str(), arguments) {
            ("numeric" | "decimal" | "dec", None) => NumberType::Numeric(None),
            ("numeric" | "decimal" | "dec", Some(arguments)) => {
                let mut arguments = arguments.split(',').map(|number| number.trim().parse().ok());
                let (precision, scale) = (arguments.next()??, arguments.next().unwrap_or(Some(0))?);
                NumberType::Numeric(Some((precision, scale)))
            }
            ("smallint" | "int2" | "smallserial" | "serial2", None) => NumberType::Integer,
            ("integer" | "int" | "int4" | "serial" | "serial4", None) => NumberType::Integer,
            ("int8" | "bigserial" | "serial8", None) => NumberType::Integer,
            ("real" | "float4", None) => NumberType::Real,
            ("float" | "float8", None) => NumberType::Double,
            _ => return None,
        })
    }

    /// Appends the value as a column of this type takes it. `false`: it does not.
    pub(super) fn write(self, kind: Kind, text: &str, out: &mut String) -> bool {
        if !matches!(kind, Kind::Int | Kind::Float | Kind::Number) {
            return false;
        }
        let Some(decimal) = Decimal::parse(text) else {
            return false;
        };
        match self {
            NumberType::Numeric(Some(_)) => out.push_str(text),
            NumberType::Numeric(None) if decimal.is_held() => out.push_str(text),
            NumberType::Integer => return decimal.write_whole(out),
            NumberType::Real => match text.parse::<f32>() {
                Ok(value) if value.is_finite() && (value != 0.0 || decimal.is_zero()) => {
                    out.push_str(text);
                }
                _ => return false,
            },
            NumberType::Double => match text.parse::<f64>() {
                Ok(value) if value.is_finite() && (value != 0.0 || decimal.is_zero()) => {
                    out.push_str(text);
                }
                _ => return false,
            },
            NumberType::Numeric(None) => return false,
        }
        true
    }

    /// The same for the text of a JSON value, which may be anything.
    pub(super) fn write_json(self, text: &str, out: &mut String) -> bool {
        let is_number = Decimal::parse(text).is_some();
        is_number && self.write(Kind::Number, text, out)
    }

    /// Appends a text that all equal numbers of this type have in common, and that sorts by its
    /// value as a float.
    pub(super) fn key_text(self, text: &str, out: &mut String) {
        let Some(decimal) = Decimal::parse(text) else {
            return out.push_str(text); // NaN, or not ours to judge
        };
        let written = match self {
            NumberType::Numeric(Some((_, scale))) => decimal.rounded(scale).write_to(out),
            NumberType::Numeric(None) | NumberType::Integer => decimal.write_to(out),
            NumberType::Real => write!(out, "{:e}", text.parse::<f32>().unwrap_or(f32::NAN)),
            NumberType::Double => write!(out, "{:e}", text.parse::<f64>().unwrap_or(f64::NAN)),
        };
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }
}

/// A number as its digits: `0.digits` times ten to the power of `point`.
struct Decimal {
    is_negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: String,
    point: i64,
}

impl Decimal {
    /// From a literal of JSON.
    fn parse(literal: &str) -> Option<Decimal> {
        let (is_negative, rest) = match literal.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, literal),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent),
            None => (rest, "0"),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let (sign, magnitude) = match exponent.strip_prefix(['+', '-']) {
            Some(magnitude) => (if exponent.starts_with('-') { -1 } else { 1 }, magnitude),
            None => (1, exponent),
        };
        if whole.is_empty()
            || magnitude.is_empty()
            || ![whole, fraction, magnitude].into_iter().all(are_digits)
        {
            return None;
        }
        // an exponent that is no i32 is beyond every type that there is
        let exponent = sign * i64::from(magnitude.parse::<i32>().unwrap_or(i32::MAX));
        let digits = [whole, fraction].concat();
        let significant = digits.trim_start_matches('0');
        let leading = digits.len() - significant.len();
        let point = i64::try_from(whole.len()).ok()? - i64::try_from(leading).ok()? + exponent;
        let significant = significant.trim_end_matches('0').to_owned();
        let point = if significant.is_empty() { 0 } else { point };
        Some(Decimal { is_negative, digits: significant, point })
    }

    fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    /// Digits behind the point.
    fn scale(&self) -> i64 {
        i64::try_from(self.digits.len()).unwrap_or(i64::MAX) - self.point
    }

    /// Whether `numeric` without a precision holds it.
    fn is_held(&self) -> bool {
        let (before, behind) = NUMERIC_DIGITS;
        self.is_zero() || self.point <= before && self.scale() <= behind
    }

    /// Rounded to so many digits behind the point, halves away from zero.
    fn rounded(&self, scale: i64) -> Decimal {
        let kept = self.point.saturating_add(scale);
        let same = |digits: String, point| Decimal { is_negative: self.is_negative, digits, point };
        if self.scale() <= scale {
            return same(self.digits.clone(), self.point);
        }
        // what is cut off has at least one digit that is not zero
        let Ok(kept) = usize::try_from(kept) else {
            return same(String::new(), 0);
        };
        let goes_up = self.digits.as_bytes().get(kept).is_some_and(|digit| *digit >= b'5');
        let mut digits = self.digits[..kept.min(self.digits.len())].to_owned();
        if !goes_up {
            let digits = digits.trim_end_matches('0').to_owned();
            let point = if digits.is_empty() { 0 } else { self.point };
            return same(digits, point);
        }
        loop {
            match digits.pop() {
                Some('9') => {}
                Some(digit) => {
                    digits.push(char::from(digit as u8 + 1)); // of '0' to '8'
                    return same(digits, self.point);
                }
                None => return same("1".to_owned(), self.point.saturating_add(1)),
            }
        }
    }

    /// Appends it as a whole number. `false`: it is none, or more than any type of them holds.
    fn write_whole(&self, out: &mut String) -> bool {
        if self.is_zero() {
            out.push('0');
            return true;
        }
        if self.scale() > 0 || self.point > 19 {
            return false;
        }
        let mut text = String::from(if self.is_negative { "-" } else { "" });
        text.push_str(&self.digits);
        (self.scale()..0).for_each(|_| text.push('0'));
        let limit = 1_i128 << 63;
        let is_whole = text.parse::<i128>().is_ok_and(|value| (-limit..limit).contains(&value));
        if is_whole {
            out.push_str(&text);
        }
        is_whole
    }

    fn write_to(&self, out: &mut String) -> std::fmt::Result {
        if self.is_zero() {
            return out.write_char('0');
        }
        let sign = if self.is_negative { "-" } else { "" };
        write!(out, "{sign}{}e{}", self.digits, -self.scale())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sql_type: &str, literal: &str) -> Option<String> {
        let mut out = String::new();
        let number = NumberType::of(sql_type).unwrap();
        number.write(Kind::Number, literal, &mut out).then_some(out)
    }

    #[test]
    fn types_of_numbers_are_known_as_the_catalog_and_as_hints_spell_them() {
        let cases = [
            ("numeric(30,10)", Some(NumberType::Numeric(Some((30, 10))))),
            ("NUMERIC (5) not null default 0", Some(NumberType::Numeric(Some((5, 0))))),
            ("decimal default 1", Some(NumberType::Numeric(None))),
            ("numeric(3,-2)", Some(NumberType::Numeric(Some((3, -2))))),
            ("integer", Some(NumberType::Integer)),
            ("real", Some(NumberType::Real)),
            ("numeric[]", None),
            ("numeric(3,1)[]", None),
            ("integer_list", None),
            ("character varying(5)", None),
            ("int4range", None),
        ];
        for (name, expected) in cases {
            assert_eq!(NumberType::of(name), expected, "{name}");
        }
    }

    #[test]
    fn a_number_is_written_as_it_came_where_its_type_holds_it() {
        let long = "9234567890.1234567890";
        let whole = "12345678901234567890";
        let cases = [
            ("numeric", long, Some(long)),
            ("numeric(30,10)", long, Some(long)),
            ("numeric(20,10)", whole, Some(whole)),
            ("numeric", "1e400", Some("1e400")),
            ("numeric", "1e131072", None),
            ("numeric", "1e-16384", None),
            ("numeric", "0e999999999999", Some("0e999999999999")),
            ("numeric(5,2)", "999.99", Some("999.99")),
            ("numeric(5,2)", "999.994", Some("999.994")),
            ("numeric(5,2)", "999.995", Some("999.995")),
            ("numeric(5,2)", "-1000", Some("-1000")),
            ("numeric(5,2)", "0.001", Some("0.001")),
            ("numeric(3,-2)", "99949", Some("99949")),
            ("numeric(3,-2)", "99950", Some("99950")),
            ("numeric(3,5)", "0.00999", Some("0.00999")),
            ("numeric(3,5)", "0.01", Some("0.01")),
            ("integer", "2147483647", Some("2147483647")),
            ("integer", "2147483648", Some("2147483648")),
            ("integer", "-2.147483648e9", Some("-2147483648")),
            ("integer", "3.0", Some("3")),
            ("integer", "3.5", None),
            ("smallint", "1e3", Some("1000")),
            ("smallint", "1e999999999999", None),
            ("int8", "9223372036854775808", None),
            ("real", "1e39", None),
            ("real", "1e-60", None),
            ("real", "0.1", Some("0.1")),
            ("float8", "1e309", None),
        ];
        for (sql_type, literal, expected) in cases {
            assert_eq!(written(sql_type, literal).as_deref(), expected, "{literal} as {sql_type}");
        }
    }

    #[test]
    fn equal_numbers_have_one_text() {
        let cases = [
            ("numeric", ["1", "1.00"], true),
            ("numeric", ["100", "1e2"], true),
            ("numeric", ["-0", "0.0"], true),
            ("numeric", ["1.001", "1.002"], false),
            ("numeric(9,2)", ["1.001", "1.002"], true),
            ("numeric(9,2)", ["9.995", "10"], true),
            ("real", ["16777216", "16777217"], true),
            ("integer", ["7", "7"], true),
        ];
        for (sql_type, literals, expected) in cases {
            let [a, b] = literals.map(|literal| {
                let mut out = String::new();
                NumberType::of(sql_type).unwrap().key_text(literal, &mut out);
                out
            });
            assert_eq!(a == b, expected, "{literals:?} as {sql_type}: {a} {b}");
        }
    }
}
