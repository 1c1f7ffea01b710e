//! One event at a time: visible at once, with statements of its own.

use std::sync::Arc;

use super::{
    barred::Barred, catalog::Table, change::Rules, client::Connection, error::Purpose,
    one_by_one::RowInsert, pool::Postgres,
};
use crate::{
    error::LoadError,
    load::SchemaChanges,
    rows::{batch::Batch, convert::TextStyle, row::RowError},
};

/// Changes of the table stand also when the event is refused afterwards.
const RULES: Rules = Rules {
    changes: SchemaChanges::BeforeLoad,
    style: TextStyle::Milliseconds,
    is_by_event: true,
    is_literal: true,
    isolates: false,
};

impl Postgres {
    /// Inserts the one row of `batch`, or updates the row of its key. `known` is the table as the
    /// last call left it.
    pub(crate) async fn insert(
        &self,
        batch: Batch,
        known: Option<Table>,
    ) -> Result<Option<Table>, LoadError> {
        let batch = Arc::new(batch);
        let is_remembered = known.is_some();
        let inserted = self.insert_once(batch.clone(), known).await;
        // the statement does not fit the table: somebody may have changed that since
        let is_about_names = |error: &LoadError| {
            error.server_error().is_some_and(|error| error.sqlstate.starts_with("42"))
        };
        match inserted {
            Err(error) if is_remembered && is_about_names(&error) => {
                self.insert_once(batch, None).await
            }
            inserted => inserted,
        }
    }

    async fn insert_once(
        &self,
        batch: Arc<Batch>,
        known: Option<Table>,
    ) -> Result<Option<Table>, LoadError> {
        let mut connection = self.connection().await?;
        let inserted = self.insert_on(&mut connection, batch, known).await;
        if inserted.as_ref().is_err_and(|error| error.server_error().is_some()) {
            connection.roll_back_and_close().await;
        }
        inserted
    }

    async fn insert_on(
        &self,
        connection: &mut Connection,
        batch: Arc<Batch>,
        known: Option<Table>,
    ) -> Result<Option<Table>, LoadError> {
        let prepared =
            self.prepare(connection, batch, RULES, known, &mut Barred::default()).await?;
        let mut inserting = RowInsert::new(&prepared);
        let mut insert = None;
        prepared.batch.rows.visit(0..1, |number, row| {
            insert = inserting.sql(number, row);
            true
        })?;
        let Some(insert) = insert else {
            return Err(LoadError::Row(RowError::NoColumn));
        };
        let purpose = Purpose::Rows { table: &prepared.name.table };
        connection.run_for(&format!("{}; {insert}; commit", self.begin_sql()), purpose).await?;
        Ok(prepared.table)
    }
}
