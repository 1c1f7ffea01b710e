//! A document in Redis: all fields of a hash.
//!
//! Redis makes an event when the hash is written to; a slow look all the same finds what came
//! without one. Invariant: a hash that is gone without an event (Redis came back without its data)
//! is a failure, not an empty document.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use redis::{AsyncCommands, RedisError, aio::PubSubStream};
use tracing::{info, warn};

use super::source::{Document, Source, SourceReadError};
use crate::redis_client::{RedisClient, reason};

/// Between two looks while Redis makes events.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// After a connection that ended, before the next one.
const SUBSCRIBE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// After an event, so that what is written together is read together.
const SETTLE: Duration = Duration::from_millis(100);
/// Events on a key, those that any command makes and those of hashes.
const EVENTS: &str = "Kgh";

/// The fields of a hash, in the order of their names.
pub type HashFields = BTreeMap<Vec<u8>, Vec<u8>>;

/// A hash that is read after an event that it was written to, and once a minute in any case; each
/// period where Redis makes no events and its settings may not be changed. A hash that was never
/// there is [`SourceReadError::missing`].
pub struct RedisHashSource<D> {
    client: RedisClient,
    key: &'static str,
    /// Between two looks while Redis makes no events.
    period: Duration,
    parse: fn(HashFields) -> Result<D, String>,
    messages: Option<PubSubStream>,
    /// Whether Redis makes events; not where its settings may not be changed.
    has_events: bool,
    /// Whether the next look is because of an event.
    is_after_event: bool,
    hash: Hash,
    /// Why there is no subscription, as it was logged.
    refused: Option<String>,
}

/// What is known of the hash.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hash {
    NeverSeen,
    Seen,
    /// Gone, after an event.
    Removed,
}

impl<D: Document> RedisHashSource<D> {
    /// Nothing is connected yet. `parse` makes a document of all fields, or says what is wrong with
    /// them without quoting them. A hash that is removed is a document of no fields.
    pub fn new(
        client: RedisClient,
        key: &'static str,
        period: Duration,
        parse: fn(HashFields) -> Result<D, String>,
    ) -> RedisHashSource<D> {
        RedisHashSource {
            client,
            key,
            period,
            parse,
            messages: None,
            has_events: false,
            is_after_event: false,
            hash: Hash::NeverSeen,
            refused: None,
        }
    }

    async fn read_hash(&self) -> Result<HashFields, RedisError> {
        self.client.connect().await?.hgetall(self.key).await
    }

    async fn subscribe(&mut self) -> Result<PubSubStream, RedisError> {
        let channel = format!("__keyspace@{}__:{}", self.client.database(), self.key);
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

impl<D: Document> Source for RedisHashSource<D> {
    type Document = D;

    fn name(&self) -> &'static str {
        "redis"
    }

    async fn read(&mut self) -> Result<Option<D>, SourceReadError> {
        let read = self.read_hash().await;
        if read.is_err() {
            self.messages = None; // it may be as dead as this connection
        }
        let fields = read.map_err(|error| failed(&error))?;
        let is_after_event = std::mem::take(&mut self.is_after_event);
        self.hash = match self.hash {
            _ if !fields.is_empty() => Hash::Seen,
            Hash::Seen if is_after_event => Hash::Removed,
            as_before => as_before,
        };
        if fields.is_empty() && self.hash != Hash::Removed {
            return Err(SourceReadError::new(format!("there is no hash {}", self.key)).missing());
        }
        let document = (self.parse)(fields);
        document.map(Some).map_err(|problem| SourceReadError::new(problem).of_content())
    }

    /// Waits for an event, for a new subscription, or for the next look.
    async fn changed(&mut self) {
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
            return; // there are no events of what happened before
        }
        let Some(messages) = &mut self.messages else { return };
        let look = if self.has_events { SLOW_LOOK } else { self.period };
        match tokio::time::timeout(look, messages.next()).await {
            Ok(Some(_)) => {
                self.is_after_event = true;
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
}

fn failed(error: &RedisError) -> SourceReadError {
    let kind = if error.is_timeout() { "ERR_TIMEOUT" } else { "UNKNOWN" };
    SourceReadError::new(reason(error)).labelled(format!("redis error: {kind}"))
}
