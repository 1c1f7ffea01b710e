//! `GET /events`: what lately passed, over all destinations, newest first.
//!
//! Invariant: a request looks at a bounded number of records and answers with a bounded number of
//! bytes; where it ends early, the cursor goes on from there. Following cursors shows every record
//! once.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderValue, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use eventslog::{EventType, Position, Query, Record, StreamName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::log::{LogError, MAX_BYTES, date};
use crate::{
    routes::{
        BodyReader,
        query::{self, ParameterError, integer, time},
    },
    state::ObserveState,
};

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
/// What destinations write.
const KINDS: [&str; 2] = [EventType::BulkerBatch.as_str(), EventType::BulkerStream.as_str()];
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// Records that are read at a time where some of them may be filtered out.
const PAGE: usize = 200;
/// Records that a request looks at.
const MAX_EXAMINED: usize = 10_000;

/// Answers with `{"events":[…],"cursor":…}`; the cursor is null where there is nothing more.
pub(in crate::routes) async fn events(
    _: BodyReader,
    State(state): State<Arc<ObserveState>>,
    uri: Uri,
) -> Result<Response, LogError> {
    let mut form = Form::read(query::of(&uri))?;
    form.query.streams = streams(&state, &form);
    // never closed; without a permit it would be one reader more, no harm
    let _permit = state.readers.acquire().await.ok();
    let mut found: Vec<(Record, Summary)> = Vec::new();
    let (mut examined, mut bytes) = (0, 0);
    let mut has_more = true;
    while has_more && found.len() < form.limit && examined < MAX_EXAMINED && bytes < MAX_BYTES {
        let wanted = if form.filters() { PAGE } else { (form.limit - found.len()).min(PAGE) };
        form.query.limit = Some(wanted);
        form.query.max_bytes = Some(MAX_BYTES - bytes);
        let page = state.events_log.read(&form.query).await?;
        has_more = page.is_cut || page.records.len() == wanted;
        for record in page.records {
            if found.len() == form.limit || bytes >= MAX_BYTES {
                has_more = true;
                break;
            }
            let stream = form.query.streams[record.stream].clone();
            form.query.after = Some(Position { id: record.id, stream });
            examined += 1;
            let summary = Summary::of(record.content.get());
            if form.admits(&summary) {
                bytes += record.content.get().len();
                found.push((record, summary));
            }
        }
    }
    let events = found.iter().map(|(record, summary)| Event::new(record, summary, &form.query));
    let cursor = form.query.after.as_ref().filter(|_| has_more).map(cursor_of);
    let reply = Reply { events: events.collect(), cursor };
    let text = serde_json::to_string(&reply).unwrap_or_default(); // texts and numbers: cannot fail
    Ok(([(CONTENT_TYPE, JSON)], text).into_response())
}

/// The streams of one destination, or of all that are configured.
fn streams(state: &ObserveState, form: &Form) -> Vec<StreamName> {
    let actors: Vec<String> = match &form.destination {
        Some(id) => vec![id.clone()],
        None => state.destinations.snapshot().iter().map(|known| known.config.id.clone()).collect(),
    };
    let kinds = KINDS.into_iter().filter(|kind| form.kind.as_ref().is_none_or(|k| k == kind));
    let of_kind = |kind: &'static str| {
        actors.iter().map(move |actor| StreamName { kind: kind.to_owned(), actor: actor.clone() })
    };
    kinds.flat_map(of_kind).collect()
}

/// What is asked for.
#[derive(Debug, Default)]
struct Form {
    destination: Option<String>,
    table: Option<String>,
    kind: Option<String>,
    only_success: bool,
    limit: usize,
    query: Query,
}

impl Form {
    fn read(text: &str) -> Result<Form, ParameterError> {
        let mut form = Form { limit: DEFAULT_LIMIT, ..Form::default() };
        for (name, value) in query::filled_parameters(text) {
            match name.as_ref() {
                "destinationId" => form.destination = Some(value.into_owned()),
                "tableName" => form.table = Some(value.into_owned()),
                "type" if KINDS.contains(&value.as_ref()) => form.kind = Some(value.into_owned()),
                "type" => {
                    return Err(ParameterError::Value("type", "bulker_batch or bulker_stream"));
                }
                "status" => match value.as_ref() {
                    "success" => form.only_success = true,
                    "error" => form.query.errors_only = true,
                    _ => return Err(ParameterError::Value("status", "success or error")),
                },
                "start" => form.query.start = time("start", &value)?,
                "end" => form.query.end = time("end", &value)?,
                "limit" => {
                    let limit = integer("limit", &value)?.and_then(|n| usize::try_from(n).ok());
                    form.limit = limit
                        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
                        .ok_or(ParameterError::Value("limit", "between 1 and 1000"))?;
                }
                "cursor" => {
                    let cursor = position_of(&value);
                    let wrong = ParameterError::Value("cursor", "the cursor of a reply");
                    form.query.after = Some(cursor.ok_or(wrong)?);
                }
                _ => {}
            }
        }
        Ok(form)
    }

