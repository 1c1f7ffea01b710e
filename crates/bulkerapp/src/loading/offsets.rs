//! The offsets table: how far each topic is loaded, kept in the destination's own database.
//!
//! Invariant: a row moves in the transaction that carries the rows of the batch (the *checkpoint*), or by
//! a compare-and-set on (offset, epoch) that raises the epoch, and by nothing else. A loader that was
//! overtaken therefore finds its (offset, epoch) gone and loads nothing.
//!
//! Statements go by the simple protocol with quoted literals, so they work through a pooler that gives
//! every transaction another connection.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;
use warehouse::{
    Checkpoint, LoadError, LoadReport,
    postgres::{Postgres, quote_ident, quote_literal},
};

use super::{
    envelope::Origin,
    origins::{self, ORIGINS_TABLE, OriginChange, OriginState},
};

/// The offsets table, in the destination's default schema.
pub(super) const OFFSETS_TABLE: &str = "bulker_offsets";
const UNDEFINED_COLUMN: &str = "42703";

/// Where one partition of a topic stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OffsetsRow {
    /// The first offset that is not in the table yet.
    pub(super) next_offset: i64,
    /// Raised by every move outside a load.
    pub(super) epoch: i64,
    /// The lowest offset the row ever started from.
    pub(super) began: i64,
    /// Kafka's id of the topic; `None` on brokers before 2.8.
    pub(super) topic_id: Option<Uuid>,
}

/// One partition of one topic, as the row's key names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RowKey {
    pub(super) cluster_id: String,
    pub(super) topic: String,
    pub(super) partition: i32,
}

/// How a load moves the row.
#[derive(Debug, Clone, Default)]
pub(super) struct Advance {
    /// The first offset after the batch.
    pub(super) next_offset: i64,
    /// Kafka's timestamp of the last record, milliseconds since the epoch.
    pub(super) last_timestamp_ms: Option<i64>,
    pub(super) tally: Tally,
    pub(super) table: String,
    pub(super) origins: Vec<OriginChange>,
}

/// What became of events. After every load: received = loaded + merged + waiting + dead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Read for the first time.
    pub(super) received: i64,
    /// Rows inserted or updated.
    pub(super) loaded: i64,
    /// Replaced by a later event of the same key in their batch.
    pub(super) merged: i64,
    /// Refused, and to be tried again. Falls when they are loaded or dead.
    pub(super) waiting: i64,
    /// Dead letters.
    pub(super) dead: i64,
}

/// The offsets table of one destination.
#[derive(Clone)]
pub(super) struct Offsets {
    postgres: Postgres,
    ledger: Uuid,
}

impl Offsets {
    /// Opens the table, makes it where it is missing, and reads its ledger id.
    pub(super) async fn open(postgres: &Postgres) -> Result<Offsets, LoadError> {
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
        let ledger = rows
            .first()
            .and_then(|row| row.try_get::<String, _>(0).ok())
            .and_then(|ledger| ledger.parse().ok())
            .ok_or_else(|| {
                LoadError::config(format!(
                    "table {OFFSETS_TABLE} has no ledger row; was it emptied by hand?"
                ))
            })?;
        Ok(Offsets { postgres: postgres.clone(), ledger })
    }

    /// The random id that the table got when it was made.
    pub(super) fn ledger(&self) -> Uuid {
        self.ledger
    }

    /// The row, as it stands now.
    pub(super) async fn read(&self, key: &RowKey) -> Result<Option<OffsetsRow>, LoadError> {
        let rows = run(&self.postgres, &read_sql(self.schema(), key)).await?;
        rows.first().map(parse_row).transpose()
    }

    /// The row, once nobody holds it any more: after a lost answer to COMMIT it waits for the old session.
    pub(super) async fn read_settled(&self, key: &RowKey) -> Result<Option<OffsetsRow>, LoadError> {
        let sql = format!(
            "begin; set local lock_timeout = '60s'; {} for update; commit",
            read_sql(self.schema(), key)
        );
        let rows = run(&self.postgres, &sql).await?;
        rows.first().map(parse_row).transpose()
    }

