//! What operators see of intake and topics. Names and labels that the original has stay as they
//! are.
//!
//! Labels are bounded: a name that a client chose is a label only once it is the name of a topic
//! that exists.

use std::sync::LazyLock;

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, register_int_counter,
    register_int_counter_vec, register_int_gauge, register_int_gauge_vec,
};

const OF_EVENT: [&str; 5] = ["destinationId", "mode", "tableName", "status", "errorType"];

/// Calls of `/post` and `/profiles`. Labels: `destinationId`, `mode`, `tableName`, `status`
/// (`success`, `error`), `errorType`.
pub static HANDLER_EVENTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_handler_events",
        "Calls of /post and /profiles.",
        &OF_EVENT
    )
    .expect("registered once")
});

/// Calls of `/bulk`. Labels as above.
pub static HANDLER_BULK: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!("bulkerapp_handler_bulk", "Calls of /bulk.", &OF_EVENT)
        .expect("registered once")
});

/// Bytes of bodies of successful calls. Labels as above.
pub static HANDLER_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_handler_bytes",
        "Body bytes of successful calls.",
        &OF_EVENT
    )
    .expect("registered once")
});

/// Events on their way to Kafka. Labels: those of a topic, `status` (`produced`, `delivered`,
/// `error`), `errorType`.
pub static PRODUCER_MESSAGES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_producer_messages",
        "Events on their way to Kafka.",
        &["topicId", "destinationId", "mode", "tableName", "status", "errorType"]
    )
    .expect("registered once")
});

/// Events in the producer's queue.
pub static PRODUCER_QUEUE_LENGTH: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("bulkerapp_producer_queue_length", "Events in the producer's queue.")
        .expect("registered once")
});

/// Topics whose events are spooled or refused, because Kafka does not acknowledge or older ones are
/// in the spool.
pub static PRODUCER_BLOCKED_TOPICS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "bulkerapp_producer_blocked_topics",
        "Topics whose events are spooled or refused because Kafka does not acknowledge."
    )
    .expect("registered once")
});

/// Producers that were replaced after an error which ended them.
pub static PRODUCER_REBUILDS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "bulkerapp_producer_rebuilds_total",
        "Producers replaced after an error which ended them."
    )
    .expect("registered once")
});

/// Events in the spool that are not in Kafka yet, or not known to be.
pub static SPOOL_WAITING: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("bulkerapp_spool_waiting_events", "Events in the spool, to be sent.")
        .expect("registered once")
});

/// How long the oldest of them is there.
pub static SPOOL_AGE: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "bulkerapp_spool_oldest_age_seconds",
        "How long the oldest event in the spool is there."
    )
    .expect("registered once")
});

/// Bytes of the spool's files.
pub static SPOOL_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("bulkerapp_spool_bytes", "Bytes of the spool's files.")
        .expect("registered once")
});

/// Events that Kafka refused for good, kept until an operator decides.
pub static SPOOL_QUARANTINED: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("bulkerapp_spool_quarantined_events", "Events that Kafka refused for good.")
        .expect("registered once")
});

/// What became of spooled events. Label: `status` (`spooled`, `delivered`, `found`, `quarantined`,
/// `released`, `discarded`).
pub static SPOOL_EVENTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_spool_events_total",
        "What became of spooled events.",
        &["status"]
    )
    .expect("registered once")
});

/// Events that the spool did not take. Label: `reason` (`full`, `topic_full`, `disk`).
pub static SPOOL_REFUSED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_spool_refused_total",
        "Events that the spool did not take.",
        &["reason"]
    )
    .expect("registered once")
});

/// Bytes of spool files that were no whole record when they were read at a start.
pub static SPOOL_DAMAGED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "bulkerapp_spool_damaged_bytes_total",
        "Bytes of spool files that were no whole record."
    )
    .expect("registered once")
});

/// Topics made, or not. Labels: those of a topic, `status` (`success`, `error`), `errorType`.
pub static TOPIC_CREATE: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_topic_manager_create",
        "Topics made.",
        &["topicId", "destinationId", "mode", "tableName", "status", "errorType"]
    )
    .expect("registered once")
});

/// Failures to look at the cluster's topics. Label: `errorType`.
pub static TOPIC_ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_topic_manager_error",
        "Failures of looking at the cluster's topics.",
        &["errorType"]
    )
    .expect("registered once")
});

