//! Reading the table. It has no ids: a hash of the event tells those of one millisecond apart.
//!
//! Invariant: an answer has few records, whatever is asked for: the server does not know how many
//! bytes a reader wants.

use std::{borrow::Cow, collections::HashMap};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::ClickHouseLog;
use crate::{
    LogMetrics, StoreError,
    record::{Found, Position, Query, Record, RecordId},
};

/// A statement about many destinations is long.
const SETTINGS: [(&str, &str); 2] =
    [("max_query_size", "16777216"), ("output_format_json_quote_64bit_integers", "0")];

/// Records of one answer.
const PAGE: usize = 32;

/// A row as [`select`] asks for it: time, hash, kind, actor, event.
#[derive(Debug, Deserialize)]
struct Row<'a>(u64, u64, #[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>, String);

impl ClickHouseLog {
    pub(crate) async fn read(
        &self,
        query: &Query,
        metrics: &LogMetrics,
    ) -> Result<Found, StoreError> {
        let (mut found, mut bytes) = (Found::default(), 0);
        let mut next = query.clone();
        if query.streams.is_empty() || query.limit == Some(0) {
            return Ok(found);
        }
        loop {
            let left = query.limit.map_or(PAGE, |limit| limit - found.records.len());
            let count = left.min(PAGE);
            next.limit = Some(count);
            let page = self.page(&next, metrics).await?;
            let is_last = page.len() < count;
            next.after = page
                .last()
                .map(|last| Position { id: last.id, stream: query.streams[last.stream].clone() });
            for record in page {
                if !found.push(record, query, &mut bytes) {
                    return Ok(found);
                }
            }
            if is_last {
                return Ok(found);
            }
        }
    }

    /// So many records as the query's limit says.
    async fn page(&self, query: &Query, metrics: &LogMetrics) -> Result<Vec<Record>, StoreError> {
        let answer = self.call(&SETTINGS, select(query).into_bytes()).await?;
        let streams: HashMap<_, _> = query
            .streams
            .iter()
            .enumerate()
            .map(|(i, s)| ((s.kind.as_str(), s.actor.as_str()), i))
            .collect();
        let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let record = |line| -> Option<Record> {
            let Row(millis, number, kind, actor, message) = serde_json::from_slice(line).ok()?;
            let stream = *streams.get(&(kind.as_ref(), actor.as_ref()))?;
            let content = RawValue::from_string(message).ok();
            Some(Record::new(stream, RecordId { millis, number }, content, metrics))
        };
        lines
            .map(|line| {
                record(line).ok_or(StoreError::ClickHouse("answered other rows".to_owned()))
            })
            .collect()
    }
}

fn select(query: &Query) -> String {
    let streams: Vec<_> = query
        .streams
        .iter()
        .map(|stream| format!("({}, {})", quote(&stream.actor), quote(&stream.kind)))
        .collect();
    let mut conditions = vec![format!("(actorId, type) in ({})", streams.join(", "))];
    if query.errors_only {
        conditions.push("level = 'error'".to_owned());
    }
    let after = query.after.as_ref();
    let before = after.and_then(|after| i64::try_from(after.id.millis).ok());
    let at = |operator, millis| {
        format!("timestamp {operator} fromUnixTimestamp64Milli(toInt64({millis}))")
    };
    conditions.extend(query.start.map(|start| at(">=", start)));
    conditions.extend(query.end.map(|end| at("<=", end)));
    conditions.extend(before.map(|before| at("<=", before)));
    conditions.extend(after.map(|after| {
        let (id, stream) = (after.id, &after.stream);
        let (kind, actor) = (quote(&stream.kind), quote(&stream.actor));
        format!("(millis, number, type, actorId) < ({}, {}, {kind}, {actor})", id.millis, id.number)
    }));
    let limit = query.limit.map(|limit| format!(" limit {limit}")).unwrap_or_default();
    format!(
        "select toUnixTimestamp64Milli(timestamp) as millis, cityHash64(message) as number, type, actorId, \
         toValidUTF8(message) from events_log where {} order by millis desc, number desc, type desc, actorId desc{limit} \
         format JSONCompactEachRow",
        conditions.join(" and ")
    )
}

/// A text as a literal.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::StreamName;

    #[test]
    fn a_text_cannot_leave_its_literal() {
        assert_eq!(quote(r"a'b\"), r"'a\'b\\'");
        assert_eq!(quote(r"\'; drop table x --"), r"'\\\'; drop table x --'");
    }

    #[test]
    fn a_statement_has_the_conditions_that_are_asked_for() {
        let stream = StreamName { kind: "bulker_batch".to_owned(), actor: "d'1".to_owned() };
        let mut query = Query { streams: vec![stream.clone()], ..Query::default() };
        let start = "select toUnixTimestamp64Milli(timestamp) as millis, cityHash64(message) as number, type, \
             actorId, toValidUTF8(message) from events_log where (actorId, type) in (('d\\'1', 'bulker_batch'))";
        let order = "order by millis desc, number desc, type desc, actorId desc";
        assert_eq!(select(&query), format!("{start} {order} format JSONCompactEachRow"));
        let id = RecordId { millis: 1_700_000_000_001, number: u64::MAX };
        query = Query {
            errors_only: true,
            start: Some(1_700_000_000_000),
            end: Some(1_700_000_000_009),
            after: Some(Position { id, stream }),
            limit: Some(100),
            ..query
        };
        assert_eq!(
            select(&query),
            format!(
                "{start} and level = 'error' \
                 and timestamp >= fromUnixTimestamp64Milli(toInt64(1700000000000)) \
                 and timestamp <= fromUnixTimestamp64Milli(toInt64(1700000000009)) \
                 and timestamp <= fromUnixTimestamp64Milli(toInt64(1700000000001)) \
                 and (millis, number, type, actorId) < (1700000000001, 18446744073709551615, 'bulker_batch', 'd\\'1') \
                 {order} limit 100 format JSONCompactEachRow"
            )
        );
    }
}