    /// Inserts the first row of a partition. `false`: somebody else did.
    pub(super) async fn insert(&self, key: &RowKey, row: &OffsetsRow) -> Result<bool, LoadError> {
        Ok(!run(&self.postgres, &insert_sql(self.schema(), key, row)).await?.is_empty())
    }

    /// Moves the row outside a load, from what was read to `to`, whose epoch is higher. `false`: it is not
    /// what was read any more.
    pub(super) async fn move_row(
        &self,
        key: &RowKey,
        from: &OffsetsRow,
        to: &OffsetsRow,
        forget_origins: bool,
    ) -> Result<bool, LoadError> {
        let sql = move_sql(self.schema(), key, from, to, forget_origins);
        Ok(!run(&self.postgres, &sql).await?.is_empty())
    }

    /// The statements that move the row inside a load's transaction, if the states that were `read` are still true under
    /// its lock. `settle` is asked for the move when all rows are sent.
    pub(super) fn checkpoint<F>(
        &self,
        key: &RowKey,
        from: &OffsetsRow,
        read: &[(Origin, Option<OriginState>)],
        settle: F,
    ) -> Checkpoint
    where
        F: for<'a> Fn(&'a LoadReport) -> BoxFuture<'a, Result<Advance, LoadError>>
            + Send
            + Sync
            + 'static,
    {
        // one row: the row is what it was, and so is every state
        let lock = lock_sql(self.schema(), key, from) + &origins::changed_sql(self.schema(), read);
        let rendered = std::sync::Arc::new((self.schema().to_owned(), key.clone(), from.clone()));
        Checkpoint {
            lock,
            advance: Box::new(move |report| {
                let (settled, rendered) = (settle(report), rendered.clone());
                Box::pin(async move {
                    let (schema, key, from) = &*rendered;
                    Ok(advance_sql(schema, key, from, &settled.await?))
                })
            }),
        }
    }

    /// The states of these origins, in their order. Stay true until a load of the topic they return to.
    pub(super) async fn origin_states(
        &self,
        origins: &[Origin],
    ) -> Result<Vec<Option<OriginState>>, LoadError> {
        let mut states = vec![None; origins.len()];
        if origins.is_empty() {
            return Ok(states);
        }
        for row in run(&self.postgres, &origins::states_sql(self.schema(), origins)).await? {
            let number = row.try_get::<i32, _>(0).ok().and_then(|n| usize::try_from(n).ok());
            let state = row.try_get::<String, _>(1).ok().and_then(|s| OriginState::parse(&s));
            let found = number.and_then(|number| states.get_mut(number)).zip(state);
            let Some((slot, state)) = found else {
                return Err(unexpected_columns(ORIGINS_TABLE));
            };
            *slot = Some(state);
        }
        Ok(states)
    }

    /// All origins in this state, with how often their events were refused.
    pub(super) async fn origins_in(
        &self,
        state: OriginState,
    ) -> Result<HashMap<(String, String, i32, i64), u32>, LoadError> {
        let rows = run(&self.postgres, &origins::in_state_sql(self.schema(), state)).await?;
        let read = |row: &PgRow| -> Result<_, sqlx::Error> {
            let refusals: i32 = row.try_get(4)?;
            let key = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            Ok((key, u32::try_from(refusals).unwrap_or(0)))
        };
        let found: Result<_, _> = rows.iter().map(read).collect();
        found.map_err(|_| unexpected_columns(ORIGINS_TABLE))
    }

    /// Forgets states that are older than every copy of their events.
    pub(super) async fn forget_origins(&self, older_than_seconds: u64) -> Result<(), LoadError> {
        run(&self.postgres, &origins::forget_sql(self.schema(), older_than_seconds)).await.map(drop)
    }

    fn schema(&self) -> &str {
        self.postgres.default_schema()
    }
}

