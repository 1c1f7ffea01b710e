//! The ledger in PostgreSQL: two tables in the destination's default schema, beside the rows that
//! they account for.
//!
//! Invariant: a position moves in the transaction that carries the rows of the batch, or by a
//! compare-and-set on (offset, epoch) that raises the epoch, and by nothing else. A loader that is
//! fenced therefore finds its (offset, epoch) gone and loads nothing.
//!
//! Statements go by the simple protocol with quoted literals, so they work through a pooler that
//! gives every transaction another connection. A call that is dropped closes its connection, and
//! the server finishes its statement or rolls it back; what it would have answered is to be read
//! anew.

mod counters;
mod events;
mod positions;
mod rights;

use std::collections::HashMap;

use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

pub(crate) use counters::read_all;
pub(crate) use rights::rights;

use super::{Postgres, quote_ident, quote_literal};
use crate::{
    error::LoadError,
    ledger::{EventState, Fence, LedgerChanges, Origin, OriginKey, PartitionKey, Position},
    rows::postgres_rules::{OFFSETS_TABLE, ORIGINS_TABLE},
};

const UNDEFINED_COLUMN: &str = "42703";

/// The ledger of one destination; cheap to clone. What it answers, and its errors, are those of
/// [`crate::Ledger`].
#[derive(Clone)]
pub struct Ledger {
    postgres: Postgres,
    id: Uuid,
}

impl Ledger {
    /// Opens the tables, makes them where they are missing, and reads the ledger's id. A drop
    /// leaves them made, or not.
    ///
    /// Errors: [`LoadError::Schema`] where they cannot be made, [`LoadError::Config`] where they
    /// are there and are not what they should be.
    pub async fn open(postgres: &Postgres) -> Result<Ledger, LoadError> {
        let schema = postgres.default_schema();
        let rows = match run(postgres, &ledger_sql(schema)).await {
            Err(error) if error.is_undefined_table() => {
                let has_schema = !run(postgres, &schema_exists_sql(schema)).await?.is_empty();
                let sql = create_sql(schema, has_schema, Uuid::new_v4());
                postgres.connection().await?.run_on(OFFSETS_TABLE, &sql).await?;
                run(postgres, &ledger_sql(schema)).await?
            }
            answer => answer?,
        };
        let id = rows
            .first()
            .and_then(|row| row.try_get::<String, _>(0).ok())
            .and_then(|ledger| ledger.parse().ok())
            .ok_or_else(|| {
                LoadError::config(format!(
                    "table {OFFSETS_TABLE} has no ledger row; was it emptied by hand?"
                ))
            })?;
        Ok(Ledger { postgres: postgres.clone(), id })
    }

    /// The random id that the ledger got when it was made.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The position, as it stands now; `None`: the partition has none.
    pub async fn read(&self, key: &PartitionKey) -> Result<Option<Position>, LoadError> {
        let rows = run(&self.postgres, &positions::read_sql(self.schema(), key)).await?;
        rows.first().map(positions::parse).transpose()
    }

    /// The position, once no load holds it any more: after a lost answer to COMMIT it waits for the
    /// old session, up to a minute.
    pub async fn read_settled(&self, key: &PartitionKey) -> Result<Option<Position>, LoadError> {
        let sql = format!(
            "begin; set local lock_timeout = '60s'; {} for update; commit",
            positions::read_sql(self.schema(), key)
        );
        let rows = run(&self.postgres, &sql).await?;
        rows.first().map(positions::parse).transpose()
    }

    /// Inserts the first position of a partition. `false`: another loader did.
    pub async fn insert(&self, key: &PartitionKey, to: &Position) -> Result<bool, LoadError> {
        Ok(!run(&self.postgres, &positions::insert_sql(self.schema(), key, to)).await?.is_empty())
    }

    /// Moves the position outside a load, from what was read to `to`, whose epoch is higher.
    /// `false`: it is not what was read any more. `forget_events` forgets the states of events at
    /// and beyond `to`, which will be read again.
    pub async fn move_position(
        &self,
        key: &PartitionKey,
        from: &Position,
        to: &Position,
        forget_events: bool,
    ) -> Result<bool, LoadError> {
        let sql = positions::move_sql(self.schema(), key, from, to, forget_events);
        Ok(!run(&self.postgres, &sql).await?.is_empty())
    }

    /// The states of these origins, in their order. They stay true until a load of the topic that
    /// the events return to.
    pub async fn event_states(
        &self,
        origins: &[Origin],
    ) -> Result<Vec<Option<EventState>>, LoadError> {
        let mut states = vec![None; origins.len()];
        if origins.is_empty() {
            return Ok(states);
        }
        for row in run(&self.postgres, &events::states_sql(self.schema(), origins)).await? {
            let number = row.try_get::<i32, _>(0).ok().and_then(|n| usize::try_from(n).ok());
            let state = row.try_get::<String, _>(1).ok().and_then(|s| EventState::parse(&s));
            let found = number.and_then(|number| states.get_mut(number)).zip(state);
            let Some((slot, state)) = found else {
                return Err(unexpected_columns(ORIGINS_TABLE));
            };
            *slot = Some(state);
        }
        Ok(states)
    }

