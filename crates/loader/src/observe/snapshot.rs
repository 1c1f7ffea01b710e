//! What the destinations said of their events at one time.

use std::{collections::BTreeMap, time::Instant};

use jiff::Timestamp;
use warehouse::{CountedPosition, Tally};

/// What all destinations said at one time.
#[derive(Debug, Default)]
pub struct StatsSnapshot {
    /// `None`: it was not asked for yet.
    pub at: Option<(Instant, Timestamp)>,
    /// Whether Kafka never said yet which cluster it is, so that no destination could be asked.
    pub is_kafka_unknown: bool,
    /// By id.
    pub destinations: BTreeMap<String, DestinationStats>,
}

/// What one destination said.
#[derive(Debug, Default)]
pub struct DestinationStats {
    /// Why there is no answer; what follows is then the last one there was. Holds no row value.
    pub problem: Option<String>,
    /// Whether it keeps offsets rows; without, there are no counts.
    pub has_rows: bool,
    /// By name.
    pub tables: BTreeMap<String, TableStats>,
}

/// The events of one table, of all its topics together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Read for the first time; less what a reset gave back.
    pub received: i64,
    /// Rows inserted or updated.
    pub loaded: i64,
    /// Replaced by a later event of the same key in their batch.
    pub merged: i64,
    /// Refused, and to be tried again.
    pub waiting: i64,
    /// Dead letters.
    pub dead: i64,
    /// Offsets of its topics that were not read yet; `None` where Kafka does not tell.
    pub backlog: Option<i64>,
    /// Kafka's time of the latest event that was read.
    pub last_event_at: Option<Timestamp>,
    /// When a row moved last.
    pub updated_at: Option<Timestamp>,
}

impl StatsSnapshot {
    /// Who does not answer keeps what it said last.
    pub(super) fn keep_where_silent(&mut self, before: &StatsSnapshot) {
        for (id, said) in self.destinations.iter_mut().filter(|(_, said)| said.problem.is_some()) {
            if let Some(before) = before.destinations.get(id) {
                said.has_rows = before.has_rows;
                said.tables.clone_from(&before.tables);
            }
        }
    }
}

impl TableStats {
    pub(super) fn add(&mut self, row: &CountedPosition) {
        let Tally { received, loaded, merged, waiting, dead } = row.tally;
        self.received += received;
        self.loaded += loaded;
        self.merged += merged;
        self.waiting += waiting;
        self.dead += dead;
        self.last_event_at = self.last_event_at.max(row.last_event_at);
        self.updated_at = self.updated_at.max(Some(row.updated_at));
    }
}
