//! Write keys in logged requests: a right to read the log is none to write.

use serde_json::Value;
use serde_json::value::RawValue;

/// How a key is introduced.
const NAME: &str = "\"writeKey\"";
const MASK: &str = "***";

/// The content of an `incoming` event with the write keys in its body masked; `None` where nothing
/// is to be masked.
pub(super) fn mask_content(content: &RawValue) -> Option<String> {
    if !content.get().contains("writeKey") {
        return None;
    }
    // a number that does not fit cannot be kept beside a mask: then the content is not shown
    let mut value: Value = serde_json::from_str(content.get()).unwrap_or_default();
    if let Some(Value::String(body)) = value.get_mut("body") {
        *body = mask(body);
    }
    Some(value.to_string())
}

/// `"writeKey": "<a>:<b>"` becomes `"writeKey": "<a>:***"`, and a key without colon `"<key>***"`.
fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(NAME) {
        let (before, found) = rest.split_at(at + NAME.len());
        masked.push_str(before);
        rest = found;
        let Some(length) = introduction(rest) else { continue };
        let (introduction, value) = rest.split_at(length);
        let end = end_of_string(value);
        let (key, after) = value.split_at(end);
        masked.push_str(introduction);
        match key.split_once(':') {
            Some((public, _)) => {
                masked.push_str(public);
                masked.push(':');
            }
            None => masked.push_str(key),
        }
        masked.push_str(MASK);
        rest = after;
    }
    masked.push_str(rest);
    masked
}

/// Length of a colon and an opening quote, with white space around the colon.
fn introduction(text: &str) -> Option<usize> {
    let value = text.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    Some(text.len() - value.len())
}

/// Where a string ends that was opened: at its quote, or at the end of the text.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_part_of_a_key_is_masked() {
        let cases = [
            (r#"{"writeKey": "site:secret", "a": 1}"#, r#"{"writeKey": "site:***", "a": 1}"#),
            (r#"{"writeKey":"site:secret"}"#, r#"{"writeKey":"site:***"}"#),
            (r#"{"writeKey" : "a:b:c"}"#, r#"{"writeKey" : "a:***"}"#),
            (r#"{"writeKey": "plain"}"#, r#"{"writeKey": "plain***"}"#),
            (r#"{"writeKey": ""}"#, r#"{"writeKey": "***"}"#),
            (r#"{"writeKey": "a:s\"till secret"}"#, r#"{"writeKey": "a:***"}"#),
            (r#"{"writeKey": "a:cut off"#, r#"{"writeKey": "a:***"#),
            (r#"{"writeKey": null, "b": "x:y"}"#, r#"{"writeKey": null, "b": "x:y"}"#),
            (
                r#"[{"writeKey": "a:b"},{"writeKey": "c:d"}]"#,
                r#"[{"writeKey": "a:***"},{"writeKey": "c:***"}]"#,
            ),
            (r#"{"key": "a:b"}"#, r#"{"key": "a:b"}"#),
            ("\"writeKey\"", "\"writeKey\""),
        ];
        for (text, expected) in cases {
            assert_eq!(mask(text), expected);
        }
    }

    #[test]
    fn only_a_body_that_is_text_is_touched_and_the_order_of_fields_stays() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let masked =
            mask_content(&raw(r#"{"z":1.50,"body":"{\"writeKey\": \"a:b\"}","status":"SUCCESS"}"#));
        assert_eq!(
            masked.as_deref(),
            Some(r#"{"z":1.5,"body":"{\"writeKey\": \"a:***\"}","status":"SUCCESS"}"#)
        );
        assert_eq!(mask_content(&raw(r#"{"body":"{}"}"#)), None);
        let masked = mask_content(&raw(r#"{"body":"\"writeKey\": \"a:b\"","n":1e999}"#));
        assert_eq!(masked.as_deref(), Some("null"));
    }
}
