//! Changing a table that others use: in a short transaction, and again and again while another
//! session holds a lock.
//!
//! Invariant: a lock is waited for no longer than `schema_lock_timeout`, because all later
//! statements on the table queue behind a waiting ALTER.

use std::time::{Duration, Instant};

use tracing::debug;

use super::{catalog::TableName, client::Connection, ddl, error::Purpose, pool::Postgres};
use crate::{error::LoadError, load::SchemaChanges};

/// The first pause after another session's lock; later ones are twice as long each.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);

impl Postgres {
    /// Begins a change: a transaction of its own, or a savepoint of the load's. Until it is ended
    /// or undone, a drop closes the connection.
    pub(super) async fn begin_change(
        &self,
        connection: &mut Connection,
        changes: SchemaChanges,
    ) -> Result<(), LoadError> {
        let timeout = self.settings().schema_lock_timeout.as_millis();
        let limited = format!("set local lock_timeout = {timeout}");
        match changes {
            SchemaChanges::BeforeLoad => {
                connection.begin(&format!("{}; {limited}", self.begin_sql())).await
            }
            SchemaChanges::InLoad => {
                connection.run(&format!("savepoint schema_change; {limited}")).await.map(drop)
            }
        }
    }

    /// Ends a change: it stands, or will with the load.
    pub(super) async fn end_change(
        &self,
        connection: &mut Connection,
        changes: SchemaChanges,
    ) -> Result<(), LoadError> {
        let timeout = self.settings().lock_timeout.as_millis();
        let released =
            format!("release savepoint schema_change; set local lock_timeout = {timeout}");
        match changes {
            SchemaChanges::BeforeLoad => connection.commit(Purpose::Other).await,
            SchemaChanges::InLoad => connection.run(&released).await.map(drop),
        }
    }
}

impl Postgres {
    /// Keeps all others out of a table until the load's transaction ends, the owner of its shape
    /// among them. Readers queue behind the lock that we wait for, so we wait for a short time and
    /// let them pass, again and again.
    pub(super) async fn keep_others_out(
        &self,
        connection: &mut Connection,
        name: &TableName,
    ) -> Result<(), LoadError> {
        let locks = format!(
            "{}; lock table {} in access exclusive mode",
            ddl::lock_table_sql(name),
            name.quoted()
        );
        let mut patience = Patience::new(self.settings().schema_patience);
        loop {
            self.begin_change(connection, SchemaChanges::InLoad).await?;
            match connection.run_on(&name.table, &locks).await {
                Ok(_) => return self.end_change(connection, SchemaChanges::InLoad).await,
                Err(error) if error.is_lock_timeout() && patience.is_left() => {
                    undo_change(connection, SchemaChanges::InLoad).await?;
                    patience.wait(&name.table).await;
                }
                Err(LoadError::Busy(mut error)) => {
                    let words = format!("table {} is in use by others all the time", name.table);
                    error.safe_text = Some(words);
                    return Err(LoadError::Busy(error));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Ends a change after an error: nothing of it is left.
pub(super) async fn undo_change(
    connection: &mut Connection,
    changes: SchemaChanges,
) -> Result<(), LoadError> {
    let undone = "rollback to savepoint schema_change; release savepoint schema_change";
    match changes {
        SchemaChanges::BeforeLoad => connection.roll_back().await,
        SchemaChanges::InLoad => connection.run(undone).await.map(drop),
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
