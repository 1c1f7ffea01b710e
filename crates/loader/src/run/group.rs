//! A run and the topic's consumer group: what the facts ask of Kafka, and what is committed to it.

use kafkabase::{Admin, AdminError, OffsetSpec};
use tracing::info;
use uuid::Uuid;
use warehouse::{Ledger, LoadError, PartitionKey, Position};

use super::{TopicRun, error::RunError};
use crate::protocol::{
    facts::FactSource,
    mark::{GroupOffset, Mark},
};

/// Why facts are not known, split by who did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FactError {
    #[error("Kafka did not answer")]
    Kafka(#[from] AdminError),
    #[error("the destination did not answer")]
    Ledger(#[from] LoadError),
}

impl From<FactError> for RunError {
    fn from(error: FactError) -> RunError {
        match error {
            FactError::Kafka(error) => RunError::Kafka(error),
            FactError::Ledger(error) => RunError::Load(error),
        }
    }
}

/// Asks Kafka and the ledger.
pub(super) struct LiveFacts<'a> {
    pub(super) admin: &'a Admin,
    pub(super) ledger: &'a Ledger,
    pub(super) key: &'a PartitionKey,
}

impl FactSource for LiveFacts<'_> {
    type Error = FactError;

    async fn position(&self) -> Result<Option<Position>, FactError> {
        Ok(self.ledger.read(self.key).await?)
    }

    async fn group_offset(&self) -> Result<GroupOffset, FactError> {
        let PartitionKey { topic, partition, .. } = self.key;
        Ok(GroupOffset::from(self.admin.group_offset(topic, topic, *partition).await?))
    }

    async fn topic_id(&self) -> Result<Option<Uuid>, FactError> {
        Ok(self.admin.topic_id(&self.key.topic).await?)
    }

    async fn end(&self) -> Result<i64, FactError> {
        let PartitionKey { topic, partition, .. } = self.key;
        Ok(self.admin.offset(topic, *partition, OffsetSpec::CommittedEnd).await?)
    }

    async fn low(&self) -> Result<i64, FactError> {
        let PartitionKey { topic, partition, .. } = self.key;
        Ok(self.admin.offset(topic, *partition, OffsetSpec::Earliest).await?)
    }
}

impl TopicRun<'_> {
    /// Copies the position to Kafka's group unless an operator, or the original, decided otherwise
    /// there. May fail: the position rules.
    pub(super) async fn copy_to_group(&self, ledger: &Ledger, position: &Position) {
        let committed = match self.is_unmarked().await {
            Ok(true) => return, // a decision for the next run
            Ok(false) => self.commit_group_offset(&Mark::of(ledger.id(), position)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            info!(topic = self.topic.name, error = %error, "offset not told to Kafka; the row rules");
        }
    }

    /// Whether the group has an offset that we did not commit: a decision.
    pub(super) async fn is_unmarked(&self) -> Result<bool, AdminError> {
        let topic = self.topic.name.as_str();
        let committed = self.context.admin.group_offset(topic, topic, self.topic.partition).await?;
        Ok(matches!(GroupOffset::from(committed), GroupOffset::Unmarked(_)))
    }

    /// Commits a mark.
    pub(super) async fn commit_group_offset(&self, mark: &Mark) -> Result<(), AdminError> {
        let (topic, partition) = (self.topic.name.as_str(), self.topic.partition);
        let offset = mark.to_group_offset();
        self.context.admin.set_group_offset(topic, topic, partition, offset).await?;
        self.progress.set_group_offset(mark.offset);
        Ok(())
    }
}
