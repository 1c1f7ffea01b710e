//! `/ready`: may traffic come? `/health`: is the process worth keeping, and what should be known
//! about it?
//!
//! Who asks without an administrator's token learns what a probe needs; names of topics, tables and
//! hosts, and reasons, are for administrators.
//!
//! Kafka being away makes the process not ready once its events have nowhere to go, and is a detail
//! of its health: a restart would not bring Kafka back, it would only cut the requests in hand.

use std::{collections::BTreeMap, sync::Arc};

use appbase::http::json_reply;
use axum::{extract::State, http::StatusCode, response::Response};
use jiff::Timestamp;
use kafkabase::{AckMode, Spool, last_client_error};
use serde_json::{Map, Value, json};

use crate::{routes::IsAdmin, state::ProbesState};

/// Topics that a detail names at most.
const SHOWN_TOPICS: usize = 20;

/// 200 while traffic can be taken.
pub(in crate::routes) async fn ready(
    IsAdmin(is_admin): IsAdmin,
    State(state): State<Arc<ProbesState>>,
) -> Response {
    match problem(&state) {
        Some(output) => {
            let reply = json!({ "status": "fail", "output": output });
            json_reply(StatusCode::SERVICE_UNAVAILABLE, &reply)
        }
        None => json_reply(StatusCode::OK, &Value::Object(facts(&state, is_admin))),
    }
}

/// 200, for administrators with details.
pub(in crate::routes) async fn health(
    IsAdmin(is_admin): IsAdmin,
    State(state): State<Arc<ProbesState>>,
) -> Response {
    let mut reply = facts(&state, is_admin);
    if is_admin {
        reply.insert("details".to_owned(), details(&state));
    }
    json_reply(StatusCode::OK, &Value::Object(reply))
}

fn facts(state: &ProbesState, is_admin: bool) -> Map<String, Value> {
    let mut facts = Map::new();
    facts.insert("status".to_owned(), json!("pass"));
    facts.insert("producerQueueSize".to_owned(), json!(state.producer.queue_length()));
    let at = state.topics.snapshot().at.and_then(|(_, at)| Timestamp::try_from(at).ok());
    facts.insert("topicsUpdatedAt".to_owned(), json!(at.map(|at| at.to_string())));
    let loader = state.loader.borrow();
    if is_admin && !loader.stalled.is_empty() {
        facts.insert("stalledTopics".to_owned(), json!(loader.stalled));
    }
    facts
}

/// Why traffic should not come.
fn problem(state: &ProbesState) -> Option<String> {
    let looked = state.topics.snapshot().at;
    // a first look was tried; what it found, or that it found nothing, is no reason where the spool
    // takes the events
    let is_started = looked.is_some() || state.topics.is_away();
    if is_started && state.producer.spool().is_some_and(|spool| spool.status().takes) {
        return None;
    }
    let Some((looked, at)) = looked else {
        return Some("topic manager is not ready".to_owned());
    };
    if looked.elapsed() > state.topics_age_limit {
        let at = Timestamp::try_from(at).map(|at| at.to_string()).unwrap_or_default();
        return Some(format!("topic manager is outdated: {at}"));
    }
    let queued = state.producer.queue_length();
    (queued > state.producer_queue_limit).then(|| format!("producer queue size: {queued}"))
}

/// What an operator should know although the process is fine.
fn details(state: &ProbesState) -> Value {
    let mut details = Map::new();
    let mut add = |name: &str, value: Value| details.insert(name.to_owned(), value);
    if let Some(problem) = problem(state) {
        add("notReady", json!(problem));
    }
    // an error that is younger than the last look at the cluster: brokers cannot be reached, and
    // this is why
    let looked = state.topics.snapshot().at.map(|(looked, _)| looked);
    if let Some(error) = last_client_error().filter(|error| looked.is_none_or(|at| at < error.at)) {
        add("kafkaError", json!(error.reason));
    }
    if state.producer.mode() == AckMode::Async {
        add("ackMode", json!("async: an answered event may be lost"));
    }
    let blocked = state.producer.blocked_topics();
    if blocked > 0 {
        add("blockedTopics", json!(blocked));
    }
    if state.topics.is_away() {
        add("kafka", json!("does not answer"));
    }
    if let Some(spool) = state.producer.spool() {
        add("spool", spool_details(spool));
    }
    let snapshot = state.topics.snapshot();
    if snapshot.few_replicas > 0 {
        add("topicsWithFewerThanTwoReplicas", json!(snapshot.few_replicas));
    }
    if snapshot.few_in_sync > 0 {
        add("topicsWithMinInsyncReplicasBelowTwo", json!(snapshot.few_in_sync));
    }
    let configuration = state.configuration.borrow().clone();
    add("configurationSource", json!(configuration.source));
    if let Some(age) = configuration.age() {
        add("configurationAgeSeconds", json!(age.as_secs()));
    }
    if let Some(place) = configuration.copy {
        add("configurationCopy", json!(place));
    }
    if let Some(error) = configuration.error {
        add("configurationError", json!(error));
    }
    let problems = state.destinations.problems();
    if !problems.is_empty() {
        add("destinationProblems", json!(problems));
    }
    let stats = state.stats.known();
    let silent =
        stats.destinations.iter().filter_map(|(id, said)| Some((id, said.problem.as_ref()?)));
    let silent: BTreeMap<_, _> = silent.collect();
    if !silent.is_empty() {
        add("silentDestinations", json!(silent));
    }
    let at_least_once = state.stats.at_least_once();
    if !at_least_once.is_empty() {
        add("destinationsWithoutOffsets", json!(at_least_once));
    }
    if snapshot.has_pauses && !state.pauses.is_known() {
        add("pauses", json!("their topic cannot be read yet: nothing is loaded"));
    }
    let paused = state.pauses.current();
    if !paused.is_empty() {
        let since = paused.iter().map(|(id, since)| (id.clone(), json!(since.to_string())));
        add("pausedDestinations", Value::Object(since.collect()));
    }
    let loader = state.loader.borrow();
    if !loader.fenced.is_empty() {
        add("topicsLoadedByOthersToo", json!(loader.fenced));
    }
    if !loader.held.is_empty() {
        add("heldTopics", json!(loader.held));
    }
    if !loader.failing.is_empty() {
        add("failingTopics", json!(loader.failing));
    }
    if let Some(reason) = &loader.not_shared {
        add("topicsNotShared", json!(reason));
    }
    add("oldestUnloadedAgeSeconds", json!(loader.oldest_unloaded_age_seconds));
    Value::Object(details)
}

/// What is in the spool, and what Kafka refused for good.
fn spool_details(spool: &Spool) -> Value {
    let status = spool.status();
    let mut details = Map::new();
    let mut add = |name: &str, value: Value| details.insert(name.to_owned(), value);
    add("waitingEvents", json!(status.waiting));
    add("bytes", json!(status.bytes));
    add("takesEvents", json!(status.takes));
    if status.waiting > 0 {
        add("waitingTopics", json!(status.topics));
        add("oldestAgeSeconds", json!(status.oldest_age.as_secs()));
    }
    if let Some(problem) = status.problem {
        add("problem", json!(problem));
    }
    if status.quarantined > 0 {
        add("quarantinedEvents", json!(status.quarantined));
        let topics = spool.quarantined().into_iter().take(SHOWN_TOPICS);
        let reasons = topics.map(|found| (found.topic, json!(found.reasons)));
        add("quarantine", Value::Object(reasons.collect()));
    }
    Value::Object(details)
}
