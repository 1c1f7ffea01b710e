//! Looking for events in the tail of their topic, by key, before they are sent again.
//!
//! Invariant: an event that is not found was not written and will not be. Records surface late: a
//! request may still lie in a broker's socket, and what only the leader has is shown to no reader
//! before the replicas have it, or have been given up. So the look waits after every leader has
//! answered, and reads up to where the topic ends then.

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio::sync::Semaphore;

/// How long a broker may take to answer a question.
const QUESTION: Duration = Duration::from_secs(10);
/// How long the tail may show nothing new before the look is given up.
const SILENCE: Duration = Duration::from_secs(20);
/// How far clocks may be apart, where brokers stamp the records.
const CLOCKS_APART: Duration = Duration::from_secs(30);
/// Tails that are read at a time.
const READERS: usize = 4;

/// Why nothing is known of events.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookUpError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("the topic's tail was not read to its end in time")]
    Silence,
    #[error("the topic has no partitions")]
    NoPartitions,
    #[error("the look was interrupted")]
    Interrupted,
}

/// Looks into topics.
pub(super) struct LookUp {
    config: ClientConfig,
    wait: Duration,
    readers: Semaphore,
}

/// A partition's tail.
#[derive(Debug, Clone, Copy)]
struct Tail {
    partition: i32,
    start: i64,
}

impl LookUp {
    /// `wait`: how late a record may surface.
    pub(super) fn new(mut config: ClientConfig, wait: Duration) -> LookUp {
        config
            // librdkafka wants a group before it assigns; nothing is ever committed or joined with
            // it
            .set("group.id", "bulkerapp-lookup")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // another producer's open transaction must not hide what is behind it
            .set("isolation.level", "read_uncommitted")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "50");
        LookUp { config, wait, readers: Semaphore::new(READERS) }
    }

    /// Which of `keys` the topic has; none was sent before `since`.
    pub(super) async fn find(
        &self,
        topic: &str,
        keys: HashSet<Vec<u8>>,
        since: SystemTime,
    ) -> Result<HashSet<Vec<u8>>, LookUpError> {
        let since = since.checked_sub(CLOCKS_APART).unwrap_or(UNIX_EPOCH);
        let tails =
            self.blocking(topic, move |consumer, topic| tails(consumer, topic, since)).await?;
        tokio::time::sleep(self.wait).await;
        self.blocking(topic, move |consumer, topic| read(consumer, topic, &tails, keys)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        topic: &str,
        work: impl FnOnce(&BaseConsumer, &str) -> Result<T, LookUpError> + Send + 'static,
    ) -> Result<T, LookUpError> {
        let _permit = self.readers.acquire().await;
        let (config, topic) = (self.config.clone(), topic.to_owned());
        let work = move || work(&config.create()?, &topic);
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(LookUpError::Interrupted))
    }
}

/// Where each partition's records since then begin. Every leader has answered when this returns.
fn tails(
    consumer: &BaseConsumer,
    topic: &str,
    since: SystemTime,
) -> Result<Vec<Tail>, LookUpError> {
    let metadata = consumer.fetch_metadata(Some(topic), QUESTION)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
    if partitions == 0 {
        return Err(LookUpError::NoPartitions);
    }
    let mut asked = TopicPartitionList::new();
    let since = since.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
    for partition in 0..partitions {
        let since = Offset::Offset(i64::try_from(since).unwrap_or(i64::MAX));
        asked.add_partition_offset(topic, partition, since)?;
    }
    let mut tails = Vec::new();
    for found in consumer.offsets_for_times(asked, QUESTION)?.elements() {
        found.error()?;
        let partition = found.partition();
        let start = match found.offset() {
            Offset::Offset(offset) => offset,
            // nothing is that young yet
            _ => consumer.fetch_watermarks(topic, partition, QUESTION)?.1,
        };
        tails.push(Tail { partition, start });
    }
    Ok(tails)
}

/// Reads the tails to where they end now.
fn read(
    consumer: &BaseConsumer,
    topic: &str,
    tails: &[Tail],
    mut missing: HashSet<Vec<u8>>,
) -> Result<HashSet<Vec<u8>>, LookUpError> {
    let mut assigned = TopicPartitionList::new();
    let mut ends = std::collections::HashMap::new();
    for tail in tails {
        let (low, end) = consumer.fetch_watermarks(topic, tail.partition, QUESTION)?;
        let start = tail.start.max(low); // retention may have cut meanwhile
        if start < end {
            ends.insert(tail.partition, end);
            assigned.add_partition_offset(topic, tail.partition, Offset::Offset(start))?;
        }
    }
    let mut found = HashSet::new();
    consumer.assign(&assigned)?;
    let mut heard = Instant::now();
    while !ends.is_empty() && !missing.is_empty() {
        if heard.elapsed() > SILENCE {
            return Err(LookUpError::Silence);
        }
        match consumer.poll(Duration::from_millis(200)) {
            None => continue,
            Some(Ok(message)) => {
                if let Some(key) = message.key().and_then(|key| missing.take(key)) {
                    found.insert(key);
                }
                let partition = message.partition();
                if ends.get(&partition).is_some_and(|end| message.offset() + 1 >= *end) {
                    ends.remove(&partition);
                }
            }
            // behind the end that was asked for before the first fetch
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.remove(&partition)),
            // of one broker's connection; the silence tells when it is more
            Some(Err(error)) if error.rdkafka_error_code().is_some_and(is_passing) => continue,
            Some(Err(error)) => return Err(error.into()),
        }
        heard = Instant::now();
    }
    Ok(found)
}

fn is_passing(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, Resolve};
    matches!(code, AllBrokersDown | BrokerTransportFailure | Resolve)
}
