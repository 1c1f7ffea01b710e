//! Changing a table that others use: in a short transaction, and again and again while another
//! session holds a lock.
//!
//! Invariant: a lock is waited for no longer than `schema_lock_timeout`, because all later
//! statements on the table queue behind a waiting ALTER.

use std::time::{Duration, Instant};

use tracing::debug;

use super::pool::Postgres;
use crate::load::SchemaChanges;

/// The first pause after another session's lock; later ones are twice as long each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);

impl Postgres {
    pub(super) fn begin_change_sql(&self, changes: SchemaChanges) -> String {
        let timeout = self.settings().schema_lock_timeout.as_millis();
        match changes {
            SchemaChanges::BeforeLoad => {
                format!("{}; set local lock_timeout = {timeout}", self.begin_sql())
            }
            SchemaChanges::InLoad => {
                format!("savepoint schema_change; set local lock_timeout = {timeout}")
            }
        }
    }

    pub(super) fn end_change_sql(&self, changes: SchemaChanges) -> String {
        let timeout = self.settings().lock_timeout.as_millis();
        match changes {
            SchemaChanges::BeforeLoad => "commit".to_owned(),
            SchemaChanges::InLoad => {
                format!("release savepoint schema_change; set local lock_timeout = {timeout}")
            }
        }
    }
}

pub(super) fn undo_change_sql(changes: SchemaChanges) -> &'static str {
    match changes {
        SchemaChanges::BeforeLoad => "rollback",
        SchemaChanges::InLoad => {
            "rollback to savepoint schema_change; release savepoint schema_change"
        }
    }
}

/// Longer and longer pauses until a time is over.
pub(super) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(time: Duration) -> Patience {
        Patience { until: Instant::now() + time, pause: FIRST_PAUSE }
    }

    pub(super) fn is_left(&self) -> bool {
        Instant::now() < self.until
    }

    pub(super) async fn wait(&mut self, table: &str) {
        debug!(
            table,
            pause_ms = self.pause.as_millis(),
            "table is locked by somebody else; waiting"
        );
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }
}
