//! A run and the topic's consumer group: what the facts ask of Kafka, and what is committed to it.

use kafkabase::{AdminError, TopicGroup};
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
pub enum FactError {
    /// Kafka did not, or refused to.
    #[error(transparent)]
    Kafka(#[from] AdminError),
    /// The destination's ledger did not, or refused to.
    #[error(transparent)]
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

/// Asks Kafka, and for the position the ledger.
pub(super) struct LiveFacts<'a> {
    pub(super) group: TopicGroup,
    pub(super) position: PositionSource<'a>,
}

/// Where the position comes from.
pub(super) enum PositionSource<'a> {
    Ledger(&'a Ledger, &'a PartitionKey),
    /// It was read before, with all others of the destination.
    Known(Option<Position>),
}

impl FactSource for LiveFacts<'_> {
    type Error = FactError;

    async fn position(&self) -> Result<Option<Position>, FactError> {
        match &self.position {
            PositionSource::Ledger(ledger, key) => Ok(ledger.read(key).await?),
            PositionSource::Known(position) => Ok(position.clone()),
        }
    }

    async fn group_offset(&self) -> Result<GroupOffset, FactError> {
        Ok(GroupOffset::from(self.group.committed().await?))
    }

    async fn topic_id(&self) -> Result<Option<Uuid>, FactError> {
        Ok(self.group.topic_id().await?)
    }

    async fn end(&self) -> Result<i64, FactError> {
        Ok(self.group.end().await?)
    }

    async fn low(&self) -> Result<i64, FactError> {
        Ok(self.group.low().await?)
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
            info!(topic = self.topic.name, error = %error, "offset not committed to Kafka; the offsets row rules");
        }
    }

    /// Whether the group has an offset that we did not commit: a decision.
    async fn is_unmarked(&self) -> Result<bool, AdminError> {
        let committed = self.group().committed().await?;
        Ok(matches!(GroupOffset::from(committed), GroupOffset::Unmarked(_)))
    }

    /// Whether a start has to be found anew: an operator decided on an offset, or another loader
    /// joined the group.
    pub(super) async fn is_to_start_over(&self) -> Result<bool, AdminError> {
        Ok(self.is_unmarked().await? || self.group().members().await? > 0)
    }

    /// Commits a mark.
    pub(super) async fn commit_group_offset(&self, mark: &Mark) -> Result<(), AdminError> {
        self.group().commit(mark.to_group_offset()).await?;
        self.progress.set_group_offset(mark.offset);
        Ok(())
    }
}
