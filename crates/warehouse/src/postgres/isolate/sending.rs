//! Rows that are sent in subtransactions: attempts, which stay, and trials, which never do.

use crate::{
    error::{LoadError, ServerError},
    postgres::{
        client::Connection, new_keys::may_be_repeat, prepared::Prepared, selection::Selection,
        transfer,
    },
};

/// How many subtransactions stay in a transaction: a few less than the 64 that are announced.
pub(super) const MAX_SUBTRANSACTIONS: usize = 60;
/// Leaves nothing of a subtransaction, which is open for the next rows.
const UNDO: &str = "rollback to savepoint piece";

/// The sending of one batch in one transaction.
pub(super) struct Sending<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) prepared: &'a Prepared,
    pub(super) subtransactions: &'a mut usize,
    /// The rows are to be merged, and no key was there so far.
    pub(super) is_all_new: bool,
    /// A subtransaction is open, and empty.
    pub(super) is_open: bool,
    /// The table took some row.
    pub(super) has_taken: bool,
    pub(super) loaded: u64,
}

impl Sending<'_> {
    /// Sends rows in a subtransaction that stays.
    pub(super) async fn attempt(&mut self, rows: &Selection) -> Result<Attempt, LoadError> {
        if *self.subtransactions >= MAX_SUBTRANSACTIONS {
            return Ok(Attempt::NoneLeft);
        }
        match self.send(rows).await? {
            Ok(loaded) => {
                self.close().await?;
                *self.subtransactions += 1;
                self.loaded += loaded;
                self.has_taken = true;
                Ok(Attempt::Loaded)
            }
            Err(error) => Ok(Attempt::Failed(error)),
        }
    }

    /// Sends rows only to see what the server says. `None`: it takes them.
    pub(super) async fn trial(
        &mut self,
        rows: &Selection,
    ) -> Result<Option<Box<ServerError>>, LoadError> {
        if rows.first().is_none() {
            return Ok(None);
        }
        let sent = self.send(rows).await?;
        if sent.is_ok() {
            self.connection.run(UNDO).await?;
            self.has_taken = true;
        }
        Ok(sent.err())
    }

    /// Sends rows that were good in another transaction, without a subtransaction. What the server
    /// says, if it refuses them: the transaction is over then.
    pub(super) async fn send_good(
        &mut self,
        rows: &Selection,
    ) -> Result<Option<Box<ServerError>>, LoadError> {
        if rows.first().is_none() {
            return Ok(None);
        }
        match self.transfer(rows).await {
            Ok(loaded) => {
                self.loaded += loaded;
                self.has_taken = true;
                Ok(None)
            }
            Err(LoadError::Refused { error, .. }) => {
                self.is_all_new &= !may_be_repeat(&error);
                Ok(Some(error))
            }
            Err(LoadError::Busy(error)) if error.is_too_slow() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// Ends the subtransaction that is open, if one is.
    pub(super) async fn close(&mut self) -> Result<(), LoadError> {
        if std::mem::replace(&mut self.is_open, false) {
            self.connection.run("release savepoint piece").await?;
        }
        Ok(())
    }

    /// Sends rows in a subtransaction, which is still open; empty if the server refused them.
    async fn send(&mut self, rows: &Selection) -> Result<Result<u64, Box<ServerError>>, LoadError> {
        loop {
            if !std::mem::replace(&mut self.is_open, true) {
                self.connection.run("savepoint piece").await?;
            }
            let error = match self.transfer(rows).await {
                Ok(loaded) => return Ok(Ok(loaded)),
                Err(LoadError::Refused { error, .. }) => error,
                Err(LoadError::Busy(error)) if error.is_too_slow() => error,
                Err(error) => return Err(error),
            };
            self.connection.run(UNDO).await?;
            if !self.is_all_new || !may_be_repeat(&error) {
                return Ok(Err(error));
            }
            self.is_all_new = false;
        }
    }

    async fn transfer(&mut self, rows: &Selection) -> Result<u64, LoadError> {
        match self.is_all_new {
            true => {
                let table = self.prepared.name.quoted();
                transfer::copy(self.connection, &table, self.prepared, rows).await
            }
            false => transfer::send(self.connection, self.prepared, rows).await,
        }
    }
}

/// What became of an attempt.
pub(super) enum Attempt {
    Loaded,
    Failed(Box<ServerError>),
    /// No subtransaction is left.
    NoneLeft,
}
