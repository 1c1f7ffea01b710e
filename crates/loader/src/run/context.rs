//! What all runs share.

use std::{sync::Arc, time::Duration};

use kafkabase::{Admin, Fetcher};

use crate::{
    batch::memory::MemoryBudget, clock::Clock, observe::reporter::Reporter, pauses::Pauses,
    retry::refused_producer::RefusedProducer, target::TargetSource,
};

/// What all runs share; cheap to clone.
#[derive(Clone)]
pub(crate) struct RunContext {
    pub(crate) admin: Admin,
    /// Reads topics up to the end that they had.
    pub(crate) fetcher: Arc<Fetcher>,
    /// Reads what is appended to stream topics.
    pub(crate) tail_fetcher: Arc<Fetcher>,
    pub(crate) cluster_id: String,
    pub(crate) clock: Clock,
    pub(crate) memory: MemoryBudget,
    /// The way out for refused events.
    pub(crate) refused: Arc<RefusedProducer>,
    pub(crate) reporter: Arc<Reporter>,
    /// How often a long run repeats its claim.
    pub(crate) claim_every: Duration,
    /// How long nothing may arrive before a read counts as stuck.
    pub(crate) stall_after: Duration,
    /// Records of a retry topic that are moved at a time.
    pub(crate) retry_batch_size: usize,
    pub(crate) topic_prefix: String,
    pub(crate) pauses: Arc<Pauses>,
    /// The destinations of events that return.
    pub(crate) targets: Arc<dyn TargetSource>,
}
