//! What operators see of loading. Names and labels that the original has stay as they are.

use std::sync::LazyLock;

use prometheus::{
    GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, register_gauge_vec, register_int_counter_vec,
    register_int_gauge, register_int_gauge_vec,
};

use super::snapshot::StatsSnapshot;
use crate::{
    outcome::Loaded,
    protocol::start::{HoldReason, Notice},
    topic::OwnedTopic,
};

const TOPIC: [&str; 4] = ["topicId", "mode", "destinationId", "tableName"];

macro_rules! topic_labels {
    ($topic:expr $(, $more:expr)*) => {
        &[$topic.name.as_str(), $topic.mode.as_str(), $topic.destination_id.as_str(), $topic.table.as_str() $(, $more)*]
    };
}

/// Events by what became of them. Labels: those of a topic, `status` (`consumed`, `processed`,
/// `processedBytes`, `retried`, `skipped`, `failed`, `retryScheduled`, `deadLettered`, `expired`).
static CONSUMER_MESSAGES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_consumer_messages",
        "Messages of a topic by what became of them; processedBytes counts bytes.",
        &["topicId", "mode", "destinationId", "tableName", "status"]
    )
    .expect("registered once")
});

/// Runs over a topic. Labels: those of a topic, `status` (`success`, `fail`).
static CONSUMER_RUNS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_consumer_run",
        "Runs over a topic.",
        &["topicId", "mode", "destinationId", "tableName", "status"]
    )
    .expect("registered once")
});

/// Failures while loading. Labels: those of a topic, `errorType`.
static CONSUMER_ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_consumer_error",
        "Failures while loading a topic.",
        &["topicId", "mode", "destinationId", "tableName", "errorType"]
    )
    .expect("registered once")
});

/// Messages that wait in a topic. Labels: those of a topic.
static QUEUE_SIZE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_consumer_queue_size",
        "Offsets of a topic that are not loaded yet.",
        &TOPIC
    )
    .expect("registered once")
});

/// Events of a table by what became of them. Labels: `destinationId`, `tableName`, `status`.
static MESSAGE_STATUSES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "connection_message_statuses",
        "Events of a table by what became of them.",
        &["destinationId", "tableName", "status"]
    )
    .expect("registered once")
});

/// Rows inserted or updated. Labels: `destinationId`, `tableName`.
static LOADED_ROWS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_loaded_rows_total",
        "Rows inserted or updated.",
        &["destinationId", "tableName"]
    )
    .expect("registered once")
});

/// Events that were merged away inside their batch. Labels: `destinationId`, `tableName`.
static MERGED_EVENTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_merged_events_total",
        "Events replaced by a later one with the same key in their batch.",
        &["destinationId", "tableName"]
    )
    .expect("registered once")
});

/// Seconds since the oldest event was seen that is not loaded yet; 0 when all are. Labels: those of
/// a topic.
static UNLOADED_AGE: LazyLock<GaugeVec> = LazyLock::new(|| {
    register_gauge_vec!(
        "bulkerapp_oldest_unloaded_age_seconds",
        "Seconds since the oldest event was seen that is not loaded yet.",
        &TOPIC
    )
    .expect("registered once")
});

/// 1 while a topic is not loaded on purpose. Labels: those of a topic, `reason`.
static HELD_TOPICS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_held_topics",
        "1 while a topic is not loaded on purpose.",
        &["topicId", "mode", "destinationId", "tableName", "reason"]
    )
    .expect("registered once")
});

/// Starts that were decided from outside. Labels: those of a topic, `kind`.
static START_NOTICES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_start_notices_total",
        "Starts decided from outside: resets, restores, re-created topics, expired records.",
        &["topicId", "mode", "destinationId", "tableName", "kind"]
    )
    .expect("registered once")
});

/// Offsets that were skipped or are loaded again because of such a start. Labels: as above.
static START_NOTICE_EVENTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_start_notice_offsets_total",
        "Offsets skipped or loaded again because of such a start.",
        &["topicId", "mode", "destinationId", "tableName", "kind"]
    )
    .expect("registered once")
});

/// 1 while a topic is due and does not move. Labels: those of a topic.
static STALLED_TOPICS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_stalled_topics",
        "1 while a topic is due and does not move.",
        &TOPIC
    )
    .expect("registered once")
});

/// Stalled topics whose work was ended and begun anew. Labels: those of a topic.
static HEALED_TOPICS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_healed_topics_total",
        "Times that the work on a stalled topic was ended and begun anew.",
        &TOPIC
    )
    .expect("registered once")
});

/// Topics that this instance loads.
pub(crate) static OWNED_TOPICS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("bulkerapp_owned_topics", "Topics that this instance loads.")
        .expect("registered once")
});

