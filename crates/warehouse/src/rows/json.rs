//! JSON text without a tree: strings taken apart, nested values written compactly.
//!
//! Numbers keep their spelling and keys their order, because both show in what is stored.

use serde::de::IgnoredAny;
use sonic_rs::{LazyValue, to_array_iter, to_object_iter};

use crate::rows::row::{MAX_DEPTH, RowError};

/// Keys that start so are type hints.
pub(super) const HINT_PREFIX: &str = "__sql_type";

/// Entries of an object, in order. The text was not checked before.
pub(super) fn entries<'a>(
    object: &'a str,
) -> impl Iterator<Item = Result<(std::borrow::Cow<'a, str>, &'a str), RowError>> {
    to_object_iter(object).map(|entry| {
        let (key, value) = entry.map_err(|_| RowError::json("broken object"))?;
        Ok((key, raw(&value)?))
    })
}

fn elements(array: &str) -> impl Iterator<Item = Result<&str, RowError>> {
    to_array_iter(array).map(|element| raw(&element.map_err(|_| RowError::json("broken array"))?))
}

/// The text of a value, borrowed from the document.
fn raw<'a>(value: &LazyValue<'a>) -> Result<&'a str, RowError> {
    match value.as_raw_cow() {
        std::borrow::Cow::Borrowed(text) => Ok(text),
        std::borrow::Cow::Owned(_) => Err(RowError::json("text that is not borrowed")),
    }
}

/// Appends what a string stands for; `inner` is its text between the quotes. A half of a surrogate
/// pair becomes U+FFFD.
pub(super) fn unescape(inner: &str, out: &mut String) -> Result<(), RowError> {
    let mut rest = inner;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1).ok_or_else(broken_escape)?;
        rest = &rest[at + 1..];
        let plain = match escape {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (character, length) = unicode_escape(rest)?;
                out.push(character);
                rest = &rest[length..];
                continue;
            }
            _ => return Err(broken_escape()),
        };
        out.push(plain);
        rest = &rest[1..];
    }
    out.push_str(rest);
    Ok(())
}

/// The character of `uXXXX` or `uXXXX\uXXXX` at the start of `text`, and how long that is.
fn unicode_escape(text: &str) -> Result<(char, usize), RowError> {
    let unit = |from: usize| {
        let digits = text.get(from..from + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok())
    };
    let first = unit(1).ok_or_else(broken_escape)?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 5));
    }
    if first < 0xDC00
        && text.get(5..7) == Some("\\u")
        && let Some(second @ 0xDC00..=0xDFFF) = unit(7)
    {
        let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        return Ok((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11));
    }
    Ok((char::REPLACEMENT_CHARACTER, 5))
}

fn broken_escape() -> RowError {
    RowError::json("broken escape in a string")
}

/// Appends `text` as a JSON string: escapes only for `"`, `\` and control characters.
pub(crate) fn write_string(text: &str, out: &mut String) {
    use std::fmt::Write;
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let written = write!(out, "\\u{:04x}", u32::from(control));
                debug_assert!(written.is_ok(), "writing to a String does not fail");
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Appends the compact text of any value. `drop_hints` leaves out type hints of objects that are
/// not inside an array.
pub(super) fn compact(
    value: &str,
    drop_hints: bool,
    depth: usize,
    out: &mut String,
) -> Result<(), RowError> {
    if depth > MAX_DEPTH {
        return Err(RowError::TooDeep);
    }
    match value.as_bytes().first() {
        Some(b'{') => compact_object(value, drop_hints, depth, out),
        Some(b'[') => {
            out.push('[');
            for (index, element) in elements(value).enumerate() {
                if index > 0 {
                    out.push(',');
                }
                compact(element?, false, depth + 1, out)?;
            }
            out.push(']');
            Ok(())
        }
        Some(b'"') => {
            let inner = &value[1..value.len() - 1];
            if inner.contains('\\') {
                let mut plain = String::with_capacity(inner.len());
                unescape(inner, &mut plain)?;
                write_string(&plain, out);
            } else {
                out.push_str(value);
            }
            Ok(())
        }
        _ => {
            out.push_str(value);
            Ok(())
        }
    }
}

fn compact_object(
    value: &str,
    drop_hints: bool,
    depth: usize,
    out: &mut String,
) -> Result<(), RowError> {
    out.push('{');
    let start = out.len();
    for (key, value) in &last_values(value)? {
        if drop_hints && key.starts_with(HINT_PREFIX) {
            continue;
        }
        if out.len() > start {
            out.push(',');
        }
        write_string(key, out);
        out.push(':');
        compact(value, drop_hints, depth + 1, out)?;
    }
    out.push('}');
    Ok(())
}

/// Entries of an object where a repeated key keeps its first position and its last value.
pub(super) fn last_values(
    object: &str,
) -> Result<Vec<(std::borrow::Cow<'_, str>, &str)>, RowError> {
    let mut kept: Vec<(std::borrow::Cow<'_, str>, &str)> = Vec::new();
    let mut position = std::collections::HashMap::new();
    for entry in entries(object) {
        let (key, value) = entry?;
        match position.entry(key.clone()) {
            std::collections::hash_map::Entry::Occupied(first) => {
                let first: usize = *first.get();
                kept[first].1 = value;
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(kept.len());
                kept.push((key, value));
            }
        }
    }
    Ok(kept)
}

/// Whether `document` is one JSON object that can become a row: what a service answers before it
/// takes it.
pub fn check_event(document: &[u8]) -> Result<(), RowError> {
    let object = one_object(document)?;
    check_depth(object)?;
    // not sonic-rs: what it skips lazily it does not check to the last escape
    let checked: Result<IgnoredAny, _> = serde_json::from_str(object);
    checked.map(drop).map_err(|_| RowError::json("broken, or something follows the object"))
}

/// Refuses text that is nested too deep, before any recursion over it.
fn check_depth(text: &str) -> Result<(), RowError> {
    // few opening brackets cannot be nested deep; counting them costs next to nothing
    let opening = text.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count();
    if opening <= MAX_DEPTH {
        return Ok(());
    }
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(RowError::TooDeep);
        }
    }
    Ok(())
}