    /// Whether some of the records that are read are not shown.
    fn filters(&self) -> bool {
        self.table.is_some() || self.only_success
    }

    fn admits(&self, summary: &Summary) -> bool {
        let is_table = self.table.as_ref().is_none_or(|table| summary.is_of(table));
        is_table && (!self.only_success || summary.status() == Some("success"))
    }
}

/// `<id>.<type>.<destinationId>` of the last record that was looked at.
fn cursor_of(Position { id, stream }: &Position) -> String {
    query::cursor('.', [&id.to_string(), &stream.kind, &stream.actor])
}

fn position_of(cursor: &str) -> Option<Position> {
    let [id, kind, actor] = query::cursor_fields('.', cursor)?;
    let stream = StreamName { kind: kind.to_owned(), actor: actor.to_owned() };
    Some(Position { id: id.parse().ok()?, stream })
}

/// What the bodies of both types have in common.
#[derive(Debug, Default, Deserialize)]
struct Summary {
    status: Option<String>,
    representation: Option<Representation>,
}

/// The table that an event tells about.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Representation {
    name: Option<String>,
    target_name: Option<String>,
}

impl Summary {
    /// Of a body in another shape nothing is known.
    fn of(content: &str) -> Summary {
        serde_json::from_str(content).unwrap_or_default()
    }

    fn status(&self) -> Option<&'static str> {
        match self.status.as_deref()? {
            "COMPLETED" | "SUCCESS" => Some("success"),
            "FAILED" | "ABORTED" => Some("error"),
            _ => None,
        }
    }

    /// The name of the table; a staging table stands for its target.
    fn table(&self) -> Option<&str> {
        let names = self.representation.as_ref()?;
        names.target_name.as_deref().or(names.name.as_deref())
    }

    fn is_of(&self, table: &str) -> bool {
        self.table() == Some(table)
    }
}

#[derive(Serialize)]
struct Reply<'a> {
    events: Vec<Event<'a>>,
    cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    id: String,
    date: String,
    destination_id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    status: Option<&'static str>,
    table_name: Option<&'a str>,
    content: &'a RawValue,
}

impl<'a> Event<'a> {
    fn new(record: &'a Record, summary: &'a Summary, query: &'a Query) -> Event<'a> {
        let stream = &query.streams[record.stream];
        Event {
            id: record.id.to_string(),
            date: date(record).to_string(),
            destination_id: &stream.actor,
            kind: &stream.kind,
            status: summary.status(),
            table_name: summary.table(),
            content: &record.content,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_stands_for_a_position() {
        let cursor = "1700000000000-3.bulker_batch.a.b";
        let position = position_of(cursor).unwrap();
        assert_eq!(position.stream.actor, "a.b");
        assert_eq!(cursor_of(&position), cursor);
        for text in ["", "1700000000000-3", "1700000000000-3.bulker_batch", "x.bulker_batch.a"] {
            assert_eq!(position_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_body_tells_its_status_and_its_table() {
        let cases = [
            (r#"{"status":"COMPLETED","representation":{"name":"t"}}"#, Some("success"), Some("t")),
            (
                r#"{"status":"FAILED","representation":{"name":"t_tmp","targetName":"t"}}"#,
                Some("error"),
                Some("t"),
            ),
            (r#"{"status":"ABORTED","representation":null}"#, Some("error"), None),
            (r#"{"status":"SUCCESS"}"#, Some("success"), None),
            (r#"{"status":"ACTIVE"}"#, None, None),
            (r#"{"status":1}"#, None, None),
            ("[]", None, None),
        ];
        for (content, status, table) in cases {
            let summary = Summary::of(content);
            assert_eq!((summary.status(), summary.table()), (status, table), "{content}");
        }
    }
}