/// The same failures by what is to be looked at. Label: `reason`, see
/// [`kafkabase::ClientError::kind`].
pub static KAFKA_UNREACHABLE: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_kafka_unreachable_total",
        "Looks at the cluster that found no broker, by what is to be looked at.",
        &["reason"]
    )
    .expect("registered once")
});

/// Topics of destinations that are not configured. Nothing loads them.
pub static ABANDONED_TOPICS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "bulkerapp_topic_manager_abandoned_topics",
        "Topics of destinations that are not configured."
    )
    .expect("registered once")
});

/// All topics of the cluster.
pub static ALL_TOPICS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("bulkerapp_topic_manager_all_topics", "All topics of the cluster.")
        .expect("registered once")
});

/// Our topics that one lost machine can take acknowledged events from. Label: `reason`
/// (`replication_factor`, `min_insync_replicas`).
pub static WEAK_TOPICS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "bulkerapp_weakly_replicated_topics",
        "Topics with fewer than two replicas, or with fewer than two that must be in sync.",
        &["reason"]
    )
    .expect("registered once")
});

/// Destinations that are not as configured: a bad option, or no loading at all. Label:
/// `destinationId`.
pub static DESTINATION_INIT_ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_repository_destination_init_error",
        "Destinations with a bad option, or that cannot be opened.",
        &["destinationId"]
    )
    .expect("registered once")
});

/// Destinations by what the last reading of the configuration did with them. Label: `status`.
pub static DESTINATIONS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_repository_destinations",
        "Destinations by what a reading of the configuration did with them.",
        &["status"]
    )
    .expect("registered once")
});

/// Failures to read the configuration, or a part of it. Label: `errorType` (`error`, `parse_error`,
/// `copy_error`, `redis error: …`).
pub static CONFIGURATION_ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_configuration_error",
        "Failures to read the configuration, or a part of it.",
        &["errorType"]
    )
    .expect("registered once")
});

/// Failures of the events log. Label: `errorType`.
pub static EVENTS_LOG_ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_event_log_error",
        "Failures of the events log.",
        &["errorType"]
    )
    .expect("registered once")
});

/// Seconds since the source of the configuration said so for the last time.
pub static CONFIGURATION_AGE: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "bulkerapp_configuration_age_seconds",
        "Seconds since the source of the configuration said so for the last time."
    )
    .expect("registered once")
});

/// Entries that are not in the events log. Labels: `type` of the event, `reason` (`full`: the
/// stream has what it keeps; `memory`: too much waits to be written; `refused`).
pub static EVENTS_LOG_DROPPED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "bulkerapp_events_log_dropped_entries_total",
        "Entries that are not in the events log.",
        &["type", "reason"]
    )
    .expect("registered once")
});

/// Panics that were caught: the task or the request ended, the process went on.
pub static PANICS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("bulkerapp_safego_panic", "Panics that were caught.")
        .expect("registered once")
});

/// Registers every family. Those with labels show on `/metrics` once they have a sample.
pub fn register() {
    for counters in [
        &HANDLER_EVENTS,
        &HANDLER_BULK,
        &HANDLER_BYTES,
        &PRODUCER_MESSAGES,
        &TOPIC_CREATE,
        &TOPIC_ERRORS,
        &KAFKA_UNREACHABLE,
        &DESTINATION_INIT_ERRORS,
        &DESTINATIONS,
        &CONFIGURATION_ERRORS,
        &EVENTS_LOG_ERRORS,
        &EVENTS_LOG_DROPPED,
    ] {
        LazyLock::force(counters);
    }
    for counter in [&PRODUCER_REBUILDS, &PANICS, &SPOOL_DAMAGED] {
        LazyLock::force(counter);
    }
    for gauge in [
        &PRODUCER_QUEUE_LENGTH,
        &PRODUCER_BLOCKED_TOPICS,
        &ABANDONED_TOPICS,
        &ALL_TOPICS,
        &CONFIGURATION_AGE,
        &SPOOL_WAITING,
        &SPOOL_AGE,
        &SPOOL_BYTES,
        &SPOOL_QUARANTINED,
    ] {
        LazyLock::force(gauge);
    }
    for status in ["spooled", "delivered", "found", "quarantined", "released", "discarded"] {
        SPOOL_EVENTS.with_label_values(&[status]);
    }
    for reason in ["full", "topic_full", "disk"] {
        SPOOL_REFUSED.with_label_values(&[reason]);
    }
    for reason in ["replication_factor", "min_insync_replicas"] {
        WEAK_TOPICS.with_label_values(&[reason]);
    }
}
