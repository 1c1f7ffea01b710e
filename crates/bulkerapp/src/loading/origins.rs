//! What became of each refused event, by the place where it was read first.
//!
//! The states are rows of the origins table and change in load transactions only, under the lock of the offsets row of
//! the topic that the event returns to. So what a run reads of them stays true until its load, unless the offsets
//! row moved meanwhile, which fails the load.
//!
//! | state | a first reading of the event | a returning copy |
//! | --- | --- | --- |
//! | none | loaded: nothing is written; refused: `refused`, or `dead` | dropped, unless our row never covered its origin |
//! | `refused` | loaded: `loaded` | loaded: `loaded`; refused again: stays, or `dead` |
//! | `loaded`, `dead` | - | dropped |
//!
//! A refusal whose transaction never committed leaves copies without a state: their event was read again, and loaded or
//! refused anew. Dropping them is what keeps it in the table once.

use std::collections::HashMap;

use warehouse::postgres::{quote_ident, quote_literal};

use super::{
    envelope::Origin,
    offsets::{OffsetsRow, RowKey},
};

/// The states of refused events, in the destination's default schema.
pub(super) const ORIGINS_TABLE: &str = "bulker_origins";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum OriginState {
    /// It waits in the retry topic.
    Refused,
    /// It was refused and is in the table now.
    Loaded,
    /// It is a dead letter.
    Dead,
}

impl OriginState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            OriginState::Refused => "refused",
            OriginState::Loaded => "loaded",
            OriginState::Dead => "dead",
        }
    }

    pub(super) fn parse(text: &str) -> Option<OriginState> {
        [OriginState::Refused, OriginState::Loaded, OriginState::Dead]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// What a load does with a returning copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop,
    /// `is_new`: nothing was known of it, so it counts as received here.
    Load {
        is_new: bool,
    },
}

/// Decides on a returning copy, from the state of its origin.
pub(super) fn judge(
    state: Option<OriginState>,
    origin: &Origin,
    key: &RowKey,
    row: &OffsetsRow,
) -> Verdict {
    match state {
        Some(OriginState::Refused) => Verdict::Load { is_new: false },
        Some(OriginState::Loaded | OriginState::Dead) => Verdict::Drop,
        None if covers(key, row, origin) => Verdict::Drop,
        None => Verdict::Load { is_new: true },
    }
}

/// Whether the origin was read under this row: then the event's fate was decided with the row. Also under what the row was
/// for an earlier topic of the same name.
fn covers(key: &RowKey, row: &OffsetsRow, origin: &Origin) -> bool {
    let is_same_name = origin.cluster == key.cluster_id
        && origin.topic == key.topic
        && origin.partition == key.partition;
    let is_of_earlier_topic =
        matches!((origin.topic_id, row.topic_id), (Some(then), Some(now)) if then != now);
    is_same_name && (is_of_earlier_topic || origin.offset >= row.began)
}

/// A state that a load writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OriginChange {
    pub(super) origin: Origin,
    pub(super) state: OriginState,
    /// How often the event was refused so far.
    pub(super) refusals: u32,
    /// SQLSTATE, or what else the refusal is called; never a row value. Empty when the event was loaded.
    pub(super) reason: String,
}

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
pub(super) fn changed_sql(schema: &str, read: &[(Origin, Option<OriginState>)]) -> String {
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
                state.map_or("", OriginState::as_str)
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
pub(super) fn in_state_sql(schema: &str, state: OriginState) -> String {
    format!(
        "select cluster_id, topic, partition, \"offset\", refusals from {} where state = '{}'",
        table(schema),
        state.as_str()
    )
}

/// Writes the states of one load. Empty without changes; else it ends with a semicolon.
pub(super) fn change_sql(
    schema: &str,
    destination_table: &str,
    changes: &[OriginChange],
) -> String {
    // a later change of the same origin in one batch wins, and one statement may not touch a row twice
    let mut last: HashMap<&Origin, &OriginChange> = HashMap::new();
    for change in changes {
        last.insert(&change.origin, change);
    }
    if last.is_empty() {
        return String::new();
    }
    let destination_table = quote_literal(destination_table);
    let mut values: Vec<_> = last
        .into_values()
        .map(|change| {
            let OriginChange { origin, state, refusals, reason } = change;
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

/// Forgets what nobody can ask for any more: `refused` never expires.
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
    use uuid::Uuid;

    use super::*;

    const TOPIC: Uuid = Uuid::from_u128(2);

    fn key() -> RowKey {
        RowKey { cluster_id: "c".to_owned(), topic: "t".to_owned(), partition: 0 }
    }

    fn row() -> OffsetsRow {
        OffsetsRow { next_offset: 50, epoch: 0, began: 10, topic_id: Some(TOPIC) }
    }

    fn origin(topic: &str, offset: i64) -> Origin {
        let (cluster, topic) = ("c".to_owned(), topic.to_owned());
        Origin { cluster, topic, topic_id: Some(TOPIC), partition: 0, offset }
    }

    #[test]
    fn a_copy_is_loaded_while_its_event_is_refused_and_dropped_once_its_fate_is_decided() {
        let judged = |state| judge(state, &origin("t", 20), &key(), &row());
        assert_eq!(judged(Some(OriginState::Refused)), Verdict::Load { is_new: false });
        assert_eq!(judged(Some(OriginState::Loaded)), Verdict::Drop);
        assert_eq!(judged(Some(OriginState::Dead)), Verdict::Drop);
        assert_eq!(judged(None), Verdict::Drop, "its refusal never committed");
    }

    #[test]
    fn a_copy_that_our_row_never_covered_is_loaded_as_new() {
        let elsewhere = [
            origin("t", 9),
            origin("retry", 20),
            Origin { partition: 1, ..origin("t", 20) },
            Origin { cluster: "other".to_owned(), ..origin("t", 20) },
        ];
        for origin in elsewhere {
            let verdict = judge(None, &origin, &key(), &row());
            assert_eq!(verdict, Verdict::Load { is_new: true }, "{origin:?}");
        }
        let unnamed = Origin { topic_id: None, ..origin("t", 20) };
        assert_eq!(judge(None, &unnamed, &key(), &row()), Verdict::Drop);
        let of_earlier_topic = Origin { topic_id: Some(Uuid::from_u128(3)), ..origin("t", 5) };
        assert_eq!(judge(None, &of_earlier_topic, &key(), &row()), Verdict::Drop);
    }

    #[test]
    fn the_last_change_of_an_origin_counts() {
        let change = |state, refusals| OriginChange {
            origin: origin("t", 1),
            state,
            refusals,
            reason: String::new(),
        };
        let sql = change_sql(
            "s",
            "it's",
            &[change(OriginState::Refused, 1), change(OriginState::Loaded, 1)],
        );
        assert_eq!(sql.matches("('c', ").count(), 1, "{sql}");
        assert!(sql.contains("'it''s', 'loaded', 1"), "{sql}");
        assert_eq!(change_sql("s", "t", &[]), "");
    }
}
