//! `POST /profiles/:profileBuilderId/:priority`: the id of a profile into the queue of its builder.

use std::sync::Arc;

use appbase::http::ok_message;
use axum::{
    extract::{Path, State},
    http::Uri,
    response::Response,
};
use kafkabase::{TopicId, TopicMode};

use super::post::{MADE_WITHIN, PostError};
use crate::{
    metrics::HANDLER_EVENTS,
    routes::{Authorized, query},
    state::IntakeState,
};

/// Answers 200 `{"message":"ok"}` once Kafka has the id. The builder makes its topics itself; one
/// that is not there is an answer, not a wait.
pub(in crate::routes) async fn profiles(
    _: Authorized,
    State(state): State<Arc<IntakeState>>,
    Path((builder_id, priority)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, PostError> {
    let profile_id = query::parameters(query::of(&uri))
        .find(|(name, _)| name == "profileId")
        .map(|(_, value)| value)
        .filter(|value| !value.is_empty());
    let sent = send(&state, &builder_id, &priority, profile_id.as_deref()).await;
    let mode = TopicMode::Profiles.as_str();
    // names that a client chose are labels once they are those of a topic
    let labels = match &sent {
        Ok(()) => [builder_id.as_str(), mode, &priority, "success", ""],
        Err(error) => ["", mode, "", "error", error.kind()],
    };
    HANDLER_EVENTS.with_label_values(&labels).inc();
    sent.map(|()| ok_message())
}

async fn send(
    state: &IntakeState,
    builder_id: &str,
    priority: &str,
    profile_id: Option<&str>,
) -> Result<(), PostError> {
    let topic = TopicId::new(builder_id, TopicMode::Profiles, priority, 0);
    let topic = topic.name(&state.topic_prefix)?;
    let asked = state.topics.has_profiles(&topic);
    match tokio::time::timeout(MADE_WITHIN, asked).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return Err(PostError::NoTopic(topic)),
        Ok(Err(source)) => return Err(PostError::Topic { topic, source }),
        Err(_) => return Err(PostError::TopicLater(topic)),
    }
    let key = profile_id.map(str::as_bytes);
    Ok(state.producer.send_key(&state.producer.topic(&topic), key).await?)
}
