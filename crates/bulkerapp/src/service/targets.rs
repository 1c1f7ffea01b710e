//! How many workers and connections a destination gets.

use std::sync::Arc;

use loader::TargetDefaults;

use crate::{
    config::Config,
    destinations::{Destinations, Targets},
};

/// Three quarters: the others get some also while one destination hangs.
pub(super) fn workers_per_destination(config: &Config) -> u32 {
    let workers = config.loader.loader_workers;
    (workers - workers / 4).min(workers.saturating_sub(1)).max(1)
}

/// Opens the destinations; nothing is connected yet.
pub(crate) fn open_targets(config: &Config, destinations: Arc<Destinations>) -> Arc<Targets> {
    let per_destination = workers_per_destination(config);
    // a run, and a tail, needs two connections at most, one loads, one asks; a call of /bulk needs
    // one, and as many load whose bodies are here as of those whose bodies are not
    let for_loader = per_destination.saturating_mul(4);
    let for_bulk = config.server.bulk_max_requests.saturating_mul(2);
    let connections = for_loader.saturating_add(for_bulk);
    let defaults = TargetDefaults {
        period: i64::from(config.server.batch_runner_default_period_sec),
        retry_period: i64::from(config.retries.batch_runner_default_retry_period_sec),
        batch_size: u64::from(config.server.batch_runner_default_batch_size),
        remember_states: 2
            * (config.kafka.kafka_retry_topic_retention_hours
                + config.kafka.kafka_topic_retention_hours
                + config.kafka.kafka_dead_topic_retention_hours),
        tail_loads: per_destination as usize,
    };
    Arc::new(Targets::new(destinations, connections, defaults))
}
