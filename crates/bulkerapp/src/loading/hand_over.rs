//! Giving a topic to somebody else, another instance or the original: Kafka's group is brought to where the topic stands.
//!
//! Invariant: what is told is the row, once no COMMIT is under way, or where the row began if a restore took it away. An
//! offset that somebody else decided on is left alone.

use std::sync::Arc;

use kafkabase::TopicMode;
use tokio_util::sync::CancellationToken;

use super::{
    mark::{Group, Mark},
    retries::RetryRun,
    run::{MAX_STARTS, RunContext, RunError, TopicRun},
    target::{LoadTarget, OwnedTopic},
};

/// Brings Kafka to where the topic stands.
pub(super) async fn of_topic(
    context: &RunContext,
    topic: &Arc<OwnedTopic>,
    target: Option<&LoadTarget>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    match target {
        _ if topic.mode == TopicMode::Retry => RetryRun { context, topic, stop }.hand_over().await,
        // also what it never loaded itself: a loader that was killed may not have told Kafka
        Some(target) if !topic.is_told() => {
            TopicRun { context, topic, target, stop }.hand_over().await
        }
        _ => Ok(()),
    }
}

impl TopicRun<'_> {
    /// Brings Kafka to the row before the service stops, so that the original can take over.
    async fn hand_over(&self) -> Result<(), RunError> {
        let Some(offsets) = self.target.offsets().await? else {
            return Ok(());
        };
        for _ in 0..MAX_STARTS {
            // a COMMIT that is under way has to end first: it may be that of a loader that was killed
            let row = offsets.read_settled(&self.key()).await?;
            let (admin, topic) = (&self.context.admin, self.topic.name.as_str());
            if admin.group_members(topic).await? > 0 {
                return Ok(());
            }
            let committed = admin.group_offset(topic, topic, self.topic.partition).await?;
            let mark = match (row, Group::from(committed)) {
                (_, Group::Unmarked(_)) | (None, Group::None) => return Ok(()),
                (Some(row), Group::Marked(mark)) if mark == self.mark(&offsets, &row) => {
                    return Ok(());
                }
                (Some(row), Group::None | Group::Marked(_)) => self.mark(&offsets, &row),
                // restored from before the row: whoever goes on has to load again what the restore took away
                (None, Group::Marked(mark)) if mark.ledger == offsets.ledger() => {
                    if mark.offset == mark.began {
                        return Ok(());
                    }
                    Mark { offset: mark.began, ..mark }
                }
                (None, Group::Marked(_)) => return Ok(()), // of another database; its offset stands
            };
            self.commit(&mark).await?;
        }
        Err(RunError::Contended)
    }
}
