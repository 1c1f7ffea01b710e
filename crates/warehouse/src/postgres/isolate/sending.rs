//! Rows that are sent in subtransactions: attempts, which stay, and trials, which never do.

use crate::{
    error::{LoadError, ServerError},
    postgres::{
        change::Prepared,
        client::Connection,
        new_keys::may_be_repeat,
        transfer::{self, Selection},
    },
};

/// How many subtransactions stay in a transaction: a few less than the 64 that are announced.
pub(super) const MAX_SUBTRANSACTIONS: usize = 60;
/// Ends a subtransaction and leaves nothing of it.
const UNDO: &str = "rollback to savepoint piece; release savepoint piece";

/// The sending of one batch in one transaction.
pub(super) struct Sending<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) prepared: &'a Prepared,
    pub(super) subtransactions: &'a mut usize,
    /// The rows are to be merged, and no key was there so far.
    pub(super) is_all_new: bool,
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
                self.connection.run("release savepoint piece").await?;
                *self.subtransactions += 1;
                self.loaded += loaded;
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
        }
        Ok(sent.err())
    }

    /// Sends rows in a subtransaction, which is still open if the server took them.
    async fn send(&mut self, rows: &Selection) -> Result<Result<u64, Box<ServerError>>, LoadError> {
        loop {
            self.connection.run("savepoint piece").await?;
            let sent = match self.is_all_new {
                true => {
                    let table = self.prepared.name.quoted();
                    transfer::copy(self.connection, &table, self.prepared, rows).await
                }
                false => transfer::send(self.connection, self.prepared, rows).await,
            };
            match sent {
                Ok(loaded) => return Ok(Ok(loaded)),
                Err(LoadError::Refused { error, .. }) => {
                    self.connection.run(UNDO).await?;
                    if !self.is_all_new || !may_be_repeat(&error) {
                        return Ok(Err(error));
                    }
                    self.is_all_new = false;
                }
                Err(error) => return Err(error),
            }
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
