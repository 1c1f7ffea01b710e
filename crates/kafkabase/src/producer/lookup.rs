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
        let tails = self
            .blocking(topic, move |consumer, topic| tails(&LeadersOf { consumer, topic }, since))
            .await?;
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

/// What a look asks the leaders of a topic.
trait Leaders {
    /// How many partitions there are.
    fn partitions(&self) -> Result<i32, LookUpError>;
    /// Where a partition ends, open transactions included.
    fn end(&self, partition: i32) -> Result<i64, LookUpError>;
    /// The first record of each partition that is from then or younger; `None` where there is none.
    fn first_since(
        &self,
        partitions: i32,
        since: SystemTime,
    ) -> Result<Vec<(i32, Option<i64>)>, LookUpError>;
}

/// Where each partition's records since then begin. Every leader has answered when this returns.
///
/// Ends are asked for first: a record that surfaces afterwards is behind them, and one that was
/// there before is found by its time. The other way round, a record that surfaces between the two
/// questions is in neither answer.
fn tails(leaders: &impl Leaders, since: SystemTime) -> Result<Vec<Tail>, LookUpError> {
    let partitions = leaders.partitions()?;
    if partitions == 0 {
        return Err(LookUpError::NoPartitions);
    }
    let mut ends = Vec::new();
    for partition in 0..partitions {
        ends.push(leaders.end(partition)?);
    }
    let firsts = leaders.first_since(partitions, since)?;
    let tail = |(partition, first): (i32, Option<i64>)| {
        let end = usize::try_from(partition).ok().and_then(|at| ends.get(at)).copied();
        let start = first.unwrap_or(i64::MAX).min(end.unwrap_or(i64::MAX));
        Tail { partition, start }
    };
    Ok(firsts.into_iter().map(tail).collect())
}

/// The leaders as Kafka has them.
struct LeadersOf<'a> {
    consumer: &'a BaseConsumer,
    topic: &'a str,
}

impl Leaders for LeadersOf<'_> {
    fn partitions(&self) -> Result<i32, LookUpError> {
        let metadata = self.consumer.fetch_metadata(Some(self.topic), QUESTION)?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        Ok(i32::try_from(partitions).unwrap_or(i32::MAX))
    }

    fn end(&self, partition: i32) -> Result<i64, LookUpError> {
        Ok(self.consumer.fetch_watermarks(self.topic, partition, QUESTION)?.1)
    }

    fn first_since(
        &self,
        partitions: i32,
        since: SystemTime,
    ) -> Result<Vec<(i32, Option<i64>)>, LookUpError> {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let since = Offset::Offset(i64::try_from(since).unwrap_or(i64::MAX));
        let mut asked = TopicPartitionList::new();
        for partition in 0..partitions {
            asked.add_partition_offset(self.topic, partition, since)?;
        }
        let mut firsts = Vec::new();
        for found in self.consumer.offsets_for_times(asked, QUESTION)?.elements() {
            found.error()?;
            let first = match found.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None, // nothing is that young yet
            };
            firsts.push((found.partition(), first));
        }
        Ok(firsts)
    }
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const SINCE: u64 = 100;

    /// A partition whose records are times, and get more behind each question.
    struct Growing {
        records: RefCell<Vec<u64>>,
        /// What surfaces behind which question, counted from 1.
        surfaces: (usize, Vec<u64>),
        questions: RefCell<usize>,
    }

    impl Growing {
        fn ask(&self) -> Vec<u64> {
            let answer = self.records.borrow().clone();
            *self.questions.borrow_mut() += 1;
            if *self.questions.borrow() == self.surfaces.0 {
                self.records.borrow_mut().extend(&self.surfaces.1);
            }
            answer
        }
    }

    impl Leaders for Growing {
        fn partitions(&self) -> Result<i32, LookUpError> {
            self.ask();
            Ok(1)
        }

        fn end(&self, _: i32) -> Result<i64, LookUpError> {
            Ok(self.ask().len() as i64)
        }

        fn first_since(
            &self,
            _: i32,
            since: SystemTime,
        ) -> Result<Vec<(i32, Option<i64>)>, LookUpError> {
            let is_young = |time: &u64| UNIX_EPOCH + Duration::from_secs(*time) >= since;
            let first = self.ask().iter().position(is_young);
            Ok(vec![(0, first.map(|at| at as i64))])
        }
    }

    #[test]
    fn a_record_is_in_the_tail_whenever_it_surfaces() {
        for older in [vec![], vec![10, 20], vec![10, 200, 30]] {
            for question in 0..5 {
                // given a record that surfaces behind one of the questions, or before the first
                let is_first = question == 0;
                let mut records = older.clone();
                records.extend(is_first.then_some(SINCE));
                let leaders = Growing {
                    records: RefCell::new(records),
                    surfaces: (question, vec![SINCE]),
                    questions: RefCell::default(),
                };
                // when the tails are asked for, then they begin before it
                let since = UNIX_EPOCH + Duration::from_secs(SINCE);
                let tails = tails(&leaders, since).unwrap();
                let at = older.len() as i64;
                assert!(tails[0].start <= at, "{older:?} {question}: {tails:?}");
            }
        }
    }
}
