//! From topics to tables, exactly once.
//!
//! `loader` decides when a topic runs; a `run` follows the protocol: where it starts (`start`, from the
//! offsets row, the group's `mark` and the topic), what it reads (`reader`), and how the row moves with
//! the load (`offsets`).

mod backlog;
mod batch_load;
mod envelope;
mod fates;
mod groups;
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
mod reader;
mod reporter;
mod retries;
mod run;
mod schedule;
mod settings;
mod source;
mod spawn;
mod start;
mod tail;
mod target;
mod targets;
mod topic_state;

pub use fates::{FateState, Fates};
pub use loader::{LoaderSettings, LoaderStatus};
pub use metrics::register as register_metrics;
pub use ownership::{Ownership, Shard, SharesTopic};
pub use parking::ParkingConfig;
pub use reporter::{MetricsTopic, Reporter};
pub use settings::LoaderConfig;
pub use source::{OwnedTopics, SharedRetry};
pub use spawn::{Loading, LoadingConfig, spawn};
pub use target::{LoadTarget, TargetDefaults};
pub use targets::{Opened, Targets};
