//! From a request into the spool: what Kafka did not take within the wait.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::oneshot;

use super::{AckProducer, Handed, ProducerTopic, SendError, moment::Moment};
use crate::{
    SpoolError,
    spool::{Done, EventParts},
};

/// How long a request waits for the disk.
const DISK_WAIT: Duration = Duration::from_secs(10);

type Written = oneshot::Receiver<Result<(), SpoolError>>;

impl AckProducer {
    /// Whether new events of the topic go to the spool, because older ones are there.
    pub fn is_spooling(&self, topic: &ProducerTopic) -> bool {
        topic.outstanding().is_diverted()
    }

    /// Takes an event whose topic is not known to exist, and cannot be made at the moment: into the
    /// spool, never to librdkafka. Its topic is made before it is replayed. Without a spool it is
    /// [`SendError::Blocked`]. Dropped, it leaves an event that is spooled all the same.
    pub async fn send_later(
        &self,
        topic: &Arc<ProducerTopic>,
        key: &[u8],
        value: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Result<(), SendError> {
        let event = EventParts { topic: topic.name(), key, headers, value };
        let answer = match self.shared.largest.check(event) {
            Ok(()) => self.spool_only(topic, event, SendError::Blocked).await,
            too_large => too_large,
        };
        answer.inspect_err(|error| topic.count(error))
    }

    /// An event that librdkafka does not get. `error`: why; it is the answer where there is no
    /// spool.
    pub(super) async fn spool_only(
        &self,
        topic: &Arc<ProducerTopic>,
        event: EventParts<'_>,
        error: SendError,
    ) -> Result<(), SendError> {
        self.append(topic, event, None, error).await
    }

    /// An event that librdkafka had and gave back: it may be in Kafka all the same.
    pub(super) async fn spool_failed(
        &self,
        topic: &Arc<ProducerTopic>,
        event: EventParts<'_>,
        since: Moment,
        error: SendError,
    ) -> Result<(), SendError> {
        self.append(topic, event, Some(since.on_the_wall()), error).await
    }

    /// An event that librdkafka still has: the copy goes when Kafka answers.
    pub(super) async fn spool_copy(
        &self,
        topic: &Arc<ProducerTopic>,
        event: EventParts<'_>,
        handed: Handed,
    ) -> Result<(), SendError> {
        let Some(replayer) = &self.shared.replayer else { return Err(SendError::NotAcknowledged) };
        let Handed { ticket, since, mut answer } = handed;
        let (done, mut written) = told();
        let copied = {
            let mut outstanding = topic.outstanding();
            if outstanding.is_waiting(ticket) {
                let seq = replayer.spool().append(event, Some(since.on_the_wall()), done)?;
                outstanding.set_copied(ticket, seq);
                Some(outstanding.divert())
            } else {
                None
            }
        };
        let Some(is_first) = copied else {
            // Kafka's answer came at this moment
            return match answer.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) if !error.is_retriable() => Err(error),
                Ok(Err(error)) => self.spool_failed(topic, event, since, error).await,
                Err(_) => Err(SendError::NotAcknowledged),
            };
        };
        if is_first {
            self.start_replay(topic);
        }
        tokio::select! {
            acknowledged = &mut answer => match acknowledged {
                Ok(Ok(())) => Ok(()),
                // the copy is what counts now
                _ => disk_answer(&mut written).await,
            },
            result = disk_answer(&mut written) => result,
        }
    }

    /// Waits until the events of the topic that are on their way arrived, at most until `until`.
    pub(super) async fn wait_for_release(&self, topic: &ProducerTopic, until: Instant) {
        let released = topic.released.notified();
        tokio::pin!(released);
        released.as_mut().enable(); // before the look, so that a release in between is not missed
        if topic.outstanding().is_held(Instant::now()) {
            // held until then at most: the time-out is no failure
            let _ = tokio::time::timeout_at(until.into(), released).await;
        }
    }

    async fn append(
        &self,
        topic: &Arc<ProducerTopic>,
        event: EventParts<'_>,
        handed_at: Option<SystemTime>,
        error: SendError,
    ) -> Result<(), SendError> {
        let Some(replayer) = &self.shared.replayer else { return Err(error) };
        let (done, mut written) = told();
        let is_first = {
            // with the topic's lock: it cannot switch back between the look and the append
            let mut outstanding = topic.outstanding();
            replayer.spool().append(event, handed_at, done)?;
            outstanding.divert()
        };
        if is_first {
            self.start_replay(topic);
        }
        disk_answer(&mut written).await
    }
}

/// Who is told by the writing thread, and where it is heard.
fn told() -> (Done, Written) {
    let (sender, written) = oneshot::channel();
    // the request may be gone: the event is spooled all the same
    let tell = move |result| {
        let _ = sender.send(result);
    };
    (Box::new(tell), written)
}

async fn disk_answer(written: &mut Written) -> Result<(), SendError> {
    match tokio::time::timeout(DISK_WAIT, written).await {
        Ok(Ok(result)) => Ok(result?),
        Ok(Err(_)) | Err(_) => Err(SpoolError::Disk.into()),
    }
}
