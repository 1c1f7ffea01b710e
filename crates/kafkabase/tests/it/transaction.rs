use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use kafkabase::{
    GroupSource, OffsetReset, RecordParts, SourceError, SourceItem, SourceSettings,
    TransactionError, TransactionSettings, TransactionalProducer,
};
use testkit::{Kafka, Topic, wait_until};

use crate::settings::kafka_config;

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_millis(100);
/// Messages of one transaction.
const AT_ONCE: usize = 7;

/// An input, an output, and a group that has nothing yet.
struct Place {
    kafka: Kafka,
    input: Topic,
    output: Topic,
    group: String,
}

impl Place {
    async fn new(partitions: i32) -> Result<Place> {
        let kafka = testkit::kafka().await?;
        let (input, output) = (kafka.topic("in", partitions).await?, kafka.topic("out", 1).await?);
        let group = format!("router-{}", input.name());
        Ok(Place { kafka, input, output, group })
    }

    async fn router(&self, owner: &str) -> Result<Router> {
        let producer = self.producer(owner)?;
        producer.init().await?;
        let config = kafka_config(&self.kafka)?;
        let settings = SourceSettings {
            topic: self.input.name().to_owned(),
            group: self.group.clone(),
            offset_reset: OffsetReset::Earliest,
        };
        let source = GroupSource::join(&config, "it", &settings)?;
        let (output, partitions) = (self.output.name().to_owned(), Partitions::default());
        Ok(Router { source, producer, output, partitions })
    }

    fn producer(&self, owner: &str) -> Result<TransactionalProducer> {
        let transactional_id = format!("{}-{owner}", self.group);
        let settings = TransactionSettings { transactional_id, timeout: Duration::from_secs(30) };
        Ok(TransactionalProducer::new(&kafka_config(&self.kafka)?, "it", &settings)?)
    }

    /// What a read-committed reader sees, in any order.
    async fn routed(&self) -> Result<Vec<String>> {
        let records = self.kafka.read_all(&self.output).await?;
        let mut values: Vec<_> = records.iter().map(testkit::Record::text).collect();
        values.sort_unstable();
        Ok(values)
    }
}

/// Copies messages from a group's topic into another one.
struct Router {
    source: GroupSource,
    producer: TransactionalProducer,
    output: String,
    partitions: Partitions,
}

/// What a router has at the moment, for its test to see.
#[derive(Clone, Default)]
struct Partitions(Arc<Mutex<BTreeSet<i32>>>);

impl Partitions {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.lock().len()
    }
}

impl Router {
    /// Sends what is there as part of a transaction, `limit` messages at most; how many it were.
    async fn send(&mut self, limit: usize) -> Result<usize> {
        let mut count = 0;
        while count < limit {
            match self.source.next(WAIT).await? {
                SourceItem::Message(message) => {
                    if count == 0 {
                        self.producer.begin().await?;
                    }
                    let header = ("partition", Some(&b"x"[..]));
                    let record = RecordParts {
                        topic: &self.output,
                        key: message.key.as_deref(),
                        value: message.value.as_deref(),
                        headers: &[header],
                        ..RecordParts::default()
                    };
                    self.producer.send(record).await?;
                    count += 1;
                }
                SourceItem::Assigned(partitions) => {
                    self.partitions.lock().extend(partitions);
                }
                SourceItem::Revoked(partitions) => {
                    self.partitions.lock().retain(|one| !partitions.contains(one));
                }
                SourceItem::Nothing => break,
            }
        }
        Ok(count)
    }

    async fn send_some(&mut self, limit: usize) -> Result<usize> {
        for _ in 0..600 {
            let count = self.send(limit).await?;
            if count > 0 {
                return Ok(count);
            }
        }
        bail!("nothing came")
    }

    async fn commit(&mut self) -> Result<()> {
        let position = match self.source.position() {
            Err(SourceError::Revoked) => return self.start_over().await,
            position => position?,
        };
        loop {
            match self.producer.commit_with(&position).await {
                Ok(()) => break,
                Err(TransactionError::Retriable { .. }) => {}
                Err(TransactionError::Abort { .. }) => return self.start_over().await,
                Err(error) => return Err(error.into()),
            }
        }
        self.source.mark_committed(&position);
        Ok(())
    }

    async fn start_over(&mut self) -> Result<()> {
        self.producer.abort().await?;
        Ok(self.source.rewind().await?)
    }

    /// Routes until told to stop; gives up what is open then.
    async fn run(mut self, stop: Arc<AtomicBool>) -> Result<()> {
        while !stop.load(SeqCst) {
            if self.send(AT_ONCE).await? > 0 {
                self.commit().await?;
            }
        }
        self.source.leave().await;
        Ok(())
    }
}

