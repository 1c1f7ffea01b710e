//! All positions of a destination with what is counted beside them, by one question.
//!
//! Invariant: asking makes nothing, locks nothing and changes nothing, so it may be done at any
//! time, by every user that may read the table.

use jiff::Timestamp;
use sqlx::{Row, postgres::PgRow};

use super::{OFFSETS_TABLE, run, table, unexpected_columns};
use crate::{
    error::LoadError,
    ledger::{CountedPosition, Position, Tally},
    postgres::{Postgres, quote_literal},
};

/// PostgreSQL's code for a schema that is not there.
const UNDEFINED_SCHEMA: &str = "3F000";

/// All rows of a cluster's topics. `None`: the table is not there (yet).
pub(crate) async fn read_all(
    postgres: &Postgres,
    cluster_id: &str,
) -> Result<Option<Vec<CountedPosition>>, LoadError> {
    match run(postgres, &read_all_sql(postgres.default_schema(), cluster_id)).await {
        Ok(rows) => rows.iter().map(parse).collect::<Result<_, _>>().map(Some),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &LoadError) -> bool {
    let has_no_schema =
        error.server_error().is_some_and(|error| error.sqlstate == UNDEFINED_SCHEMA);
    has_no_schema || error.is_undefined_table()
}

fn read_all_sql(schema: &str, cluster_id: &str) -> String {
    let millis = |column: &str| format!("(extract(epoch from {column}) * 1000)::bigint");
    format!(
        "select topic, partition, next_offset, epoch, began, topic_id::text, \
         received, loaded, merged, waiting, dead, {}, {} from {} where cluster_id = {}",
        millis("last_timestamp"),
        millis("updated_at"),
        table(schema, OFFSETS_TABLE),
        quote_literal(cluster_id)
    )
}

fn parse(row: &PgRow) -> Result<CountedPosition, LoadError> {
    let time = |millis: i64| Timestamp::from_millisecond(millis).unwrap_or_default();
    let read = || -> Result<CountedPosition, sqlx::Error> {
        Ok(CountedPosition {
            topic: row.try_get(0)?,
            partition: row.try_get(1)?,
            position: Position {
                next_offset: row.try_get(2)?,
                epoch: row.try_get(3)?,
                began: row.try_get(4)?,
                topic_id: row.try_get::<Option<String>, _>(5)?.and_then(|id| id.parse().ok()),
            },
            tally: Tally {
                received: row.try_get(6)?,
                loaded: row.try_get(7)?,
                merged: row.try_get(8)?,
                waiting: row.try_get(9)?,
                dead: row.try_get(10)?,
            },
            last_event_at: row.try_get::<Option<i64>, _>(11)?.map(time),
            updated_at: time(row.try_get(12)?),
        })
    };
    read().map_err(|_| unexpected_columns(OFFSETS_TABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_cluster_are_asked_for_and_the_cluster_is_quoted() {
        let sql = read_all_sql("s", "it's");
        assert!(sql.ends_with("from \"s\".\"bulker_offsets\" where cluster_id = 'it''s'"), "{sql}");
    }
}
