//! `GET /log/:eventType/:actorId`: one stream of the events log, newest first.
//!
//! Invariant: a reply has a bounded number of bytes, whatever its limit and however large records
//! are, and few replies are made at a time. Where one ends early, `beforeId` goes on behind it.

use std::{fmt::Write, sync::Arc};

use appbase::{http::error_reply, values::boolean};
use axum::{
    extract::{Path, State},
    http::{HeaderValue, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use eventslog::{EventType, Position, Query, Record, StoreError, StreamName};
use jiff::Timestamp;
use tracing::warn;

use super::write_keys::mask_content;
use crate::{
    routes::{
        BodyReader,
        query::{self, ParameterError, integer, time},
    },
    state::ObserveState,
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
/// Records of a reply that names no limit, or one that is too large.
const DEFAULT_LIMIT: usize = 100;
/// Records of a reply that wants all.
const ALL: usize = 10_000;
/// Bytes of contents after which a reply ends. The first record is in it, however large it is.
pub(super) const MAX_BYTES: usize = 8 << 20;
/// The first limit that is too large.
const TOO_MANY: i64 = 1000;

/// Why the log is not read.
#[derive(Debug, thiserror::Error)]
pub(in crate::routes) enum LogError {
    #[error("'eventType' must be <type>.<level>, for example bulker_batch.error")]
    EventType,
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("Failed to get events log: {0}")]
    Store(#[from] StoreError),
}

impl IntoResponse for LogError {
    fn into_response(self) -> Response {
        let status = match &self {
            LogError::Store(error) => {
                warn!(error = %error, "events log cannot be read");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            LogError::EventType | LogError::Parameter(_) => StatusCode::BAD_REQUEST,
        };
        error_reply(status, &self.to_string())
    }
}

/// Answers with an array of `{"id":…,"date":…,"content":…}`, or a line for each.
pub(in crate::routes) async fn log(
    _: BodyReader,
    State(state): State<Arc<ObserveState>>,
    Path((event_type, actor)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, LogError> {
    let (kind, level) = event_type.split_once('.').ok_or(LogError::EventType)?;
    let stream = StreamName { kind: kind.to_owned(), actor };
    let form = Form::read(query::of(&uri), stream, level == "error")?;
    // never closed; without a permit it would be one reader more, no harm
    let _permit = state.readers.acquire().await.ok();
    let records = state.events_log.read(&form.query).await?.records;
    let is_incoming = kind == EventType::Incoming.as_str();
    let lines = records.into_iter().map(|record| line(&record, is_incoming));
    let (content_type, body) = if form.is_ndjson {
        (NDJSON, within(form.max_bytes, lines, "", "\n", "\n"))
    } else {
        (JSON, within(form.max_bytes, lines, "[", ",", "]"))
    };
    Ok(([(CONTENT_TYPE, content_type)], body).into_response())
}

/// What is asked for.
struct Form {
    query: Query,
    /// 0: as many as there are.
    max_bytes: usize,
    is_ndjson: bool,
}

impl Form {
    fn read(text: &str, stream: StreamName, errors_only: bool) -> Result<Form, ParameterError> {
        let mut form = Form {
            query: Query {
                errors_only,
                limit: Some(DEFAULT_LIMIT),
                max_bytes: Some(MAX_BYTES),
                ..Query::default()
            },
            max_bytes: 0,
            is_ndjson: false,
        };
        for (name, value) in query::parameters(text) {
            match name.as_ref() {
                "maxBytes" => {
                    let bytes = integer("maxBytes", &value)?.unwrap_or(0);
                    form.max_bytes = usize::try_from(bytes).unwrap_or(0);
                }
                "start" => form.query.start = time("start", &value)?,
                "end" => form.query.end = time("end", &value)?,
                "limit" => form.query.limit = Some(limit(integer("limit", &value)?)),
                "beforeId" if !value.is_empty() => {
                    let wrong = ParameterError::Value("beforeId", "the id of a record");
                    let id = value.parse().map_err(|_| wrong)?;
                    form.query.after = Some(Position { id, stream: stream.clone() });
                }
                "ndjson" => form.is_ndjson = boolean(&value).unwrap_or(false),
                _ => {}
            }
        }
        form.query.streams = vec![stream];
        Ok(form)
    }
}

/// Zero and less are no limit of the sender's.
fn limit(asked: Option<i64>) -> usize {
    match asked {
        None | Some(TOO_MANY..) => DEFAULT_LIMIT,
        Some(limit) => usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(ALL),
    }
}

fn line(record: &Record, is_incoming: bool) -> String {
    let content = record.content.get();
    let masked = is_incoming.then(|| mask_content(&record.content)).flatten();
    let content = masked.as_deref().unwrap_or(content);
    let mut line = String::with_capacity(content.len() + 80);
    // writing to a string cannot fail
    let _ =
        write!(line, r#"{{"id":"{}","date":"{}","content":{content}}}"#, record.id, date(record));
    line
}

/// When a record was stored.
pub(super) fn date(record: &Record) -> Timestamp {
    let millis = i64::try_from(record.id.millis).unwrap_or_default();
    Timestamp::from_millisecond(millis).unwrap_or_default()
}

/// Lines with `between` them, up to the first one that would make the reply too large.
fn within(
    max_bytes: usize,
    lines: impl Iterator<Item = String>,
    open: &str,
    between: &str,
    close: &str,
) -> String {
    let mut text = String::from(open);
    let mut bytes = 0;
    for line in lines {
        if max_bytes > 0 && bytes + line.len() > max_bytes {
            break;
        }
        if bytes > 0 {
            text.push_str(between);
        }
        bytes += line.len() + 1;
        text.push_str(&line);
    }
    if bytes > 0 || !open.is_empty() {
        text.push_str(close);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_below_a_thousand_and_zero_is_all() {
        let cases = [
            (None, 100),
            (Some(1000), 100),
            (Some(999), 999),
            (Some(1), 1),
            (Some(0), ALL),
            (Some(-1), ALL),
        ];
        for (asked, expected) in cases {
            assert_eq!(limit(asked), expected, "{asked:?}");
        }
    }

    #[test]
    fn a_reply_ends_before_the_record_that_is_too_much() {
        let lines = || ["aaaa", "bbbb", "cc"].map(str::to_owned).into_iter();
        let array = |max_bytes| within(max_bytes, lines(), "[", ",", "]");
        assert_eq!(array(0), "[aaaa,bbbb,cc]");
        assert_eq!(array(12), "[aaaa,bbbb,cc]");
        assert_eq!(array(11), "[aaaa,bbbb]");
        assert_eq!(array(9), "[aaaa,bbbb]");
        assert_eq!(array(8), "[aaaa]");
        assert_eq!(array(3), "[]");
        let text = |max_bytes| within(max_bytes, lines(), "", "\n", "\n");
        assert_eq!(text(0), "aaaa\nbbbb\ncc\n");
        assert_eq!(text(9), "aaaa\nbbbb\n");
        assert_eq!(text(3), "");
    }
}