fn values(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{number:05}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_the_offsets_of_their_source_are_committed_together_or_not_at_all() -> Result<()>
{
    let place = Place::new(1).await?;
    place.kafka.produce_all(&place.input, 0, values(0..10)).await?;
    let mut router = place.router("a").await?;
    let committed = || place.kafka.committed(&place.group, &place.input, 0);

    // an aborted transaction leaves nothing, and its messages come again
    let count = router.send_some(4).await?;
    assert_eq!(count, 4);
    assert_eq!(router.source.position()?.offsets(), [(0, 4)].into());
    router.start_over().await?;
    assert!(place.routed().await?.is_empty());
    assert_eq!(committed().await?, None);

    // a committed one has the records and the offset
    let mut routed = 0;
    while routed < 10 {
        routed += router.send_some(10 - routed).await?;
        router.commit().await?;
        assert_eq!(place.routed().await?, values(0..routed));
        let offset = committed().await?.map(|committed| committed.offset);
        assert_eq!(offset, Some(routed as i64));
    }
    assert!(router.source.position()?.is_empty(), "nothing is in hand");
    router.source.leave().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_producer_with_the_id_goes_on_where_the_former_left_a_transaction_open()
-> Result<()> {
    let place = Place::new(1).await?;
    place.kafka.produce_all(&place.input, 0, values(0..50)).await?;
    let mut first = place.router("a").await?;
    first.send_some(5).await?;
    first.commit().await?;
    // given a transaction that is open, with records in kafka, when its owner is gone
    first.send_some(5).await?;
    drop(first);
    // then the next one ends it, and routes its messages anew
    let mut second = place.router("a").await?;
    while place.routed().await?.len() < 50 {
        second.send_some(AT_ONCE).await?;
        second.commit().await?;
    }
    assert_eq!(place.routed().await?, values(0..50));
    second.source.leave().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_id_another_one_took_over_is_fenced() -> Result<()> {
    let place = Place::new(1).await?;
    place.kafka.produce_all(&place.input, 0, values(0..5)).await?;
    let mut first = place.router("a").await?;
    first.send_some(5).await?;
    let second = place.producer("a")?;
    second.init().await?;
    let position = first.source.position()?;
    // it may hear first that its transaction is gone, and when it gives that up, why
    let mut error = first.producer.commit_with(&position).await.unwrap_err();
    if matches!(error, TransactionError::Abort { .. }) {
        error = first.producer.abort().await.unwrap_err();
    }
    ensure!(matches!(error, TransactionError::Fenced { .. }), "{error:?}");
    let again = first.producer.begin().await.unwrap_err();
    ensure!(matches!(again, TransactionError::Fenced { .. }), "{again:?}");
    assert!(place.routed().await?.is_empty());
    // and the other one works
    second.begin().await?;
    let record =
        RecordParts { topic: place.output.name(), value: Some(b"x"), ..RecordParts::default() };
    second.send(record).await?;
    let nothing_read = place.router("b").await?.source.position()?;
    second.commit_with(&nothing_read).await?;
    assert_eq!(place.routed().await?, ["x"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_refused_and_the_transaction_goes_on() -> Result<()> {
    let place = Place::new(1).await?;
    let router = place.router("a").await?;
    let value = |value| RecordParts {
        topic: place.output.name(),
        value: Some(value),
        ..RecordParts::default()
    };
    router.producer.begin().await?;
    router.producer.send(value(b"before")).await?;
    let refused = router.producer.send(value(&[0; 2 << 20])).await;
    ensure!(matches!(refused, Err(TransactionError::Refused { .. })), "{refused:?}");
    router.producer.send(value(b"behind")).await?;
    router.producer.commit_with(&router.source.position()?).await?;
    assert_eq!(place.routed().await?, ["before", "behind"]);
    router.source.leave().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_partitions_and_another_takes_over_from_one_that_dies() -> Result<()> {
    let place = Place::new(4).await?;
    let (first, second) = (place.router("a").await?, place.router("b").await?);
    let (of_first, of_second) = (first.partitions.clone(), second.partitions.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let first = tokio::spawn(first.run(stop.clone()));
    let second = tokio::spawn(second.run(stop.clone()));
    wait_until(PATIENCE, || async { of_first.count() == 2 && of_second.count() == 2 }).await?;
    for partition in 0..4 {
        let from = partition as usize * 500;
        place.kafka.produce_all(&place.input, partition, values(from..from + 500)).await?;
    }
    // given a member that dies in the middle of its work, and another process in its place
    wait_until(PATIENCE, || async { place.routed().await.is_ok_and(|all| all.len() > 50) }).await?;
    first.abort();
    ensure!(first.await.is_err_and(|error| error.is_cancelled()), "it did not die at work");
    let third = place.router("a").await?;
    let of_third = third.partitions.clone();
    let third = tokio::spawn(third.run(stop.clone()));
    // then the two have all partitions, and each message is routed once
    wait_until(PATIENCE, || async { of_third.count() == 2 && of_second.count() == 2 }).await?;
    let is_all_there = || async { place.routed().await.is_ok_and(|all| all.len() >= 2000) };
    wait_until(PATIENCE, is_all_there).await?;
    stop.store(true, SeqCst);
    second.await??;
    third.await??;
    assert_eq!(place.routed().await?, values(0..2000));
    Ok(())
}
