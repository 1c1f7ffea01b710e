//! `POST /test`: can a destination of these credentials be opened?
//!
//! Invariants: no reply and no log line quotes what was sent; it holds a password. A sender learns
//! whether a PostgreSQL takes these credentials and, where one answers, its reason; of this machine
//! and of its network it learns nothing: no file and no socket here is opened, and all that keeps
//! a server from answering is one sentence, whichever port, host or protocol it was.

use std::{sync::Arc, time::Duration};

use appbase::{
    http::{BodyError, error_reply, json_reply, read_body},
    telemetry::chain,
};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use tracing::info;
use warehouse::{Kind, LoadError, Warehouse};

use crate::{
    routes::{
        Authorized,
        encoding::{PackedBody, check_unpacked},
    },
    state::TestState,
};

/// How long a destination may take to answer, the wait for others included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no destination.
#[derive(Debug, thiserror::Error)]
pub(in crate::routes) enum TestError {
    #[error(transparent)]
    Packed(#[from] PackedBody),
    #[error("error reading HTTP body: {0}")]
    Body(#[from] BodyError),
    #[error("parse failed: {0}")]
    Parse(String),
    #[error("error creating bulker: {0}")]
    Open(String),
    /// Nobody there, nobody who may be reached from here, or nobody who speaks the protocol.
    #[error("error creating bulker: no PostgreSQL answered at this host and port")]
    NoAnswer,
}

impl From<LoadError> for TestError {
    fn from(error: LoadError) -> TestError {
        match &error {
            LoadError::Connection { reason } => {
                info!(reason, "destination that is tried does not answer");
                TestError::NoAnswer
            }
            _ => TestError::Open(chain(&error).to_string()),
        }
    }
}

impl IntoResponse for TestError {
    fn into_response(self) -> Response {
        let status = match &self {
            TestError::Packed(_) => return PackedBody.into_response(),
            TestError::Body(BodyError::Read(_)) => StatusCode::BAD_REQUEST,
            TestError::Body(BodyError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            TestError::Body(BodyError::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            TestError::Parse(_) | TestError::Open(_) | TestError::NoAnswer => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
        };
        error_reply(status, &self.to_string())
    }
}

/// Answers 200 `{"ok":true}` once the destination has answered. No table is touched.
pub(in crate::routes) async fn test(
    _: Authorized,
    State(state): State<Arc<TestState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, TestError> {
    check_unpacked(&headers)?;
    let body = read_body(body, state.body_limits).await?;
    let (kind, credentials) = parse(&body)?;
    let Some(kind) = Kind::parse(&kind) else {
        return Err(TestError::Open(format!("unknown bulker implementation type: {kind}")));
    };
    let probe = async {
        // never closed; without a permit it would be one more, no harm
        let _permit = state.permits.acquire().await.ok();
        Warehouse::probe(kind, &credentials).await
    };
    tokio::time::timeout(PATIENCE, probe).await.map_err(|_| TestError::NoAnswer)??;
    Ok(json_reply(StatusCode::OK, &json!({ "ok": true })))
}

/// The type and, with all else, the credentials: they stand on the same level.
fn parse(body: &[u8]) -> Result<(String, Value), TestError> {
    let failed = |reason: &str| TestError::Parse(reason.to_owned());
    let object: Map<String, Value> = match body.first() {
        None => return Err(failed("failed to parse. input data is empty")),
        Some(b'{') => serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            TestError::Parse(format!("not a JSON object at line {line}, column {column}"))
        })?,
        // the parser's own words show the place with what stands there
        Some(_) => serde_saphyr::from_slice(body).map_err(|_| failed("not a YAML object"))?,
    };
    if !matches!(object.get("id"), None | Some(Value::Null | Value::String(_))) {
        return Err(failed("id is not a string"));
    }
    let Some(Value::String(kind)) = object.get("destinationType") else {
        return Err(failed("destinationType is not a string"));
    };
    Ok((kind.clone(), Value::Object(object)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_are_read() {
        for body in [
            r#"{"id":"a","destinationType":"postgres","host":"h"}"#,
            "id: a\ndestinationType: postgres\nhost: h\n",
        ] {
            let (kind, credentials) = parse(body.as_bytes()).unwrap();
            assert_eq!((kind.as_str(), &credentials["host"]), ("postgres", &json!("h")));
        }
    }

    #[test]
    fn nesting_without_end_is_refused() {
        for body in
            ["{\"a\":".repeat(100_000), format!("a: {}", "[".repeat(500_000)), "- ".repeat(500_000)]
        {
            assert!(matches!(parse(body.as_bytes()), Err(TestError::Parse(_))));
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_quoting_it() {
        let cases = [
            ("", "parse failed: failed to parse. input data is empty"),
            (r#"{"password":"s3cret""#, "parse failed: not a JSON object at line 1, column 20"),
            ("s3cret", "parse failed: not a YAML object"),
            ("a: [s3cret", "parse failed: not a YAML object"),
            ("\u{ff}", "parse failed: not a YAML object"),
            (r#"{"id":5,"destinationType":"postgres"}"#, "parse failed: id is not a string"),
            (
                r#"{"id":"a","destinationType":["s3cret"]}"#,
                "parse failed: destinationType is not a string",
            ),
            (r#"{"id":"a"}"#, "parse failed: destinationType is not a string"),
        ];
        for (body, expected) in cases {
            assert_eq!(parse(body.as_bytes()).unwrap_err().to_string(), expected, "{body}");
        }
    }
}