/// Runs statements that bring their own transaction, or need none.
pub(super) async fn run(postgres: &Postgres, sql: &str) -> Result<Vec<PgRow>, LoadError> {
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

fn parse_row(row: &PgRow) -> Result<OffsetsRow, LoadError> {
    let read = || -> Result<OffsetsRow, sqlx::Error> {
        Ok(OffsetsRow {
            next_offset: row.try_get(0)?,
            epoch: row.try_get(1)?,
            began: row.try_get(2)?,
            topic_id: row.try_get::<Option<String>, _>(3)?.and_then(|id| id.parse().ok()),
        })
    };
    read().map_err(|_| unexpected_columns(OFFSETS_TABLE))
}

pub(super) fn unexpected_columns(table: &str) -> LoadError {
    LoadError::config(format!("table {table} does not have the columns it was made with"))
}

pub(super) fn table(schema: &str, table: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(table))
}

fn key_sql(key: &RowKey) -> String {
    format!(
        "cluster_id = {} and topic = {} and partition = {}",
        quote_literal(&key.cluster_id),
        quote_literal(&key.topic),
        key.partition
    )
}

fn unmoved_sql(key: &RowKey, from: &OffsetsRow) -> String {
    format!("{} and next_offset = {} and epoch = {}", key_sql(key), from.next_offset, from.epoch)
}

fn topic_id_sql(topic_id: Option<Uuid>) -> String {
    topic_id.map_or_else(|| "null".to_owned(), |id| format!("'{id}'"))
}

/// Answers a row where the schema is there. `create schema if not exists` asks for rights on the database even then.
fn schema_exists_sql(schema: &str) -> String {
    format!("select 1 from pg_catalog.pg_namespace where nspname = {}", quote_literal(schema))
}

fn create_sql(schema: &str, has_schema: bool, ledger: Uuid) -> String {
    let make_schema = match has_schema {
        true => String::new(),
        false => format!("create schema if not exists {}; ", quote_ident(schema)),
    };
    let (offsets, origins) = (table(schema, OFFSETS_TABLE), origins::table(schema));
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
        origin_columns = origins::COLUMNS,
    )
}

/// The ledger row is the one without a topic. Columns that are missing show here, before anything is loaded.
fn ledger_sql(schema: &str) -> String {
    format!(
        "select ledger_id::text, received, loaded, merged, waiting, dead from {} \
         where cluster_id = '' and topic = ''; \
         select topic_name, destination_table, state, refusals, reason from {} limit 0",
        table(schema, OFFSETS_TABLE),
        origins::table(schema)
    )
}

fn read_sql(schema: &str, key: &RowKey) -> String {
    format!(
        "select next_offset, epoch, began, topic_id::text from {} where {}",
        table(schema, OFFSETS_TABLE),
        key_sql(key)
    )
}

fn insert_sql(schema: &str, key: &RowKey, row: &OffsetsRow) -> String {
    format!(
        "insert into {} (cluster_id, topic, partition, topic_id, next_offset, epoch, began) \
         values ({}, {}, {}, {}, {}, {}, {}) on conflict do nothing returning 1",
        table(schema, OFFSETS_TABLE),
        quote_literal(&key.cluster_id),
        quote_literal(&key.topic),
        key.partition,
        topic_id_sql(row.topic_id),
        row.next_offset,
        row.epoch,
        row.began,
    )
}