/// Of 64 shares of all topics, those that are this instance's. Stays 0 under the static rule.
pub(crate) static OWNED_SHARES: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("bulkerapp_owned_shares", "Shares, of 64, that this instance loads.")
        .expect("registered once")
});

/// 1 when a destination keeps its offsets rows, 0 when it falls back to at-least-once. Label:
/// `destinationId`.
static EXACTLY_ONCE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_exactly_once",
        "1 when the destination keeps offsets rows, 0 when it falls back to at-least-once.",
        &["destinationId"]
    )
    .expect("registered once")
});

/// Events of a table by what became of them, from the offsets rows: the same on all instances.
/// Labels: `destinationId`, `tableName`, `outcome` (`received`, `loaded`, `merged`, `waiting`,
/// `dead`).
static TABLE_EVENTS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_table_events",
        "Events of a table by what became of them, as the offsets rows count; the same on all instances.",
        &["destinationId", "tableName", "outcome"]
    )
    .expect("registered once")
});

/// 1 when the destination's database told its counters when it was asked last. Label:
/// `destinationId`.
static DESTINATION_ANSWERS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_destination_answers",
        "1 when the destination's database told its counters when it was asked last.",
        &["destinationId"]
    )
    .expect("registered once")
});

/// 1 while nothing is loaded into a destination because it is paused. Label: `destinationId`.
static PAUSED_DESTINATIONS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_paused_destinations",
        "1 while nothing is loaded into a destination because it is paused.",
        &["destinationId"]
    )
    .expect("registered once")
});

/// Loads that were rolled back because another loader had moved the offsets row. Labels: those of a
/// topic.
static FENCED_LOADS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_overtaken_loads_total",
        "Loads rolled back because another loader had moved the offsets row.",
        &TOPIC
    )
    .expect("registered once")
});

/// Registers every family of this module. Those with labels show on `/metrics` once they have a
/// sample.
pub fn register() {
    for counter in [
        &CONSUMER_MESSAGES,
        &CONSUMER_RUNS,
        &CONSUMER_ERRORS,
        &MESSAGE_STATUSES,
        &LOADED_ROWS,
        &MERGED_EVENTS,
        &START_NOTICES,
        &START_NOTICE_EVENTS,
        &FENCED_LOADS,
        &HEALED_TOPICS,
    ] {
        LazyLock::force(counter);
    }
    for gauge in [&OWNED_TOPICS, &OWNED_SHARES] {
        LazyLock::force(gauge);
    }
    for gauge in [
        &QUEUE_SIZE,
        &HELD_TOPICS,
        &STALLED_TOPICS,
        &EXACTLY_ONCE,
        &TABLE_EVENTS,
        &DESTINATION_ANSWERS,
        &PAUSED_DESTINATIONS,
    ] {
        LazyLock::force(gauge);
    }
    LazyLock::force(&UNLOADED_AGE);
}

pub(crate) fn count_batch(topic: &OwnedTopic, loaded: &Loaded) {
    let Loaded { report, counts } = loaded;
    let of_table = &[topic.destination_id.as_str(), topic.table.as_str()];
    let refused = counts.sent_to_retry + counts.dead;
    let processed = counts.consumed.saturating_sub(refused);
    let by_status = [
        ("consumed", counts.consumed),
        ("processed", processed),
        ("processedBytes", counts.bytes),
        ("retried", counts.retried),
        ("skipped", counts.dropped),
        ("failed", refused),
        ("retryScheduled", counts.sent_to_retry),
        ("deadLettered", counts.dead),
    ];
    for (status, count) in by_status.into_iter().filter(|(_, count)| *count > 0) {
        CONSUMER_MESSAGES.with_label_values(topic_labels!(topic, status)).inc_by(count);
    }
    let of_connection = [
        ("success", processed),
        ("error", refused),
        ("retried", counts.retried),
        ("deadLettered", counts.dead),
    ];
    for (status, count) in of_connection.into_iter().filter(|(_, count)| *count > 0) {
        MESSAGE_STATUSES.with_label_values(&[of_table[0], of_table[1], status]).inc_by(count);
    }
    LOADED_ROWS.with_label_values(of_table).inc_by(report.counts.loaded);
    MERGED_EVENTS.with_label_values(of_table).inc_by(report.counts.merged);
}

/// Events that left a retry topic.
pub(crate) fn count_moves(topic: &OwnedTopic, moved: u64, dead: u64) {
    let by_status = [("consumed", moved + dead), ("retryScheduled", moved), ("deadLettered", dead)];
    for (status, count) in by_status.into_iter().filter(|(_, count)| *count > 0) {
        CONSUMER_MESSAGES.with_label_values(topic_labels!(topic, status)).inc_by(count);
    }
}

/// Events that retention cut from a retry topic: they are lost.
pub(crate) fn count_expired_retries(topic: &OwnedTopic, count: u64) {
    CONSUMER_MESSAGES.with_label_values(topic_labels!(topic, "expired")).inc_by(count);
}

