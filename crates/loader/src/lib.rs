//! From Kafka's topics to the tables of warehouses, exactly once.
//!
//! The way of an event, and of a reader: the `scheduler` decides when a topic runs; a `run` follows
//! the protocol (`protocol`: where it starts, without any I/O, and the model that searches it for
//! faults); it reads batches (`batch`), and a load *stages* a batch, produces the refused events
//! (`retry`), and *commits* rows, states and position together. `observe` tells operators what
//! happened.
//!
//! The crate knows no HTTP and reads no environment: it takes a [`LoadingConfig`], a view of the
//! cluster's topics and a [`TargetSource`], and owns the tasks that [`spawn()`] starts.

#![warn(missing_docs)]

mod batch;
mod clock;
mod config;
mod observe;
mod outcome;
mod pauses;
mod progress;
mod protocol;
mod retry;
mod run;
mod scheduler;
mod spawn;
mod target;
mod topic;

pub use clock::Clock;
pub use config::LoaderConfig;
pub use observe::{
    metrics::register as register_metrics,
    reporter::{MetricsTopic, Reporter},
    snapshot::{DestinationStats, StatsSnapshot, TableStats},
    stats::Stats,
};
pub use pauses::{PauseError, PausedDestinations, Pauses, PausesConfig, paused_destinations};
pub use retry::{
    backoff::RetryBackoff,
    event_states::{EventStates, StateOfRefused},
    refused_producer::RefusalConfig,
};
pub use run::{
    group::FactError,
    set_start::{SetStartError, StartAt, StartSet, set_start},
    switchover::{SwitchoverStatus, SwitchoverStatuses, is_retry_topic_in_order},
};
pub use scheduler::{
    LoaderSettings,
    owned_topics::{OwnedTopics, SharedRetry},
    ownership::{Ownership, Shard, SharesTopic},
    status::LoaderStatus,
};
pub use spawn::{Loading, LoadingConfig, spawn};
pub use target::{LoadTarget, OpenTargets, TargetDefaults, TargetSource};