fn move_sql(
    schema: &str,
    key: &RowKey,
    from: &OffsetsRow,
    to: &OffsetsRow,
    forget_origins: bool,
) -> String {
    let unmoved = unmoved_sql(key, from);
    let offsets = table(schema, OFFSETS_TABLE);
    // one statement, hence one transaction. Events whose refusal is forgotten will be received again
    let (forgotten, counters) = if forget_origins {
        let of_topic: Vec<_> = [Some(key.topic.clone()), from.topic_id.map(|id| id.to_string())]
            .iter()
            .flatten()
            .map(|topic| quote_literal(topic))
            .collect();
        let forgotten = format!(
            "target as (select 1 from {offsets} where {unmoved} for update), \
             forgotten as (delete from {} where cluster_id = {} and topic in ({}) \
             and partition = {} and \"offset\" >= {} and exists (select 1 from target) \
             returning state), \
             gone as (select count(*) filter (where state = 'refused') as refused, \
             count(*) filter (where state = 'dead') as dead from forgotten), ",
            origins::table(schema),
            quote_literal(&key.cluster_id),
            of_topic.join(", "),
            key.partition,
            to.next_offset
        );
        let counters = ", waiting = waiting - (select refused from gone), \
             dead = dead - (select gone.dead from gone), \
             received = received - (select refused + gone.dead from gone)";
        (forgotten, counters)
    } else {
        (String::new(), "")
    };
    format!(
        "with {forgotten}moved as (update {offsets} set next_offset = {}, epoch = {}, began = {}, \
         topic_id = {}, updated_at = now(){counters} where {unmoved} returning 1) \
         select 1 from moved",
        to.next_offset,
        to.epoch,
        to.began,
        topic_id_sql(to.topic_id),
    )
}

fn lock_sql(schema: &str, key: &RowKey, from: &OffsetsRow) -> String {
    format!(
        "select 1 from {} where {} for update",
        table(schema, OFFSETS_TABLE),
        unmoved_sql(key, from)
    )
}

fn advance_sql(schema: &str, key: &RowKey, from: &OffsetsRow, advance: &Advance) -> String {
    let last_timestamp = advance.last_timestamp_ms.map_or_else(String::new, |millis| {
        format!("last_timestamp = to_timestamp({millis}::double precision / 1000), ")
    });
    let Tally { received, loaded, merged, waiting, dead } = advance.tally;
    format!(
        "{}update {} set next_offset = {}, topic_id = coalesce({}, topic_id), {last_timestamp}\
         received = received + {received}, loaded = loaded + {loaded}, merged = merged + {merged}, \
         waiting = waiting + ({waiting}), dead = dead + {dead}, updated_at = now() \
         where {}",
        origins::change_sql(schema, &advance.table, &advance.origins),
        table(schema, OFFSETS_TABLE),
        advance.next_offset,
        topic_id_sql(from.topic_id),
        unmoved_sql(key, from),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RowKey {
        RowKey { cluster_id: "c".to_owned(), topic: "it's".to_owned(), partition: 0 }
    }

    #[test]
    fn a_load_touches_the_row_only_as_it_was_read() {
        let from = OffsetsRow { next_offset: 10, epoch: 3, ..OffsetsRow::default() };
        let tally = Tally { received: 15, loaded: 14, merged: 1, waiting: -2, dead: 0 };
        let advance = Advance { next_offset: 25, tally, ..Advance::default() };
        let unmoved = "cluster_id = 'c' and topic = 'it''s' and partition = 0 \
                       and next_offset = 10 and epoch = 3";
        assert_eq!(
            lock_sql("s", &key(), &from),
            format!("select 1 from \"s\".\"bulker_offsets\" where {unmoved} for update")
        );
        let advance = advance_sql("s", &key(), &from, &advance);
        assert!(advance.ends_with(&format!("where {unmoved}")), "{advance}");
        assert!(advance.contains("next_offset = 25"), "{advance}");
        assert!(advance.contains("loaded = loaded + 14, merged = merged + 1"), "{advance}");
        assert!(advance.contains("waiting = waiting + (-2)"), "{advance}");
    }

    #[test]
    fn a_reset_forgets_the_origins_at_and_beyond_it_in_the_same_statement() {
        let from = OffsetsRow { next_offset: 10, epoch: 3, ..OffsetsRow::default() };
        let to = OffsetsRow { next_offset: 4, epoch: 4, ..OffsetsRow::default() };
        let sql = move_sql("s", &key(), &from, &to, true);
        assert!(sql.contains("delete from \"s\".\"bulker_origins\""), "{sql}");
        assert!(sql.contains("\"offset\" >= 4"), "{sql}");
        assert!(!sql.contains(';'), "one statement: {sql}");
    }
}
