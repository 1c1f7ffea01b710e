//! The words of the ledger: how far each topic is loaded, and what became of each refused event.
//!
//! Every kind of warehouse keeps a ledger in its own tables and its own language (`<kind>/ledger`),
//! beside the rows that it accounts for. When it is read, claimed and moved is the caller's
//! protocol; what is kept here is that a load moves the ledger in the transaction that carries the
//! rows, under a lock that proves that it is still what the caller read ([`Fence`]).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PartitionKey {
    /// Kafka's id of the cluster.
    pub cluster_id: String,
    /// The topic's name.
    pub topic: String,
    /// Its number in the topic, from 0.
    pub partition: i32,
}

/// Where one partition of a topic stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The first offset that is not in the table yet.
    pub next_offset: i64,
    /// Raised by every move outside a load.
    pub epoch: i64,
    /// The lowest offset the position ever started from.
    pub began: i64,
    /// Kafka's id of the topic; `None` on brokers before 2.8.
    pub topic_id: Option<Uuid>,
}

/// Where an event was read first. Never changes while the event goes through retries; travels with
/// it as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Kafka's id of the cluster.
    pub cluster: String,
    /// The topic's name.
    pub topic: String,
    /// Kafka's id of the topic; `None` on brokers before 2.8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<Uuid>,
    /// Its number in the topic, from 0.
    pub partition: i32,
    /// The event's offset in it.
    pub offset: i64,
}

impl Origin {
    /// What the ledger calls the topic: its id, for a topic that was made anew counts from 0 again;
    /// its name where there is no id.
    pub fn topic_key(&self) -> String {
        self.topic_id.map_or_else(|| self.topic.clone(), |id| id.to_string())
    }

    /// What the ledger tells events apart by: two origins with the same key are one event.
    pub fn key(&self) -> OriginKey {
        (self.cluster.clone(), self.topic_key(), self.partition, self.offset)
    }
}

/// An [`Origin`] as the ledger keys it: cluster, topic id or name, partition, offset.
pub type OriginKey = (String, String, i32, i64);

/// What became of an event that was refused at least once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventState {
    /// It waits in the retry topic.
    Refused,
    /// It was refused and is in the table now.
    Loaded,
    /// It is a dead letter.
    Dead,
}

impl EventState {
    /// The word that the ledger keeps.
    pub fn as_str(self) -> &'static str {
        match self {
            EventState::Refused => "refused",
            EventState::Loaded => "loaded",
            EventState::Dead => "dead",
        }
    }

    /// The state that the ledger's word names; `None`: it names none.
    pub fn parse(text: &str) -> Option<EventState> {
        [EventState::Refused, EventState::Loaded, EventState::Dead]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// A state that a load writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventChange {
    /// The event's origin.
    pub origin: Origin,
    /// What became of it.
    pub state: EventState,
    /// How often the event was refused so far.
    pub refusals: u32,
    /// SQLSTATE, or what else the refusal is called; never a row value. Empty when the event was
    /// loaded.
    pub reason: String,
}

/// What became of events. After every load: received = loaded + merged + waiting + dead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Read for the first time.
    pub received: i64,
    /// Rows inserted or updated.
    pub loaded: i64,
    /// Replaced by a later event of the same key in their batch.
    pub merged: i64,
    /// Refused, and to be tried again. Falls when they are loaded or dead.
    pub waiting: i64,
    /// Dead letters.
    pub dead: i64,
}

/// What a load believes of the ledger: it loads nothing unless all of it is still true under the
/// position's lock.
#[derive(Debug, Clone)]
pub struct Fence {
    /// Whose position is locked.
    pub key: PartitionKey,
    /// The position as it was read; its offset and its epoch are compared.
    pub position: Position,
    /// States as they were read, of the returning events in the batch.
    pub states: Vec<(Origin, Option<EventState>)>,
}

/// How a load changes the ledger, in the transaction that carries its rows.
#[derive(Debug, Clone, Default)]
pub struct LedgerChanges {
    /// The first offset after the batch.
    pub next_offset: i64,
    /// Kafka's timestamp of the last record, milliseconds since the epoch.
    pub last_timestamp_ms: Option<i64>,
    /// Added to what the ledger counts.
    pub tally: Tally,
    /// The table that the topic's events are for, as their topic names it.
    pub table: String,
    /// States of events. Of several for one origin the last one counts.
    pub events: Vec<EventChange>,
}

/// A position with what the ledger counts beside it.
#[derive(Debug, Clone)]
pub struct CountedPosition {
    /// The topic's name.
    pub topic: String,
    /// Its number in the topic, from 0.
    pub partition: i32,
    /// Where it stands.
    pub position: Position,
    /// What became of its events.
    pub tally: Tally,
    /// Kafka's time of the last event that was passed.
    pub last_event_at: Option<Timestamp>,
    /// When the position moved last.
    pub updated_at: Timestamp,
}

/// What the user's rights allow of the ledger, asked without trying it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerRights {
    /// The server's kind and major version, for people: `PostgreSQL 15`.
    pub server: String,
    /// Whether that version is older than the oldest one that is expected to work.
    pub is_too_old: bool,
    /// Whether a table of the ledger is there, usable or not: somebody keeps one.
    pub is_there: bool,
    /// Why there can be no ledger, as what an administrator should do; `None`: it is there and
    /// usable, or can be made.
    pub missing: Option<String>,
}
