//! From topics to tables, exactly once.
//!
//! `loader` decides when a topic runs; a `run` follows the protocol: where it starts (`start`, from the
//! offsets row, the group's `mark` and the topic), what it reads (`reader`), and how the row moves with
//! the load (`offsets`).

mod backlog;
mod batch_load;
mod counters;
mod envelope;
mod fates;
mod groups;
mod hand_over;
mod loader;
mod mark;
mod memory;
mod metrics;
#[cfg(test)]
mod model;
mod offsets;
mod origins;
mod ownership;
mod parking;
mod pauses;
mod reader;
mod reporter;
mod retries;
mod rights;
mod run;
mod schedule;
mod set_start;
mod settings;
mod source;
mod spawn;
mod standing;
mod start;
mod stats;
mod tail;
mod target;
mod targets;
mod topic_state;
mod workers;

pub use fates::{FateState, Fates};
pub use loader::{LoaderSettings, LoaderStatus};
pub use metrics::register as register_metrics;
pub use ownership::{Ownership, Shard, SharesTopic};
pub use parking::ParkingConfig;
pub use pauses::{PauseError, PausedDestinations, Pauses, PausesConfig, paused_destinations};
pub use reporter::{MetricsTopic, Reporter};
pub use rights::{Rights, TableRights, rights};
pub use set_start::{SetStartError, StartAt, StartSet, set_start};
pub use settings::LoaderConfig;
pub use source::{OwnedTopics, SharedRetry};
pub use spawn::{Loading, LoadingConfig, spawn};
pub use standing::{Standing, Standings, is_retry_topic_in_order};
pub use stats::{DestinationStats, ListTargets, Stats, StatsSnapshot, TableStats};
pub use target::{LoadTarget, TargetDefaults};
pub use targets::{Opened, Targets};
