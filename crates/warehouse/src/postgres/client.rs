//! A connection to a PostgreSQL destination.
//!
//! Invariant: only a connection whose last statement ended well, and that has no transaction open,
//! goes back to the pool. Anything else (an error, a time-out, a dropped future) closes it, because
//! its transaction may be open or its answers out of step.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{Executor, pool::PoolConnection, postgres::PgRow};
use tokio::sync::mpsc;

use super::error::{Purpose, classify};
use crate::{error::LoadError, progress::Progress};

/// A connection of a destination. Closed instead of pooled after anything went wrong, also by a
/// dropped call: the server rolls its transaction back, once it notices.
pub struct Connection {
    inner: PoolConnection<sqlx::Postgres>,
    is_sound: bool,
    /// Begun by [`Connection::begin`], and not ended.
    in_transaction: bool,
    patience: Duration,
    progress: Progress,
}

impl Connection {
    /// `patience`: how long a statement may take before the server counts as gone.
    /// Each answer counts as a step of `progress`.
    pub(super) fn new(
        inner: PoolConnection<sqlx::Postgres>,
        patience: Duration,
        progress: Progress,
    ) -> Connection {
        Connection { inner, is_sound: true, in_transaction: false, patience, progress }
    }

    /// Runs one or more statements by the simple protocol and returns the rows of all. Several are
    /// one transaction, unless they say otherwise.
    pub async fn run(&mut self, sql: &str) -> Result<Vec<PgRow>, LoadError> {
        self.run_for(sql, Purpose::Other).await
    }

    /// The same for statements that make or change a table of the caller's; errors name it.
    pub(super) async fn run_on(&mut self, table: &str, sql: &str) -> Result<Vec<PgRow>, LoadError> {
        self.run_for(sql, Purpose::Schema { table }).await
    }

    pub(super) async fn run_for(
        &mut self,
        sql: &str,
        purpose: Purpose<'_>,
    ) -> Result<Vec<PgRow>, LoadError> {
        self.is_sound = false;
        // every name and value in our statements went through `quote_ident` or `quote_literal`
        let rows = self.inner.fetch_all(sqlx::raw_sql(sql));
        let rows = in_time(self.patience, purpose, rows).await;
        self.progress.step();
        let rows = rows?;
        self.is_sound = true;
        Ok(rows)
    }

    /// Runs a statement that may take long, outside of a transaction.
    pub(super) async fn run_long(
        &mut self,
        sql: &str,
        purpose: Purpose<'_>,
        patience: Duration,
    ) -> Result<(), LoadError> {
        let usual = std::mem::replace(&mut self.patience, patience);
        let ran = self.run_for(sql, purpose).await;
        self.patience = usual;
        ran.map(drop)
    }

    /// Runs statements and returns how many rows the last one hit.
    pub(super) async fn execute(
        &mut self,
        sql: &str,
        purpose: Purpose<'_>,
    ) -> Result<u64, LoadError> {
        self.is_sound = false;
        let mut results = self.inner.execute_many(sqlx::raw_sql(sql));
        let last = async {
            let mut hit = 0;
            while let Some(done) = results.try_next().await? {
                hit = done.rows_affected();
            }
            Ok(hit)
        };
        let hit = in_time(self.patience, purpose, last).await?;
        drop(results);
        self.progress.step();
        self.is_sound = true;
        Ok(hit)
    }

    /// Sends COPY text as it comes; returns the number of rows stored.
    pub(super) async fn copy(
        &mut self,
        sql: &str,
        chunks: &mut mpsc::Receiver<Vec<u8>>,
        purpose: Purpose<'_>,
    ) -> Result<u64, LoadError> {
        self.is_sound = false;
        let patience = self.patience;
        let mut copy = in_time(patience, purpose, self.inner.copy_in_raw(sql)).await?;
        while let Some(chunk) = chunks.recv().await {
            let Ok(sent) = tokio::time::timeout(patience, copy.send(chunk)).await else {
                return Err(no_answer());
            };
            if sent.is_err() {
                // the server's reason comes with `finish`; `abort` would hide it and leave answers
                // unread
                break;
            }
        }
        let stored = in_time(patience, purpose, copy.finish()).await;
        self.progress.step();
        let stored = stored?;
        self.is_sound = true;
        Ok(stored)
    }

    /// Begins a transaction that outlives the call: until it is ended by [`Connection::commit`] or
    /// [`Connection::roll_back`], a drop closes the connection.
    pub(super) async fn begin(&mut self, sql: &str) -> Result<(), LoadError> {
        self.in_transaction = true;
        self.run(sql).await.map(drop)
    }

    /// Commits what [`Connection::begin`] began.
    pub(super) async fn commit(&mut self, purpose: Purpose<'_>) -> Result<(), LoadError> {
        self.run_for("commit", purpose).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Rolls back what [`Connection::begin`] began.
    pub(super) async fn roll_back(&mut self) -> Result<(), LoadError> {
        self.run("rollback").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// The connection is not to be used again, whatever its last statement said.
    pub(super) fn give_up(&mut self) {
        self.is_sound = false;
    }

    /// Ends the transaction after a refusal, so that its locks go now and not when the server
    /// notices the closed connection. It is closed all the same: a refused COPY may leave answers
    /// unread.
    pub(super) async fn roll_back_and_close(&mut self) {
        let _ = self.run("rollback").await; // the reason is the caller's first error, not this one
        self.is_sound = false;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.is_sound || self.in_transaction {
            self.inner.close_on_drop();
        }
    }
}

async fn in_time<T>(
    patience: Duration,
    purpose: Purpose<'_>,
    answer: impl Future<Output = sqlx::Result<T>>,
) -> Result<T, LoadError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map_err(|error| classify(error, purpose)),
        Err(_) => Err(no_answer()),
    }
}

fn no_answer() -> LoadError {
    LoadError::Connection { reason: "no answer in time".to_owned() }
}
