//! A failed event as a line of JSON.

use serde_json::{Map, Value, json};
use warehouse::check_event;

/// Brackets that a text may have that is not JSON but may be hjson: its parser recurses.
const MOST_BRACKETS: usize = 256;

/// Appends the event and the line's end. A JSON object keeps its digits and the order of its keys; an hjson object
/// becomes JSON; anything else becomes an object that holds it as text.
pub(super) fn write_line(value: &[u8], out: &mut Vec<u8>) {
    if check_event(value).is_ok() {
        write_without_whitespace(value, out);
    } else {
        let object = hjson_object(value).map(Value::Object).unwrap_or_else(
            || json!({ "UNPARSABLE_MESSAGE": String::from_utf8_lossy(value).as_ref() }),
        );
        out.extend_from_slice(object.to_string().as_bytes());
    }
    out.push(b'\n');
}

/// `json` is JSON.
fn write_without_whitespace(json: &[u8], out: &mut Vec<u8>) {
    let (mut in_string, mut is_escaped) = (false, false);
    for byte in json {
        if in_string {
            in_string = is_escaped || *byte != b'"';
            is_escaped = !is_escaped && *byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            in_string = *byte == b'"';
        }
        out.push(*byte);
    }
}

fn hjson_object(value: &[u8]) -> Option<Map<String, Value>> {
    let text = std::str::from_utf8(value).ok()?;
    let brackets = value.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    if brackets > MOST_BRACKETS {
        return None;
    }
    deser_hjson::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: &[u8]) -> String {
        let mut out = Vec::new();
        write_line(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_json_object_stays_as_it_is_but_for_whitespace() {
        let value = b" {\"b\" : 1.0,\r\n\t\"a\": \"x \\\" y \\\\\", \"n\": 12345678901234567890, \"a\": [ ] } ";
        assert_eq!(
            line(value),
            "{\"b\":1.0,\"a\":\"x \\\" y \\\\\",\"n\":12345678901234567890,\"a\":[]}\n"
        );
    }

    #[test]
    fn an_hjson_object_becomes_json() {
        assert_eq!(line(b"{\n  a: 1 # one\n  b: x y\n}"), "{\"a\":1,\"b\":\"x y\"}\n");
    }

    #[test]
    fn anything_else_is_kept_as_text() {
        assert_eq!(line(b"[1,\n2]"), "{\"UNPARSABLE_MESSAGE\":\"[1,\\n2]\"}\n");
        assert_eq!(line(b"{\"a\":"), "{\"UNPARSABLE_MESSAGE\":\"{\\\"a\\\":\"}\n");
        assert_eq!(line(b"\xff"), "{\"UNPARSABLE_MESSAGE\":\"\u{fffd}\"}\n");
    }

    #[test]
    fn nesting_without_end_is_text_too() {
        let deep = [b"{a:".repeat(100_000), b"}".repeat(100_000)].concat();
        assert!(line(&deep).starts_with("{\"UNPARSABLE_MESSAGE\":\"{a:{a:"));
        let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
        assert!(line(&deep).starts_with("{\"UNPARSABLE_MESSAGE\":\"{"));
    }
}
