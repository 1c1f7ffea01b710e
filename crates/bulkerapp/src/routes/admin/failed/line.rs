//! A failed event as a line of JSON: bare, as the original shows it, or with what is known of its
//! failure.

use serde::Serialize;
use serde_json::{Map, Value, json};
use warehouse::check_event;

/// Brackets that a text may have that is not JSON but may be hjson: its parser recurses.
const MOST_BRACKETS: usize = 256;

/// What is known of a failure. In JSON these fields come before the event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Details {
    pub(super) table_name: String,
    pub(super) mode: &'static str,
    /// The database's words, cut to 256 code points.
    pub(super) reason: String,
    /// How often it was sent back to its topic.
    pub(super) retries: u32,
    /// RFC 3339.
    pub(super) failed_at: Option<String>,
    /// When it is due again; `None` for a dead letter.
    pub(super) retry_at: Option<String>,
}

/// Appends the event and the line's end.
pub(super) fn write_line(value: &[u8], out: &mut Vec<u8>) {
    write_event(value, out);
    out.push(b'\n');
}

/// Appends an object of the details, with the event as `event`, and the line's end.
pub(super) fn write_detailed_line(details: &Details, value: &[u8], out: &mut Vec<u8>) {
    let mut head = serde_json::to_vec(details).expect("texts and numbers only");
    head.pop(); // the brace: the event follows as it is, with its digits and the order of its keys
    out.extend_from_slice(&head);
    out.extend_from_slice(b",\"event\":");
    write_event(value, out);
    out.extend_from_slice(b"}\n");
}

/// A JSON object keeps its digits and the order of its keys; an hjson object becomes JSON; anything
/// else becomes an object that holds it as text.
fn write_event(value: &[u8], out: &mut Vec<u8>) {
    if check_event(value).is_ok() {
        write_without_whitespace(value, out);
    } else {
        let object = hjson_object(value).map(Value::Object).unwrap_or_else(
            || json!({ "UNPARSABLE_MESSAGE": String::from_utf8_lossy(value).as_ref() }),
        );
        out.extend_from_slice(object.to_string().as_bytes());
    }
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
    fn details_come_before_the_event_as_it_is() {
        let details = Details {
            table_name: "a\"b".to_owned(),
            mode: "batch",
            reason: "too long".to_owned(),
            retries: 2,
            failed_at: Some("2025-11-24T16:00:00.123Z".to_owned()),
            retry_at: None,
        };
        let mut out = Vec::new();
        write_detailed_line(&details, b"{\"b\": 1.0}", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"tableName\":\"a\\\"b\",\"mode\":\"batch\",\"reason\":\"too long\",\"retries\":2,\
             \"failedAt\":\"2025-11-24T16:00:00.123Z\",\"retryAt\":null,\"event\":{\"b\":1.0}}\n"
        );
    }

    #[test]
    fn nesting_without_end_is_text_too() {
        let deep = [b"{a:".repeat(100_000), b"}".repeat(100_000)].concat();
        assert!(line(&deep).starts_with("{\"UNPARSABLE_MESSAGE\":\"{a:{a:"));
        let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
        assert!(line(&deep).starts_with("{\"UNPARSABLE_MESSAGE\":\"{"));
    }
}
