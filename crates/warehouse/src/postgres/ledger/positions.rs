//! The SQL of positions: read, inserted, moved outside a load, and locked and moved inside one.
//!
//! Invariant: whatever changes a position names the offset and the epoch that it was read with, so
//! that it hits one row or none.

use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{OFFSETS_TABLE, events, table, unexpected_columns};
use crate::{
    error::LoadError,
    ledger::{Fence, LedgerChanges, PartitionKey, Position, Tally},
    postgres::quote_literal,
};

pub(super) fn parse(row: &PgRow) -> Result<Position, LoadError> {
    let read = || -> Result<Position, sqlx::Error> {
        Ok(Position {
            next_offset: row.try_get(0)?,
            epoch: row.try_get(1)?,
            began: row.try_get(2)?,
            topic_id: row.try_get::<Option<String>, _>(3)?.and_then(|id| id.parse().ok()),
        })
    };
    read().map_err(|_| unexpected_columns(OFFSETS_TABLE))
}

fn key_sql(key: &PartitionKey) -> String {
    format!(
        "cluster_id = {} and topic = {} and partition = {}",
        quote_literal(&key.cluster_id),
        quote_literal(&key.topic),
        key.partition
    )
}

fn unmoved_sql(key: &PartitionKey, from: &Position) -> String {
    format!("{} and next_offset = {} and epoch = {}", key_sql(key), from.next_offset, from.epoch)
}

fn topic_id_sql(topic_id: Option<Uuid>) -> String {
    topic_id.map_or_else(|| "null".to_owned(), |id| format!("'{id}'"))
}

pub(super) fn read_sql(schema: &str, key: &PartitionKey) -> String {
    format!(
        "select next_offset, epoch, began, topic_id::text from {} where {}",
        table(schema, OFFSETS_TABLE),
        key_sql(key)
    )
}

pub(super) fn insert_sql(schema: &str, key: &PartitionKey, row: &Position) -> String {
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

pub(super) fn move_sql(
    schema: &str,
    key: &PartitionKey,
    from: &Position,
    to: &Position,
    forget_events: bool,
) -> String {
    let unmoved = unmoved_sql(key, from);
    let offsets = table(schema, OFFSETS_TABLE);
    // one statement, hence one transaction. Events whose refusal is forgotten will be received
    // again
    let (forgotten, counters) = if forget_events {
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
            events::table(schema),
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

pub(super) fn lock_sql(schema: &str, fence: &Fence) -> String {
    format!(
        "select 1 from {} where {} for update",
        table(schema, OFFSETS_TABLE),
        unmoved_sql(&fence.key, &fence.position)
    )
}

pub(super) fn advance_sql(schema: &str, fence: &Fence, changes: &LedgerChanges) -> String {
    let Fence { key, position, .. } = fence;
    let last_timestamp = changes.last_timestamp_ms.filter(|millis| is_storable(*millis));
    let last_timestamp = last_timestamp.map_or_else(String::new, |millis| {
        format!("last_timestamp = to_timestamp({millis}::double precision / 1000), ")
    });
    let Tally { received, loaded, merged, waiting, dead } = changes.tally;
    format!(
        "update {} set next_offset = {}, topic_id = coalesce({}, topic_id), {last_timestamp}\
         received = received + {received}, loaded = loaded + {loaded}, merged = merged + {merged}, \
         waiting = waiting + ({waiting}), dead = dead + {dead}, updated_at = now() \
         where {}",
        table(schema, OFFSETS_TABLE),
        changes.next_offset,
        topic_id_sql(position.topic_id),
        unmoved_sql(key, position),
    )
}

/// Whether the time lies in the years 1970 to 9999. Kafka takes any number from a producer, such
/// as one in nanoseconds; the column takes what it says only for people to look at.
fn is_storable(millis: i64) -> bool {
    const YEAR_10000: i64 = 253_402_300_800_000;
    (0..YEAR_10000).contains(&millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PartitionKey {
        PartitionKey { cluster_id: "c".to_owned(), topic: "it's".to_owned(), partition: 0 }
    }

    #[test]
    fn a_load_touches_the_row_only_as_it_was_read() {
        let position = Position { next_offset: 10, epoch: 3, ..Position::default() };
        let fence = Fence { key: key(), position, states: Vec::new() };
        let tally = Tally { received: 15, loaded: 14, merged: 1, waiting: -2, dead: 0 };
        let changes = LedgerChanges { next_offset: 25, tally, ..LedgerChanges::default() };
        let unmoved = "cluster_id = 'c' and topic = 'it''s' and partition = 0 \
                       and next_offset = 10 and epoch = 3";
        assert_eq!(
            lock_sql("s", &fence),
            format!("select 1 from \"s\".\"bulker_offsets\" where {unmoved} for update")
        );
        let advance = advance_sql("s", &fence, &changes);
        assert!(advance.ends_with(&format!("where {unmoved}")), "{advance}");
        assert!(advance.contains("next_offset = 25"), "{advance}");
        assert!(advance.contains("loaded = loaded + 14, merged = merged + 1"), "{advance}");
        assert!(advance.contains("waiting = waiting + (-2)"), "{advance}");
    }

    #[test]
    fn a_time_that_no_calendar_has_is_left_out() {
        let fence = Fence { key: key(), position: Position::default(), states: Vec::new() };
        let says_time = |millis| {
            let last_timestamp_ms = Some(millis);
            let changes = LedgerChanges { last_timestamp_ms, ..LedgerChanges::default() };
            advance_sql("s", &fence, &changes).contains("last_timestamp")
        };
        assert!(says_time(1_764_200_000_000));
        for millis in [1_764_200_000_000_000_000, i64::MAX, i64::MIN, -1] {
            assert!(!says_time(millis), "{millis}");
        }
    }

    #[test]
    fn a_reset_forgets_the_origins_at_and_beyond_it_in_the_same_statement() {
        let from = Position { next_offset: 10, epoch: 3, ..Position::default() };
        let to = Position { next_offset: 4, epoch: 4, ..Position::default() };
        let sql = move_sql("s", &key(), &from, &to, true);
        assert!(sql.contains("delete from \"s\".\"bulker_origins\""), "{sql}");
        assert!(sql.contains("\"offset\" >= 4"), "{sql}");
        assert!(!sql.contains(';'), "one statement: {sql}");
    }
}
