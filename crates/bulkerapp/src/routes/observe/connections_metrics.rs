//! `GET /connections-metrics/:workspaceId`: queues and statuses of a workspace's connections, from
//! Prometheus.

use std::sync::Arc;

use appbase::{http::error_reply, telemetry::chain};
use axum::{
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};

use crate::{routes::Authorized, state::ObserveState};

/// Bytes of the shortest id of a workspace.
const SHORTEST_ID: usize = 10;
/// Bytes of an answer that are passed on at most.
const LARGEST_ANSWER: usize = 64 << 20;

/// Why there is no answer. No text holds the address: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub(in crate::routes) enum AskError {
    #[error("invalid workspaceId")]
    Id,
    #[error("failed to get queue sizes: PROMETHEUS_URL is not set")]
    NoPrometheus,
    #[error("failed to get queue sizes: {}", chain(.0))]
    Send(reqwest::Error),
    #[error("failed to get queue sizes: {0}")]
    Status(reqwest::StatusCode),
    #[error("failed to read response: {}", chain(.0))]
    Read(reqwest::Error),
    #[error("failed to read response: more than {LARGEST_ANSWER} bytes")]
    TooLarge,
}

impl IntoResponse for AskError {
    fn into_response(self) -> Response {
        let status = match &self {
            AskError::Id => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        error_reply(status, &self.to_string())
    }
}

/// Answers what Prometheus answers.
pub(in crate::routes) async fn connections_metrics(
    _: Authorized,
    State(state): State<Arc<ObserveState>>,
    Path(workspace_id): Path<String>,
) -> Result<Response, AskError> {
    if workspace_id.len() < SHORTEST_ID {
        return Err(AskError::Id);
    }
    let answer = ask(&state, &workspace_id).await?;
    Ok(([(CONTENT_TYPE, "application/json")], answer).into_response())
}

async fn ask(state: &ObserveState, workspace_id: &str) -> Result<Vec<u8>, AskError> {
    if state.prometheus_url.is_empty() {
        return Err(AskError::NoPrometheus);
    }
    let sent = state.http.get(url_of(&state.prometheus_url, workspace_id)).send().await;
    let mut answer = sent.map_err(|error| AskError::Send(error.without_url()))?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(AskError::Status(answer.status()));
    }
    let mut body = Vec::new();
    loop {
        let chunk = answer.chunk().await;
        let Some(chunk) = chunk.map_err(|error| AskError::Read(error.without_url()))? else {
            return Ok(body);
        };
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(AskError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
}

fn url_of(prometheus: &str, workspace_id: &str) -> String {
    let url = format!("{}/api/v1/query?", prometheus.trim_end_matches('/'));
    let query_at = url.len();
    form_urlencoded::Serializer::for_suffix(url, query_at)
        .append_pair("query", &promql(workspace_id))
        .finish()
}

/// The query. Ids of connections begin with their workspace's.
fn promql(workspace_id: &str) -> String {
    let destinations = promql_text(&format!("{}-.*", regex_text(workspace_id)));
    format!(
        "max(bulkerapp_consumer_queue_size{{destinationId=~\"{destinations}\"}}) \
         by (__name__, destinationId, mode, tableName) or \
         sum(connection_message_statuses{{destinationId=~\"{destinations}\"}}) \
         by (__name__, destinationId, tableName, status)"
    )
}

/// The text as a regular expression that matches nothing else.
fn regex_text(text: &str) -> String {
    escaped(text, |character| r"\.+*?()|[]{}^$".contains(character))
}

/// The text as it stands between the quotes of a query.
fn promql_text(text: &str) -> String {
    escaped(text, |character| character == '\\' || character == '"').replace('\n', "\\n")
}

fn escaped(text: &str, needs_it: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if needs_it(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_stands_in_both_parts_of_the_query() {
        assert_eq!(
            promql("workspace-1"),
            "max(bulkerapp_consumer_queue_size{destinationId=~\"workspace-1-.*\"}) by (__name__, \
             destinationId, mode, tableName) or sum(connection_message_statuses{destinationId=~\
             \"workspace-1-.*\"}) by (__name__, destinationId, tableName, status)"
        );
    }

    #[test]
    fn the_address_may_have_a_path_and_a_slash_at_its_end() {
        for base in ["http://p:9090/prom", "http://p:9090/prom/"] {
            let url = url_of(base, "workspace-1");
            assert!(url.starts_with("http://p:9090/prom/api/v1/query?query=max%28bulker"), "{url}");
        }
    }

    #[test]
    fn an_id_cannot_leave_its_place() {
        let query = promql("x\"} or up{a=~\".*");
        assert!(query.contains(r#"{destinationId=~"x\"\\} or up\\{a=~\"\\.\\*-.*"}"#), "{query}");
        assert_eq!(promql_text(&regex_text("a\\b\nc")), r"a\\\\b\nc");
    }
}
