//! Replies: compact JSON, with sorted keys unless said otherwise, safe inside HTML.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// A reply with this value as JSON.
pub fn json_reply(status: StatusCode, value: &Value) -> Response {
    let mut text = String::new();
    write_value(value, &mut text);
    reply(status, Body::from(text))
}

/// A reply with this value as JSON, its keys in the order in which the value writes them. Fails
/// where the value cannot be written, a map with keys that are no texts, say.
pub fn ordered_json_reply(
    status: StatusCode,
    value: &impl Serialize,
) -> serde_json::Result<Response> {
    let mut text = String::new();
    write_escaped(&serde_json::to_string(value)?, &mut text);
    Ok(reply(status, Body::from(text)))
}

/// A reply of the shape `{"error":"<text>"}`.
pub fn error_reply(status: StatusCode, text: &str) -> Response {
    json_reply(status, &serde_json::json!({ "error": text }))
}

/// 200 `{"message":"ok"}`.
pub fn ok_message() -> Response {
    reply(StatusCode::OK, Body::from(r#"{"message":"ok"}"#))
}

/// What an unknown path or a wrong method gets.
pub fn not_found() -> Response {
    (StatusCode::NOT_FOUND, [(CONTENT_TYPE, "text/plain")], "404 page not found").into_response()
}

fn reply(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn write_value(value: &Value, out: &mut String) {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_escaped(&Value::from(key.as_str()).to_string(), out);
                out.push(':');
                write_value(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(item, out);
            }
            out.push(']');
        }
        scalar => write_escaped(&scalar.to_string(), out),
    }
}

/// Escapes what would mean something to a browser that takes the reply for a page. Outside of
/// strings none of these characters occurs.
fn write_escaped(json: &str, out: &mut String) {
    for character in json.chars() {
        match character {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_ordered_reply_keeps_the_order_and_is_as_safe() {
        let value = json!({"b": "<&>", "a": {"z": 1, "y": 2}});
        let response = ordered_json_reply(StatusCode::OK, &value).unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json; charset=utf-8");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"b":"\u003c\u0026\u003e","a":{"z":1,"y":2}}"#.as_bytes());
    }

    #[test]
    fn keys_are_sorted_and_html_is_escaped() {
        let mut text = String::new();
        write_value(
            &json!({"b": [1, {"z": null, "a": "<&>"}], "a": "é \"x\" \u{2028}"}),
            &mut text,
        );
        assert_eq!(text, r#"{"a":"é \"x\" \u2028","b":[1,{"a":"\u003c\u0026\u003e","z":null}]}"#);
    }
}
