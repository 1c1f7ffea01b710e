//! How replays begin: at the start, by a sender whose topic is stuck, out of the quarantine.

use std::sync::Arc;

use tracing::info;

use super::{AckProducer, ProducerTopic, replay::Replay};
use crate::SpoolError;

impl AckProducer {
    /// Takes a topic's events out of the quarantine and sends them; those of all topics where none
    /// is named. Returns how many topics have some; they are sent in the background. Dropped, some
    /// topics may be released.
    pub async fn replay_quarantine(&self, topic: Option<&str>) -> Result<usize, SpoolError> {
        let Some(replayer) = &self.shared.replayer else { return Ok(0) };
        let topics = replayer.spool().release(topic).await?;
        topics.iter().for_each(|name| self.replay(name));
        Ok(topics.len())
    }

    /// Starts with what a former process left.
    pub(super) fn replay_what_is_there(&self) {
        let Some(replayer) = &self.shared.replayer else { return };
        let topics = replayer.spool().waiting_topics();
        if !topics.is_empty() {
            let events: usize = topics.iter().map(|(_, count)| count).sum();
            info!(topics = topics.len(), events, "the spool has events; they are sent now");
        }
        topics.iter().for_each(|(name, _)| self.replay(name));
    }

    fn replay(&self, topic: &str) {
        let topic = self.topic(topic);
        let is_first = topic.outstanding().divert();
        if is_first {
            self.start_replay(&topic);
        }
    }

    /// Called by the sender that diverted the topic.
    pub(super) fn start_replay(&self, topic: &Arc<ProducerTopic>) {
        let (producer, topic) = (self.clone(), topic.clone());
        tokio::spawn(async move {
            if let Some(replayer) = &producer.shared.replayer {
                Replay::new(&producer, replayer, &topic).run().await;
            }
        });
    }
}
