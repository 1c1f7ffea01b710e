//! What became of each refused event, by its origin: the SQL of the table that holds it.
//!
//! Invariant: states change under the lock of the position of the topic that the event returns to,
//! and in load transactions only, but for one change: an event whose topic does not take it back is
//! dead. So what a run reads of them stays true until its load, which compares them under that lock.

use std::collections::HashMap;

use crate::{
    ledger::{EventChange, EventState, Origin, OriginKey},
    postgres::{quote_ident, quote_literal},
    rows::postgres_rules::ORIGINS_TABLE,
};

/// Column definitions of the table.
pub(super) const COLUMNS: &str = "cluster_id text not null, topic text not null, partition integer not null, \
     \"offset\" bigint not null, \
     topic_name text not null, destination_table text not null, \
     state text not null check (state in ('refused', 'loaded', 'dead')), \
     refusals integer not null default 0, reason text not null default '', \
     refused_at timestamp with time zone not null default now(), \
     updated_at timestamp with time zone not null default now(), \
     primary key (cluster_id, topic, partition, \"offset\")";

/// States of some origins, as a query that answers `(number, state)` for those that have one.
pub(super) fn states_sql(schema: &str, origins: &[Origin]) -> String {
    let values: Vec<_> = origins
        .iter()
        .enumerate()
        .map(|(number, origin)| {
            format!(
                "({number}, {}, {}, {}, {}::bigint)",
                quote_literal(&origin.cluster),
                quote_literal(&origin.topic_key()),
                origin.partition,
                origin.offset
            )
        })
        .collect();
    format!(
        "select wanted.number, known.state from {} known join (values {}) \
         wanted (number, cluster_id, topic, partition, \"offset\") \
         using (cluster_id, topic, partition, \"offset\")",
        table(schema),
        values.join(", ")
    )
}

/// Answers a row if a state is not what it was. Empty without origins.
pub(super) fn changed_sql(schema: &str, read: &[(Origin, Option<EventState>)]) -> String {
    if read.is_empty() {
        return String::new();
    }
    let values: Vec<_> = read
        .iter()
        .map(|(origin, state)| {
            format!(
                "({}, {}, {}, {}::bigint, '{}')",
                quote_literal(&origin.cluster),
                quote_literal(&origin.topic_key()),
                origin.partition,
                origin.offset,
                state.map_or("", EventState::as_str)
            )
        })
        .collect();
    format!(
        "; select 1 where exists (select 1 from (values {}) \
         read (cluster_id, topic, partition, \"offset\", state) left join {} known \
         using (cluster_id, topic, partition, \"offset\") \
         where coalesce(known.state, '') <> read.state)",
        values.join(", "),
        table(schema)
    )
}

/// All origins in a state: cluster, topic, partition, offset, refusals.
pub(super) fn in_state_sql(schema: &str, state: EventState) -> String {
    format!(
        "select cluster_id, topic, partition, \"offset\", refusals from {} where state = '{}'",
        table(schema),
        state.as_str()
    )
}

/// Writes the states of one load. Empty without changes; else it ends with a semicolon.
pub(super) fn change_sql(schema: &str, destination_table: &str, changes: &[EventChange]) -> String {
    // a later change of the same origin in one batch wins, and one statement may not touch a row
    // twice
    let mut last: HashMap<OriginKey, &EventChange> = HashMap::new();
    for change in changes {
        last.insert(change.origin.key(), change);
    }
    if last.is_empty() {
        return String::new();
    }
    let destination_table = quote_literal(destination_table);
    let mut values: Vec<_> = last
        .into_values()
        .map(|change| {
            let EventChange { origin, state, refusals, reason } = change;
            format!(
                "({}, {}, {}, {}, {}, {destination_table}, '{}', {refusals}, {})",
                quote_literal(&origin.cluster),
                quote_literal(&origin.topic_key()),
                origin.partition,
                origin.offset,
                quote_literal(&origin.topic),
                state.as_str(),
                quote_literal(reason)
            )
        })
        .collect();
    values.sort_unstable(); // loads that meet lock in one order
    format!(
        "insert into {} as known (cluster_id, topic, partition, \"offset\", topic_name, \
         destination_table, state, refusals, reason) values {} \
         on conflict (cluster_id, topic, partition, \"offset\") do update set \
         state = excluded.state, refusals = greatest(known.refusals, excluded.refusals), \
         reason = case when excluded.reason = '' then known.reason else excluded.reason end, \
         updated_at = now(); ",
        table(schema),
        values.join(", ")
    )
}

