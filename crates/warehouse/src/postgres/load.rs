//! The load: batches into their tables in one transaction, staged first, committed later.
//!
//! Invariant: the rows of all batches and the changes of the ledger become visible together or not
//! at all. The position is locked after all changes to tables and before the first row is sent, and
//! moves in the last statement before COMMIT, which must hit one row: a COMMIT of an aborted
//! transaction answers ROLLBACK without an error.

use std::{sync::Arc, time::Instant};

use super::{
    attempt::{Attempt, Ended},
    client::Connection,
    error::Purpose,
    isolate::Isolation,
    ledger,
    pool::Postgres,
};
use crate::{
    error::LoadError,
    ledger::{Fence, LedgerChanges},
    load::{LoadOptions, LoadReport, Refusals},
    rows::batch::{Batch, Replaces},
};

/// How often a load starts over because a table changed under it.
const MAX_CHANGES: usize = 5;

/// Rows that the database has, in a transaction that is open: not visible, the position locked.
/// Dropped without a commit, its connection is closed and the server rolls all of it back, changes
/// of tables in the same transaction included.
pub struct Staged {
    /// `None`: there is nothing to commit.
    connection: Option<Connection>,
    report: LoadReport,
    /// With the schema of the ledger.
    fence: Option<(String, Fence)>,
}

impl Postgres {
    /// Sends the rows of all batches in one transaction, which stays open. Without batches only the
    /// fence is locked.
    ///
    /// Errors: [`LoadError::Fenced`] where the ledger is not what the fence says;
    /// [`LoadError::Refused`] for refused rows with [`Refusals::Fail`]; [`LoadError::Schema`] for a
    /// table that cannot be made or changed; the others say what is waited for or misconfigured.
    /// After any error, and after a drop, nothing of the rows is visible and no transaction is left
    /// open; columns that were added before the load stay. A drop while a table with rows gets its
    /// primary key may leave an index `jitsu_pk_…` that no constraint uses: the next load of the
    /// table with a key takes it over or drops it.
    pub async fn stage(
        &self,
        batches: Vec<Batch>,
        fence: Option<Fence>,
        options: LoadOptions,
    ) -> Result<Staged, LoadError> {
        let batches: Vec<_> = batches.into_iter().map(Arc::new).collect();
        let has_work =
            |batch: &Arc<Batch>| !batch.is_empty() || batch.replaces != Replaces::Nothing;
        let fence = fence.map(|fence| (self.default_schema().to_owned(), fence));
        if !batches.iter().any(has_work) && fence.is_none() {
            return Ok(Staged { connection: None, report: LoadReport::default(), fence });
        }
        let mut isolation = Isolation::default();
        let mut changes = 0;
        loop {
            let mut connection = self.connection().await?;
            let mut report = LoadReport::default();
            let fence_sql = fence.as_ref().map(|(schema, fence)| ledger::fence_sql(schema, fence));
            let attempt = Attempt { postgres: self, fence_sql, options, isolation: &mut isolation };
            match attempt.run(&mut connection, &batches, &mut report).await {
                Ok(Ended::Staged) => {
                    return Ok(Staged { connection: Some(connection), report, fence });
                }
                Ok(Ended::RolledBack) => {} // more is known about its rows now
                Ok(Ended::TableChanged { table }) => {
                    changes += 1;
                    if changes >= MAX_CHANGES {
                        return Err(LoadError::config(format!(
                            "table {table} changes faster than a batch can be fitted to it"
                        )));
                    }
                }
                Err(LoadError::Fenced) => return Err(LoadError::Fenced),
                Err(error) => {
                    let in_step = error.server_error().is_some();
                    if in_step {
                        connection.roll_back_and_close().await;
                    } else {
                        connection.give_up(); // its transaction may be open
                    }
                    if options.refusals == Refusals::Fail {
                        return Err(error);
                    }
                    let is_for_search =
                        matches!(error, LoadError::Refused { .. }) || error.is_too_slow();
                    if !is_for_search || !isolation.begin(&error) {
                        return Err(error.held());
                    }
                }
            }
        }
    }

    /// Stages and commits at once, without a ledger. Errors, and what a drop leaves, are those of
    /// [`Postgres::stage`] and [`Staged::commit`].
    pub async fn load(
        &self,
        batches: Vec<Batch>,
        options: LoadOptions,
    ) -> Result<LoadReport, LoadError> {
        self.stage(batches, None, options).await?.commit(&LedgerChanges::default()).await
    }
}

impl Staged {
    /// What became of the rows, as it will be once they are committed.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// Makes the rows visible, and the changes of the ledger with them; without a fence there is no
    /// ledger to change.
    ///
    /// Errors: [`LoadError::Fenced`] where the ledger's row is gone; [`LoadError::CommitUnknown`]
    /// where the answer was lost. Then, and after a drop, only the ledger knows how it ended
    /// ([`Ledger::read_settled`](super::Ledger)); after any other error nothing is visible.
    pub async fn commit(self, changes: &LedgerChanges) -> Result<LoadReport, LoadError> {
        let Staged { connection, mut report, fence } = self;
        let Some(mut connection) = connection else {
            return Ok(report);
        };
        let started = Instant::now();
        match commit(&mut connection, fence.as_ref(), changes).await {
            Ok(()) => {
                report.committed_in = started.elapsed();
                Ok(report)
            }
            Err(error) => {
                if error.server_error().is_some() {
                    connection.roll_back_and_close().await;
                }
                Err(error)
            }
        }
    }
}

async fn commit(
    connection: &mut Connection,
    fence: Option<&(String, Fence)>,
    changes: &LedgerChanges,
) -> Result<(), LoadError> {
    if let Some((schema, fence)) = fence {
        let advance = ledger::advance_sql(schema, fence, changes);
        if connection.execute(&advance, Purpose::Other).await? != 1 {
            connection.roll_back().await?;
            return Err(LoadError::Fenced);
        }
    }
    match connection.commit(Purpose::Rows { table: "" }).await {
        Err(LoadError::Connection { reason }) => Err(LoadError::CommitUnknown { reason }),
        // a session that is ended on purpose may say so after the commit is durable
        Err(LoadError::Busy(error)) if error.sqlstate.starts_with("57P") => {
            Err(LoadError::CommitUnknown { reason: error.to_string() })
        }
        done => done,
    }
}
