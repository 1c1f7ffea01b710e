//! One run over a retry topic: what it works on. What it does is in `mover`, and what becomes of each
//! record in `moves`.

use kafkabase::TopicGroup;
use tokio_util::sync::CancellationToken;

use super::state::RetryState;
use crate::{progress::TopicProgress, run::context::RunContext, topic::OwnedTopic};

/// One run over one retry topic.
pub(crate) struct RetryRun<'a> {
    pub(crate) context: &'a RunContext,
    pub(crate) topic: &'a OwnedTopic,
    pub(crate) progress: &'a TopicProgress,
    pub(crate) stop: &'a CancellationToken,
}

impl RetryRun<'_> {
    /// The topic with its consumer group.
    pub(super) fn group(&self) -> TopicGroup {
        self.context.admin.topic_group(&self.topic.name, self.topic.partition)
    }

    pub(super) fn with_state<T>(&self, change: impl FnOnce(&mut RetryState) -> T) -> T {
        change(&mut self.progress.memory().retries)
    }
}
