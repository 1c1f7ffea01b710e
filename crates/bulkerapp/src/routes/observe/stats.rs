//! `GET /stats` and `GET /stats/:destinationId`: what became of all events, from the offsets rows.
//!
//! Invariant: a reply is bounded. Destinations and tables come in the order of their names; where a
//! reply ends early, its cursor goes on behind the last table.

use std::{ops::Bound, sync::Arc};

use appbase::http::{error_reply, json_reply};
use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use loader::{DestinationStats, StatsSnapshot, TableStats};
use serde_json::{Map, Value, json};

use crate::{
    routes::{
        Authorized, IsAdmin,
        query::{self, ParameterError},
    },
    state::ObserveState,
};

/// Tables, and destinations without one, of a reply that names no limit, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// What users learn of a database that does not tell.
const UNSAID: &str = "the database did not tell; /health has the reason, for administrators";

/// Of all destinations.
pub(in crate::routes) async fn all_stats(
    _: Authorized,
    is_admin: IsAdmin,
    State(state): State<Arc<ObserveState>>,
    uri: Uri,
) -> Response {
    reply(&state, is_admin, query::of(&uri), None).await
}

/// Of one destination. 404 where it is not configured, or not one that is loaded.
pub(in crate::routes) async fn stats_of_one(
    _: Authorized,
    is_admin: IsAdmin,
    State(state): State<Arc<ObserveState>>,
    Path(destination_id): Path<String>,
    uri: Uri,
) -> Response {
    reply(&state, is_admin, query::of(&uri), Some(&destination_id)).await
}

async fn reply(
    state: &ObserveState,
    IsAdmin(is_admin): IsAdmin,
    query: &str,
    only: Option<&str>,
) -> Response {
    let page = match Page::read(query, only) {
        Ok(page) => page,
        Err(error) => return error.into_response(),
    };
    let snapshot = state.stats.latest().await;
    if snapshot.is_kafka_unknown {
        let problem = "Kafka did not say yet which cluster it is";
        return error_reply(StatusCode::SERVICE_UNAVAILABLE, problem);
    }
    if let Some(id) = only.filter(|id| !snapshot.destinations.contains_key(*id)) {
        return error_reply(StatusCode::NOT_FOUND, &format!("destination not found: {id}"));
    }
    let paused = state.pauses.current();
    let body = page.of(&snapshot, is_admin, |id| paused.get(id).map(ToString::to_string));
    json_reply(StatusCode::OK, &body)
}

/// The part that is asked for.
struct Page<'a> {
    only: Option<&'a str>,
    limit: usize,
    /// The destination and the table that the previous reply ended with.
    after: Option<(String, String)>,
}

impl<'a> Page<'a> {
    fn read(query: &str, only: Option<&'a str>) -> Result<Page<'a>, ParameterError> {
        let mut page = Page { only, limit: DEFAULT_LIMIT, after: None };
        for (name, value) in query::filled_parameters(query) {
            match name.as_ref() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                    let wrong = ParameterError::Value("limit", "a number from 1 to 1000");
                    page.limit = limit.ok_or(wrong)?;
                }
                "cursor" => {
                    let wrong = ParameterError::Value("cursor", "one of a reply");
                    let [id, table] = query::cursor_fields('/', &value).ok_or(wrong)?;
                    page.after = Some((id.to_owned(), table.to_owned()));
                }
                _ => {}
            }
        }
        Ok(page)
    }

    fn of(
        &self,
        snapshot: &StatsSnapshot,
        is_admin: bool,
        paused_since: impl Fn(&str) -> Option<String>,
    ) -> Value {
        let mut destinations = Vec::new();
        let mut count = 0;
        let mut cursor = None;
        let first = self.after.as_ref().map_or("", |(id, _)| id.as_str());
        for (id, said) in
            snapshot.destinations.range::<str, _>((Bound::Included(first), Bound::Unbounded))
        {
            if self.only.is_some_and(|only| only != id) {
                continue;
            }
            let after =
                self.after.as_ref().filter(|(at, _)| at == id).map(|(_, table)| table.as_str());
            let start = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = said.tables.range::<str, _>((start, Bound::Unbounded));
            let room = self.limit - count;
            let tables: Vec<_> = rest.by_ref().take(room).collect();
            if tables.is_empty() && (after.is_some() || room == 0) {
                if room == 0 {
                    break;
                }
                continue; // the previous reply had all of it
            }
            count += tables.len().max(1);
            let last = tables.last().map_or("", |(table, _)| table.as_str());
            cursor = Some(query::cursor('/', [id, last]));
            destinations.push(destination(id, said, is_admin, &tables, paused_since(id)));
            if count == self.limit {
                break;
            }
        }
        let has_more = count == self.limit;
        json!({
            "at": snapshot.at.map(|(_, at)| at.to_string()),
            "destinations": destinations,
            "cursor": cursor.filter(|_| has_more),
        })
    }
}

