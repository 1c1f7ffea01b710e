//! The spool against a real Kafka where only a test inside the crate can make things go wrong.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use prometheus::{IntCounter, IntCounterVec, Opts};
use rdkafka::producer::Producer;
use testkit::{Record, native::OwnKafka, wait_until};
use tokio::task::JoinSet;

use super::{AckProducer, NotMade, ProducerMetrics, SpoolUse, TopicMaker};
use crate::{
    SendError, Spool, SpoolSettings, config::samples::kafka_config, native::make_fatal,
    spool::unregistered_metrics,
};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// For topics that tests make.
struct IsThere;

impl TopicMaker for IsThere {
    fn ensure<'a>(
        &'a self,
        _topic: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), NotMade>> + Send + 'a>> {
        Box::pin(async { Ok(()) })
    }
}

struct Parts {
    producer: AckProducer,
    rebuilt: IntCounter,
    _folder: tempfile::TempDir,
}

fn producer(kafka: &OwnKafka, wait: Duration) -> Result<Parts> {
    let folder = tempfile::tempdir()?;
    let settings = SpoolSettings {
        folder: folder.path().join("spool"),
        max_bytes: 64 << 20,
        topic_share: 1.0,
    };
    let config = kafka_config(&[
        ("BULKER_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap()),
        ("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", &wait.as_millis().to_string()),
    ]);
    let labels = ["topicId", "destinationId", "mode", "tableName", "status", "errorType"];
    let rebuilt = IntCounter::new("rebuilt", "rebuilt")?;
    let metrics = ProducerMetrics {
        messages: IntCounterVec::new(Opts::new("messages", "messages"), &labels)?,
        rebuilt: rebuilt.clone(),
    };
    let using = SpoolUse {
        spool: Spool::open(&settings, unregistered_metrics())?,
        topics: Arc::new(IsThere),
        lookup_wait: Duration::from_secs(1),
    };
    let producer = AckProducer::new(&config, "it", metrics, Some(using))?;
    Ok(Parts { producer, rebuilt, _folder: folder })
}

impl Parts {
    /// Sends the event with this number; its key is the number, too.
    async fn send(&self, topic: &str, number: usize) -> Result<(), SendError> {
        let (key, topic) = (number.to_string(), self.producer.topic(topic));
        let headers = [("number", key.as_bytes())];
        self.producer.send(&topic, key.as_bytes(), key.as_bytes(), &headers).await
    }

    async fn until_replayed(&self) -> Result<()> {
        let is_empty = || async {
            self.producer.spool().is_some_and(|spool| spool.status().waiting == 0)
                && self.producer.blocked_topics() == 0
        };
        wait_until(PATIENCE, is_empty).await
    }

    fn is_fatal(&self) -> bool {
        self.producer.shared.client.current().client().fatal_error().is_some()
    }
}

fn numbers(records: &[Record]) -> Vec<usize> {
    records.iter().map(|record| record.text().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_an_error_ends_in_the_middle_loses_and_doubles_nothing() -> Result<()> {
    let own = OwnKafka::start().await?;
    let kafka = own.kafka();
    let topic = kafka.topic("t", 1).await?;
    let parts = producer(&own, Duration::from_millis(500))?;
    for number in 0..10 {
        parts.send(&topic, number).await?;
    }
    parts.until_replayed().await?; // a first event may take its time
    // given events that the broker has in its socket, and events behind them that are only spooled
    own.stop_process()?;
    for number in 10..20 {
        parts.send(&topic, number).await?;
    }
    // when an error ends the client, and Kafka wakes
    make_fatal(parts.producer.shared.client.current().client());
    ensure!(parts.is_fatal());
    wait_until(PATIENCE, || async { parts.rebuilt.get() == 1 }).await?;
    own.continue_process()?;
    for number in 20..30 {
        parts.send(&topic, number).await?;
    }
    parts.until_replayed().await?;
    // then the first of them, which Kafka took, is not there twice
    parts.send(&topic, 30).await?;
    assert_eq!(numbers(&kafka.read_all(&topic).await?), (0..=30).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_is_away_is_answered_from_the_disk_and_gets_all_of_it_in_order() -> Result<()> {
    let own = OwnKafka::start().await?;
    let kafka = own.kafka();
    let topic = kafka.topic("t", 1).await?;
    let parts = producer(&own, Duration::from_millis(300))?;
    parts.send(&topic, 0).await?;
    parts.until_replayed().await?; // a first event may take its time
    own.kill9().await?;
    parts.send(&topic, 1).await?;
    let started = Instant::now();
    for number in 2..500 {
        parts.send(&topic, number).await?;
    }
    ensure!(started.elapsed() < Duration::from_secs(20), "only the first waits for kafka");
    let status = parts.producer.spool().map(Spool::status).unwrap_or_default();
    assert_eq!((status.waiting, status.topics, status.takes), (499, 1, true));
    own.restart().await?;
    parts.until_replayed().await?;
    assert_eq!(numbers(&kafka.read_all(&topic).await?), (0..500).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_kafka_under_steady_traffic_gets_its_topic_back_from_the_spool() -> Result<()> {
    let own = Arc::new(OwnKafka::start().await?);
    let kafka = own.kafka();
    let topic = kafka.topic("t", 1).await?;
    let wait = Duration::from_millis(600);
    let parts = Arc::new(producer(&own, wait)?);
    parts.send(&topic, 0).await?;
    parts.until_replayed().await?;
    // given senders without a pause, and a Kafka that was away for longer than the wait
    own.stop_process()?;
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)));
    let mut senders = JoinSet::new();
    for _ in 0..16 {
        let (parts, stop, next) = (parts.clone(), stop.clone(), next.clone());
        let name = topic.name().to_owned();
        senders.spawn(async move {
            while !stop.load(SeqCst) {
                parts.send(&name, next.fetch_add(1, SeqCst)).await?;
            }
            Ok::<_, SendError>(())
        });
    }
    let spooled = || parts.producer.spool().map_or(0, |spool| spool.status().waiting);
    wait_until(PATIENCE, || async { spooled() > 1_000 }).await?;
    // when it answers again, each time after half the wait
    let slow = tokio::spawn({
        let (own, stop) = (own.clone(), stop.clone());
        async move {
            while !stop.load(SeqCst) {
                own.continue_process()?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                own.stop_process()?;
                tokio::time::sleep(wait / 2).await;
            }
            own.continue_process()
        }
    });
    // then new events go to it again, although their senders never paused
    wait_until(PATIENCE, || async { parts.producer.blocked_topics() == 0 }).await?;
    stop.store(true, SeqCst);
    while let Some(sender) = senders.join_next().await {
        sender??;
    }
    slow.await??;
    parts.until_replayed().await?;
    let mut found = numbers(&kafka.read_all(&topic).await?);
    found.sort_unstable();
    assert_eq!(found, (0..next.load(SeqCst)).collect::<Vec<_>>());
    Ok(())
}