    /// All origins in this state, with how often their events were refused.
    pub async fn events_in(&self, state: EventState) -> Result<HashMap<OriginKey, u32>, LoadError> {
        let rows = run(&self.postgres, &events::in_state_sql(self.schema(), state)).await?;
        let read = |row: &PgRow| -> Result<_, sqlx::Error> {
            let refusals: i32 = row.try_get(4)?;
            let key = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            Ok((key, u32::try_from(refusals).unwrap_or(0)))
        };
        let found: Result<_, _> = rows.iter().map(read).collect();
        found.map_err(|_| unexpected_columns(ORIGINS_TABLE))
    }

    /// Waiting events whose topics do not take them back are dead letters from now on; each comes
    /// with how often its copy had been refused. `reason`: a word for it. Events that do not wait,
    /// and those of which a later copy does, are left alone.
    pub async fn dead_letter(
        &self,
        letters: &[(Origin, u32)],
        reason: &str,
    ) -> Result<(), LoadError> {
        if letters.is_empty() {
            return Ok(());
        }
        let offsets = table(self.schema(), OFFSETS_TABLE);
        let sql = events::dead_letter_sql(self.schema(), &offsets, letters, reason);
        run(&self.postgres, &sql).await.map(drop)
    }

    /// Forgets decided states that did not change for so many seconds: older than every copy of
    /// their events.
    pub async fn forget_events(&self, older_than_seconds: u64) -> Result<(), LoadError> {
        run(&self.postgres, &events::forget_sql(self.schema(), older_than_seconds)).await.map(drop)
    }

    fn schema(&self) -> &str {
        self.postgres.default_schema()
    }
}

/// Locks the position in the load's transaction; answers one row if it and the states are still as
/// the fence has them.
pub(super) fn fence_sql(schema: &str, fence: &Fence) -> String {
    positions::lock_sql(schema, fence) + &events::changed_sql(schema, &fence.states)
}

/// Writes the states and moves the position. The last statement of a load; it must hit one row.
pub(super) fn advance_sql(schema: &str, fence: &Fence, changes: &LedgerChanges) -> String {
    events::change_sql(schema, &changes.table, &changes.events)
        + &positions::advance_sql(schema, fence, changes)
}

/// Runs statements that bring their own transaction, or need none.
async fn run(postgres: &Postgres, sql: &str) -> Result<Vec<PgRow>, LoadError> {
    postgres.connection().await?.run(sql).await.map_err(|error| match error {
        // an alias hides the table's name
        LoadError::Statement { error } if error.sqlstate == UNDEFINED_COLUMN => {
            LoadError::config(format!(
                "table {OFFSETS_TABLE} or {ORIGINS_TABLE} does not have the columns of the operations guide: {error}"
            ))
        }
        error => error,
    })
}

fn unexpected_columns(table: &str) -> LoadError {
    LoadError::config(format!("table {table} does not have the columns it was made with"))
}

fn table(schema: &str, table: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(table))
}

/// Answers a row where the schema is there. `create schema if not exists` asks for rights on the
/// database even then.
fn schema_exists_sql(schema: &str) -> String {
    format!("select 1 from pg_catalog.pg_namespace where nspname = {}", quote_literal(schema))
}

fn create_sql(schema: &str, has_schema: bool, ledger: Uuid) -> String {
    let make_schema = match has_schema {
        true => String::new(),
        false => format!("create schema if not exists {}; ", quote_ident(schema)),
    };
    let (offsets, origins) = (table(schema, OFFSETS_TABLE), events::table(schema));
    // two creators of one table collide in the catalog in spite of `if not exists`, hence the lock
    format!(
        "begin; \
         select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext({lock})); \
         {make_schema}create table if not exists {offsets} (\
         cluster_id text not null, topic text not null, partition integer not null, \
         ledger_id uuid, topic_id uuid, \
         next_offset bigint not null, epoch bigint not null, began bigint not null, \
         last_timestamp timestamp with time zone, \
         received bigint not null default 0, loaded bigint not null default 0, \
         merged bigint not null default 0, waiting bigint not null default 0, \
         dead bigint not null default 0, \
         updated_at timestamp with time zone not null default now(), \
         primary key (cluster_id, topic, partition)); \
         create table if not exists {origins} ({origin_columns}); \
         insert into {offsets} (cluster_id, topic, partition, ledger_id, next_offset, epoch, began) \
         values ('', '', 0, '{ledger}', 0, 0, 0) on conflict do nothing; \
         commit",
        lock = quote_literal(&offsets),
        origin_columns = events::COLUMNS,
    )
}

/// The ledger row is the one without a topic. Columns that are missing show here, before anything
/// is loaded.
fn ledger_sql(schema: &str) -> String {
    format!(
        "select ledger_id::text, received, loaded, merged, waiting, dead from {} \
         where cluster_id = '' and topic = ''; \
         select topic_name, destination_table, state, refusals, reason from {} limit 0",
        table(schema, OFFSETS_TABLE),
        events::table(schema)
    )
}