fn destination(
    id: &str,
    said: &DestinationStats,
    is_admin: bool,
    tables: &[(&String, &TableStats)],
    paused_since: Option<String>,
) -> Value {
    let mut value = Map::new();
    value.insert("destinationId".to_owned(), json!(id));
    value.insert("hasOffsets".to_owned(), json!(said.has_rows));
    if let Some(problem) = &said.problem {
        // it names hosts, users and databases
        let problem = if is_admin { problem } else { UNSAID };
        value.insert("problem".to_owned(), json!(problem));
    }
    if let Some(since) = paused_since {
        value.insert("pausedSince".to_owned(), json!(since));
    }
    let tables: Vec<Value> = tables.iter().map(|(name, events)| table(name, events)).collect();
    value.insert("tables".to_owned(), Value::Array(tables));
    Value::Object(value)
}

fn table(name: &str, events: &TableStats) -> Value {
    json!({
        "tableName": name,
        "received": events.received,
        "loaded": events.loaded,
        "merged": events.merged,
        "waitingForRetry": events.waiting,
        "dead": events.dead,
        "backlog": events.backlog,
        "lastEventAt": events.last_event_at.map(|at| at.to_string()),
        "updatedAt": events.updated_at.map(|at| at.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> StatsSnapshot {
        let with = |tables: &[&str]| DestinationStats {
            tables: tables.iter().map(|t| ((*t).to_owned(), TableStats::default())).collect(),
            ..DestinationStats::default()
        };
        let destinations = [("a", with(&["1", "2", "3"])), ("b", with(&[])), ("c", with(&["1"]))];
        let destinations = destinations.map(|(id, said)| (id.to_owned(), said)).into();
        StatsSnapshot { destinations, ..StatsSnapshot::default() }
    }

    /// What a page names, and its cursor.
    fn page(query: &str, only: Option<&str>) -> (String, Option<String>) {
        let value = Page::read(query, only).unwrap().of(&snapshot(), true, |_| None);
        let mut names = String::new();
        for destination in value["destinations"].as_array().unwrap() {
            names.push_str(destination["destinationId"].as_str().unwrap());
            for table in destination["tables"].as_array().unwrap() {
                names.push_str(table["tableName"].as_str().unwrap());
            }
        }
        (names, value["cursor"].as_str().map(str::to_owned))
    }

    #[test]
    fn following_cursors_names_each_table_and_destination_once() {
        assert_eq!(page("", None), ("a123bc1".to_owned(), None));
        for limit in 1..7 {
            let (mut all, mut cursor) = page(&format!("limit={limit}"), None);
            while let Some(at) = cursor {
                let (more, next) = page(&format!("limit={limit}&cursor={at}"), None);
                (all, cursor) = (format!("{all}{more}"), next);
            }
            // a destination whose tables lie on several pages is named on each
            assert_eq!(all.replace('a', ""), "123bc1", "limit {limit}: {all}");
        }
    }

    #[test]
    fn one_destination_alone_has_pages_too() {
        assert_eq!(page("limit=2", Some("a")), ("a12".to_owned(), Some("a/2".to_owned())));
        assert_eq!(page("limit=2&cursor=a/2", Some("a")), ("a3".to_owned(), None));
    }

    #[test]
    fn a_wrong_limit_or_cursor_is_said() {
        let limit = "'limit' parameter must be a number from 1 to 1000";
        let cursor = "'cursor' parameter must be one of a reply";
        let cases = [
            ("limit=0", limit),
            ("limit=1001", limit),
            ("limit=x&limit=5&cursor=x", limit),
            ("cursor=x&limit=x", cursor),
        ];
        for (query, expected) in cases {
            let error = Page::read(query, None).map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{query}");
        }
    }
}