/// The text of the one object that `document` seems to be.
pub(super) fn one_object(document: &[u8]) -> Result<&str, RowError> {
    let text = std::str::from_utf8(document).map_err(|_| RowError::json("not UTF-8"))?;
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    match text.as_bytes().first() {
        None => Err(RowError::json("empty")),
        Some(b'{') => Ok(text),
        Some(_) => Err(RowError::json("not an object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compacted(value: &str) -> String {
        let mut out = String::new();
        compact(value, false, 0, &mut out).unwrap();
        out
    }

    #[test]
    fn compact_text_keeps_spelling_and_order() {
        let cases = [
            ("[ 1 , 2.50, 1e3, -0 ]", "[1,2.50,1e3,-0]"),
            ("[]", "[]"),
            (r#"{ "b" : [ {} ], "a" : null }"#, r#"{"b":[{}],"a":null}"#),
            (r#"["\u0041\/<>&\u0001é"]"#, "[\"A/<>&\\u0001é\"]"),
            (r#"["a\"b\\c\n"]"#, r#"["a\"b\\c\n"]"#),
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#),
        ];
        for (value, expected) in cases {
            assert_eq!(compacted(value), expected, "{value}");
        }
    }

    #[test]
    fn escapes_stand_for_their_characters() {
        let mut out = String::new();
        unescape(r"a\u00e9\ud83d\ude42\ud800x\b", &mut out).unwrap();
        assert_eq!(out, "aé🙂\u{fffd}x\u{8}");
        for broken in [r"\x", r"\u12", r"\u+123"] {
            assert!(unescape(broken, &mut String::new()).is_err(), "{broken}");
        }
    }

    #[test]
    fn nesting_has_a_limit_that_brackets_in_strings_do_not_count_for() {
        let nested =
            |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check_event(nested(MAX_DEPTH - 1).as_bytes()), Ok(()));
        assert_eq!(check_event(nested(MAX_DEPTH).as_bytes()), Err(RowError::TooDeep));
        assert_eq!(check_event(nested(500_000).as_bytes()), Err(RowError::TooDeep));
        let in_string = format!(r#"{{"a":"\"{}"}}"#, "[".repeat(500));
        assert_eq!(check_event(in_string.as_bytes()), Ok(()));
    }

    #[test]
    fn an_event_is_one_object_and_nothing_else() {
        for good in ["{}", " {\"a\":1}\n", r#"{"a":{"b":[]}}"#, r#"{"a":"half a pair \ud800"}"#] {
            assert_eq!(check_event(good.as_bytes()), Ok(()), "{good}");
        }
        let bad: [&[u8]; 9] =
            [b"", b" ", b"null", b"[1]", b"\"x\"", b"{", b"{}{}", b"{\"a\":}", b"{\"a\":\"\xff\"}"];
        for bad in bad {
            assert!(matches!(check_event(bad), Err(RowError::Json(_))), "{bad:?}");
        }
    }
}