/// Waiting events that cannot return to their topic are dead from now on: their states and what is
/// counted beside the positions of their topics, in one transaction. `letters` holds at least one,
/// each with how often the copy had been refused that its letter was made of: an older copy than
/// the one that waits decides nothing, and nobody would show its letter.
pub(super) fn dead_letter_sql(
    schema: &str,
    offsets: &str,
    letters: &[(Origin, u32)],
    reason: &str,
) -> String {
    let mut values: Vec<_> = letters
        .iter()
        .map(|(origin, refusals)| {
            format!(
                "({}, {}, {}, {}::bigint, {}, {refusals}::bigint)",
                quote_literal(&origin.cluster),
                quote_literal(&origin.topic_key()),
                origin.partition,
                origin.offset,
                quote_literal(&origin.topic)
            )
        })
        .collect();
    values.sort_unstable();
    values.dedup();
    let values = values.join(", ");
    let events = table(schema);
    // positions first, as a load locks them
    format!(
        "begin; set local lock_timeout = '30s'; \
         select 1 from {offsets} position where (cluster_id, topic, partition) in \
         (select letter.cluster_id, letter.topic_name, letter.partition from (values {values}) \
         letter (cluster_id, topic, partition, \"offset\", topic_name, refusals)) \
         order by cluster_id, topic, partition for update; \
         with dead as (update {events} known set state = 'dead', reason = {reason}, \
         updated_at = now() from (values {values}) \
         letter (cluster_id, topic, partition, \"offset\", topic_name, refusals) \
         where known.cluster_id = letter.cluster_id and known.topic = letter.topic \
         and known.partition = letter.partition and known.\"offset\" = letter.\"offset\" \
         and known.state = 'refused' and known.refusals = letter.refusals \
         returning known.cluster_id, known.topic_name, known.partition), \
         counted as (select cluster_id, topic_name, partition, count(*) as events from dead \
         group by cluster_id, topic_name, partition) \
         update {offsets} position set waiting = waiting - counted.events, \
         dead = position.dead + counted.events, updated_at = now() from counted \
         where position.cluster_id = counted.cluster_id and position.topic = counted.topic_name \
         and position.partition = counted.partition; commit",
        reason = quote_literal(reason)
    )
}

/// Forgets decided states that no copy of an event can ask for any more; `refused` never expires.
pub(super) fn forget_sql(schema: &str, older_than_seconds: u64) -> String {
    format!(
        "delete from {} where state <> 'refused' \
         and updated_at < now() - interval '{older_than_seconds} seconds'",
        table(schema)
    )
}

/// The table's quoted name.
pub(super) fn table(schema: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(ORIGINS_TABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(topic: &str, offset: i64) -> Origin {
        let (cluster, topic) = ("c".to_owned(), topic.to_owned());
        Origin { cluster, topic, topic_id: None, partition: 0, offset }
    }

    #[test]
    fn the_last_change_of_an_origin_counts() {
        let change = |state, refusals| EventChange {
            origin: origin("t", 1),
            state,
            refusals,
            reason: String::new(),
        };
        let sql = change_sql(
            "s",
            "it's",
            &[change(EventState::Refused, 1), change(EventState::Loaded, 1)],
        );
        assert_eq!(sql.matches("('c', ").count(), 1, "{sql}");
        assert!(sql.contains("'it''s', 'loaded', 1"), "{sql}");
        assert_eq!(change_sql("s", "t", &[]), "");
    }

    #[test]
    fn origins_that_differ_in_what_the_table_does_not_tell_apart_are_one_row() {
        let named = |topic: &str| EventChange {
            origin: Origin { topic_id: Some(uuid::Uuid::from_u128(5)), ..origin(topic, 1) },
            state: EventState::Refused,
            refusals: 1,
            reason: String::new(),
        };
        let sql = change_sql("s", "t", &[named("one"), named("other")]);
        assert_eq!(sql.matches("('c', ").count(), 1, "{sql}");
    }
}
