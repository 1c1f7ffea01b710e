//! Settings of loading that the original does not have.

use std::time::Duration;

use appbase::values::{integer, seconds};
use clap::Args;

/// How topics are loaded. Read with the prefix of the service.
#[derive(Debug, Clone, Args)]
pub struct LoaderConfig {
    /// Topics that are loaded at a time. One destination gets three quarters of them at most.
    #[arg(long, default_value = "8", value_parser = integer::<u32>)]
    pub loader_workers: u32,
    /// MiB of parsed events that are held at a time; a batch ends at half of what is free of it.
    #[arg(long, default_value = "192", value_parser = integer::<u32>)]
    pub loader_memory_limit_mb: u32,
    /// Seconds after which a long run looks at the consumer group again.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub loader_claim_period_sec: Duration,
    /// Seconds without a record, although there are some, after which a read counts as stuck.
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub loader_stall_timeout_sec: Duration,
    /// Seconds that a topic which is due may not move before that is an alarm.
    #[arg(long, default_value = "120", value_parser = seconds)]
    pub loader_alarm_after_sec: Duration,
    /// Seconds without a move after which the work on a topic is ended where it stands, and begun
    /// anew.
    #[arg(long, default_value = "700", value_parser = seconds)]
    pub loader_heal_after_sec: Duration,
}
