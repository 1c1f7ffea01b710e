//! Destinations in Redis: the hash `enrichedConnections`, a field for each.
//!
//! Redis tells when the hash is written to; a slow look all the same finds what it did not tell. Invariant: a
//! hash that is gone without a word (Redis came back without its data) does not remove all destinations.

use std::{collections::BTreeMap, time::Duration};

use appbase::redis_client::{RedisClient, reason};
use futures_util::StreamExt;
use redis::{AsyncCommands, RedisError, aio::PubSubStream};
use serde_json::Value;
use tracing::{info, warn};

use super::ReadError;
use crate::destinations::{
    document::{Document, Found},
    parse::{Syntax, read_object},
};

const KEY: &str = "enrichedConnections";
/// Between two looks while Redis tells of changes.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// After a connection that ended, before the next one.
const SUBSCRIBE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// After an event, so that what is written together is read together.
const SETTLE: Duration = Duration::from_millis(100);
/// Events on a key, those that any command makes and those of hashes.
const EVENTS: &str = "Kgh";

pub(super) struct RedisSource {
    client: RedisClient,
    /// Between two looks while Redis does not tell.
    period: Duration,
    messages: Option<PubSubStream>,
    /// Whether Redis makes events; not where nobody may set it up.
    has_events: bool,
    /// Whether the next look is because of an event.
    is_told: bool,
    hash: Hash,
    /// Why there is no subscription, as it was logged.
    refused: Option<String>,
}

/// What is known of the hash.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hash {
    NeverSeen,
    Seen,
    /// Gone, and an event told so.
    Removed,
}

impl RedisSource {
    pub(super) fn new(client: RedisClient, period: Duration) -> RedisSource {
        RedisSource {
            client,
            period,
            messages: None,
            has_events: false,
            is_told: false,
            hash: Hash::NeverSeen,
            refused: None,
        }
    }

    pub(super) async fn read(&mut self) -> Result<Option<Document>, ReadError> {
        let read = self.read_hash().await;
        if read.is_err() {
            self.messages = None; // it may be as dead as this connection
        }
        let fields = read.map_err(|error| failed(&error))?;
        let is_told = std::mem::take(&mut self.is_told);
        self.hash = match self.hash {
            _ if !fields.is_empty() => Hash::Seen,
            Hash::Seen if is_told => Hash::Removed,
            as_before => as_before,
        };
        if fields.is_empty() && self.hash != Hash::Removed {
            return Err(ReadError::new(format!("there is no hash {KEY}")).missing());
        }
        Ok(Some(parse(fields)))
    }

    /// Waits for an event, for a new subscription, or for the next look.
    pub(super) async fn changed(&mut self) {
        if self.messages.is_none() {
            match self.subscribe().await {
                Ok(messages) => {
                    self.messages = Some(messages);
                    self.refused = None;
                }
                Err(error) => {
                    let reason = reason(&error);
                    if self.refused.as_ref() != Some(&reason) {
                        info!(error = reason, "Redis does not tell of changes");
                        self.refused = Some(reason);
                    }
                    tokio::time::sleep(self.period).await;
                }
            }
            return; // what happened before is not told
        }
        let Some(messages) = &mut self.messages else { return };
        let look = if self.has_events { SLOW_LOOK } else { self.period };
        match tokio::time::timeout(look, messages.next()).await {
            Ok(Some(_)) => {
                self.is_told = true;
                let more = async { while messages.next().await.is_some() {} };
                let _ = tokio::time::timeout(SETTLE, more).await; // its end is the point of it
            }
            Ok(None) => {
                self.messages = None;
                tokio::time::sleep(SUBSCRIBE_AGAIN_AFTER).await;
            }
            Err(_) => {}
        }
    }

    async fn read_hash(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, RedisError> {
        self.client.connect().await?.hgetall(KEY).await
    }

    async fn subscribe(&mut self) -> Result<PubSubStream, RedisError> {
        let channel = format!("__keyspace@{}__:{KEY}", self.client.database());
        let (mut sink, messages) = self.client.pubsub().await?.split();
        sink.subscribe(channel).await?;
        let enabled = self.enable_events().await;
        self.has_events = enabled.is_ok();
        if let Err(error) = enabled {
            warn!(
                error = reason(&error),
                "Redis may not be told to make events; it is looked at each period. Set \
                 notify-keyspace-events to Kgh there"
            );
        }
        Ok(messages)
    }

    /// Adds what we need to the events that Redis makes already for others.
    async fn enable_events(&self) -> Result<(), RedisError> {
        const SETTING: &str = "notify-keyspace-events";
        let mut connection = self.client.connect().await?;
        let mut get = redis::cmd("CONFIG");
        let settings: BTreeMap<String, String> =
            get.arg("GET").arg(SETTING).query_async(&mut connection).await?;
        let present = settings.get(SETTING).cloned().unwrap_or_default();
        let has = |event: char| present.contains(event) || (event != 'K' && present.contains('A'));
        let missing: String = EVENTS.chars().filter(|event| !has(*event)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg(SETTING).arg(format!("{present}{missing}"));
        set.exec_async(&mut connection).await
    }
}

fn parse(fields: BTreeMap<Vec<u8>, Vec<u8>>) -> Document {
    let found = fields.into_iter().filter_map(|(id, value)| {
        let id = String::from_utf8_lossy(&id).into_owned();
        let object = read_object(&String::from_utf8_lossy(&value), Syntax::JsonOrYaml);
        let is_for_us = object
            .as_ref()
            .map_or(true, |object| object.get("usesBulker") == Some(&Value::Bool(true)));
        let place = format!("{KEY}.{id}");
        is_for_us.then_some(Found { place, id: Some(id), object })
    });
    Document(found.collect())
}

fn failed(error: &RedisError) -> ReadError {
    let kind = if error.is_timeout() { "ERR_TIMEOUT" } else { "UNKNOWN" };
    ReadError::new(reason(error)).labelled(format!("redis error: {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_ids_and_values_json_or_yaml_of_those_that_use_bulker() {
        let fields = [
            ("a", r#"{"id":"inside","type":"postgres","usesBulker":true}"#),
            ("b", "type: postgres\nusesBulker: true\n"),
            ("c", r#"{"type":"postgres"}"#),
            ("d", r#"{"type":"postgres","usesBulker":false}"#),
            ("e", r#"{"type":"#),
            ("no id", r#"{"usesBulker":true}"#),
        ];
        let fields = fields.map(|(id, text)| (id.as_bytes().to_vec(), text.as_bytes().to_vec()));
        let document = parse(fields.into());
        let read = document.0.iter().map(|found| {
            found.config().map_or_else(|problem| problem.to_string(), |config| config.id)
        });
        let read: Vec<_> = read.collect();
        assert_eq!(read[..3], ["a", "b", "not a JSON object"]);
        assert!(read[3].starts_with("id \"no id\" cannot be part"), "{read:?}");
        assert_eq!(document.0[2].place, "enrichedConnections.e");
    }
}
