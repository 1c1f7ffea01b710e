//! Giving a topic to another instance, or to the original: Kafka's group is brought to where the
//! topic stands.
//!
//! Invariant: what is committed is the position, once no COMMIT is under way, or where the position
//! began if a restore took it away. An offset that an operator, or the original, decided on is left
//! alone.

use kafkabase::TopicMode;
use tokio_util::sync::CancellationToken;

use super::{MAX_STARTS, TopicRun, context::RunContext, error::RunError};
use crate::{
    progress::TopicProgress,
    protocol::mark::{GroupOffset, Mark},
    retry::run::RetryRun,
    target::LoadTarget,
    topic::OwnedTopic,
};

/// Brings Kafka to where the topic stands.
pub(crate) async fn of_topic(
    context: &RunContext,
    (topic, progress): (&OwnedTopic, &TopicProgress),
    target: Option<&LoadTarget>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    match target {
        _ if topic.mode == TopicMode::Retry => {
            RetryRun { context, topic, progress, stop }.hand_over().await
        }
        // also what it never loaded itself: a loader that was killed may not have committed to
        // Kafka
        Some(target) if !progress.is_group_current() => {
            TopicRun { context, topic, progress, target, stop }.hand_over().await
        }
        _ => Ok(()),
    }
}

impl TopicRun<'_> {
    /// Brings Kafka to the position before the service stops, so that the original can take over.
    async fn hand_over(&self) -> Result<(), RunError> {
        let Some(ledger) = self.target.ledger().await? else {
            return match GroupOffset::from(self.group().committed().await?) {
                // nobody can say whether the group lags behind
                GroupOffset::Marked(_) => Err(RunError::LedgerLost),
                GroupOffset::None | GroupOffset::Unmarked(_) => Ok(()),
            };
        };
        for _ in 0..MAX_STARTS {
            // a COMMIT that is under way has to end first: it may be that of a loader that was
            // killed
            let position = ledger.read_settled(&self.key()).await?;
            let group = self.group();
            if group.members().await? > 0 {
                return Ok(());
            }
            let committed = group.committed().await?;
            let wanted = position.as_ref().map(|position| Mark::of(ledger.id(), position));
            let mark = match (wanted, GroupOffset::from(committed)) {
                (_, GroupOffset::Unmarked(_)) | (None, GroupOffset::None) => return Ok(()),
                (Some(wanted), GroupOffset::Marked(mark)) if mark == wanted => return Ok(()),
                (Some(wanted), GroupOffset::None | GroupOffset::Marked(_)) => wanted,
                // restored from before the position: the next loader has to load again what the
                // restore took away
                (None, GroupOffset::Marked(mark)) if mark.ledger == ledger.id() => {
                    if mark.offset == mark.began {
                        return Ok(());
                    }
                    Mark { offset: mark.began, ..mark }
                }
                (None, GroupOffset::Marked(_)) => return Ok(()), // of another database; its offset stands
            };
            self.commit_group_offset(&mark).await?;
        }
        Err(RunError::Contended)
    }
}
