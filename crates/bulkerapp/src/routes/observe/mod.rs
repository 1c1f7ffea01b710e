//! What can be seen from outside: probes, metrics, counts and the events log.

mod connections_metrics;
mod events;
mod log;
mod metrics;
mod probes;
mod profiling;
mod stats;
mod write_keys;

pub(super) use connections_metrics::connections_metrics;
pub(super) use events::events;
pub(super) use log::log;
pub(super) use metrics::{guarded_metrics, metrics};
pub(super) use probes::{health, ready};
pub(super) use profiling::no_profile;
pub(super) use stats::{all_stats, stats_of_one};