pub(crate) fn count_failed_batch(topic: &OwnedTopic, received: u64) {
    let of_table = [topic.destination_id.as_str(), topic.table.as_str()];
    CONSUMER_MESSAGES.with_label_values(topic_labels!(topic, "failed")).inc_by(received);
    MESSAGE_STATUSES.with_label_values(&[of_table[0], of_table[1], "error"]).inc_by(received);
}

pub(crate) fn count_run(topic: &OwnedTopic, success: bool) {
    let status = if success { "success" } else { "fail" };
    CONSUMER_RUNS.with_label_values(topic_labels!(topic, status)).inc();
}

pub(crate) fn count_error(topic: &OwnedTopic, error_type: &str) {
    CONSUMER_ERRORS.with_label_values(topic_labels!(topic, error_type)).inc();
}

pub(crate) fn count_notice(topic: &OwnedTopic, notice: Notice) {
    START_NOTICES.with_label_values(topic_labels!(topic, notice.kind())).inc();
    START_NOTICE_EVENTS
        .with_label_values(topic_labels!(topic, notice.kind()))
        .inc_by(notice.events().unsigned_abs());
}

pub(crate) fn set_backlog(topic: &OwnedTopic, queue_size: i64, oldest_age_seconds: f64) {
    QUEUE_SIZE.with_label_values(topic_labels!(topic)).set(queue_size);
    UNLOADED_AGE.with_label_values(topic_labels!(topic)).set(oldest_age_seconds);
}

/// A topic began, or ceased, to be held; its partitions add up.
pub(crate) fn count_held(topic: &OwnedTopic, reason: &str, held: bool) {
    let change = if held { 1 } else { -1 };
    HELD_TOPICS.with_label_values(topic_labels!(topic, reason)).add(change);
}

/// The topic is no longer this instance's: its gauges are another one's.
pub(crate) fn forget(topic: &OwnedTopic) {
    let _ = QUEUE_SIZE.remove_label_values(topic_labels!(topic)); // there may be none yet
    let _ = UNLOADED_AGE.remove_label_values(topic_labels!(topic));
    let _ = STALLED_TOPICS.remove_label_values(topic_labels!(topic));
    for reason in HoldReason::ALL {
        let _ = HELD_TOPICS.remove_label_values(topic_labels!(topic, reason.kind()));
    }
}

/// A topic began, or ceased, to be stalled; its partitions add up.
pub(crate) fn count_stalled(topic: &OwnedTopic, stalled: bool) {
    let change = if stalled { 1 } else { -1 };
    STALLED_TOPICS.with_label_values(topic_labels!(topic)).add(change);
}

pub(crate) fn count_healed(topic: &OwnedTopic) {
    HEALED_TOPICS.with_label_values(topic_labels!(topic)).inc();
}

pub(crate) fn set_exactly_once(destination_id: &str, exactly_once: bool) {
    EXACTLY_ONCE.with_label_values(&[destination_id]).set(i64::from(exactly_once));
}

/// Shows what all destinations said; tables that are gone are shown no more.
pub(crate) fn set_table_events(before: &StatsSnapshot, now: &StatsSnapshot) {
    for (id, said) in &before.destinations {
        let still = now.destinations.get(id);
        if still.is_none() {
            let _ = DESTINATION_ANSWERS.remove_label_values(&[id]); // there may be none
            let _ = EXACTLY_ONCE.remove_label_values(&[id]);
        }
        let is_gone = |table: &str| still.is_none_or(|still| !still.tables.contains_key(table));
        for table in said.tables.keys().filter(|table| is_gone(table)) {
            for outcome in ["received", "loaded", "merged", "waiting", "dead"] {
                let _ = TABLE_EVENTS.remove_label_values(&[id, table, outcome]);
            }
        }
    }
    for (id, said) in &now.destinations {
        DESTINATION_ANSWERS.with_label_values(&[id]).set(i64::from(said.problem.is_none()));
        for (table, events) in &said.tables {
            for (outcome, count) in [
                ("received", events.received),
                ("loaded", events.loaded),
                ("merged", events.merged),
                ("waiting", events.waiting),
                ("dead", events.dead),
            ] {
                TABLE_EVENTS.with_label_values(&[id, table, outcome]).set(count);
            }
        }
    }
}

pub(crate) fn set_paused(destination_id: &str, paused: bool) {
    if paused {
        PAUSED_DESTINATIONS.with_label_values(&[destination_id]).set(1);
    } else {
        let _ = PAUSED_DESTINATIONS.remove_label_values(&[destination_id]); // there may be none
    }
}

pub(crate) fn count_fenced(topic: &OwnedTopic) {
    FENCED_LOADS.with_label_values(topic_labels!(topic)).inc();
}
