//! JSON text without a tree: strings taken apart, nested values written compactly.
//!
//! Numbers keep their spelling and keys their order, because both show in what is stored.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use crate::rows::{
    escape::unescape,
    postgres_rules::NOT_IN_TEXT,
    row::{MAX_DEPTH, RowError},
    scan::Scan,
};

/// Keys that start so are type hints.
pub(super) const HINT_PREFIX: &str = "__sql_type";

/// Entries of an object, in order. The text was not checked before.
pub(super) fn entries<'a>(
    object: &'a str,
) -> impl Iterator<Item = Result<(Cow<'a, str>, &'a str), RowError>> {
    items(object, b'{', b'}').map(|item| {
        let (key, value) = item?;
        let (key, has_escapes) = key.ok_or_else(|| RowError::json("broken object"))?;
        if !has_escapes {
            return Ok((Cow::Borrowed(key), value));
        }
        let mut plain = String::with_capacity(key.len());
        unescape(key, &mut plain)?;
        Ok((Cow::Owned(plain), value))
    })
}

fn elements(array: &str) -> impl Iterator<Item = Result<&str, RowError>> {
    items(array, b'[', b']').map(|item| item.map(|(_, value)| value))
}

/// The key of an entry between its quotes, and whether it has escapes; and the text of the value.
type Item<'a> = (Option<(&'a str, bool)>, &'a str);

/// What stands between two brackets. Read by the same scanner as all else of an event: what one
/// takes, another must not refuse.
fn items(text: &str, open: u8, close: u8) -> impl Iterator<Item = Result<Item<'_>, RowError>> {
    let mut scan = Scan::new(text);
    let mut is_open = scan.take(open) && !scan.take(close);
    std::iter::from_fn(move || {
        if !is_open {
            return None;
        }
        let item = next_item(&mut scan, open, close);
        is_open = item.as_ref().is_ok_and(|(_, goes_on)| *goes_on);
        Some(item.map(|(item, _)| item))
    })
}

/// The next item, and whether another one follows.
fn next_item<'a>(scan: &mut Scan<'a>, open: u8, close: u8) -> Result<(Item<'a>, bool), RowError> {
    let mut key = None;
    if open == b'{' {
        key = Some(scan.string()?);
        scan.expect(b':', "a colon is missing")?;
    }
    let value = scan.skip(0)?;
    if scan.take(close) {
        return Ok(((key, value), false));
    }
    scan.expect(b',', "a comma is missing")?;
    Ok(((key, value), true))
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

fn write_storable(text: &str, out: &mut String) {
    match text.contains(NOT_IN_TEXT) {
        true => write_string(&text.replace(NOT_IN_TEXT, ""), out),
        false => write_string(text, out),
    }
}

/// Appends the compact text of any value. What no text of the warehouse can hold is left out of its
/// strings. `drop_hints` leaves out type hints of objects that are
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
                write_storable(&plain, out);
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
        write_storable(key, out);
        out.push(':');
        compact(value, drop_hints, depth + 1, out)?;
    }
    out.push('}');
    Ok(())
}

/// Entries of an object where a repeated key keeps its first position and its last value.
pub(super) fn last_values(object: &str) -> Result<Vec<(Cow<'_, str>, &str)>, RowError> {
    let mut kept: Vec<(Cow<'_, str>, &str)> = Vec::new();
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
            (r#"[{"\ud83d":1}, "\ud83d"]"#, "[{\"\u{fffd}\":1},\"\u{fffd}\"]"),
            (r#"["a\u0000b", {"\u0000c":"\\u0000"}]"#, r#"["ab",{"c":"\\u0000"}]"#),
            (r#"["\u0041\/<>&\u0001é"]"#, "[\"A/<>&\\u0001é\"]"),
            (r#"["a\"b\\c\n"]"#, r#"["a\"b\\c\n"]"#),
            (r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#),
        ];
        for (value, expected) in cases {
            assert_eq!(compacted(value), expected, "{value}");
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
