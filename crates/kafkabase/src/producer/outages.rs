//! The spool against a real Kafka where only a test inside the crate can make things go wrong.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, ensure};
use prometheus::{IntCounter, IntCounterVec, Opts};
use rdkafka::{admin::AdminClient, client::DefaultClientContext, producer::Producer};
use testkit::{Kafka, Record, native::OwnKafka, wait_until};
use tokio::task::JoinSet;

use super::{AckProducer, NotMade, ProducerMetrics, SpoolUse, TopicMaker, lookup::LookUp};
use crate::{
    SendError, Spool, SpoolSettings,
    config::samples::kafka_config,
    native::{Right, allow, make_fatal},
    spool::unregistered_metrics,
};

/// Longer than anything here takes on a slow machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// For topics that tests make. Nothing is replayed while it is shut.
#[derive(Default)]
pub(super) struct Gate {
    is_shut: AtomicBool,
    /// Says that another topic's name is in the way.
    pub(super) collides: AtomicBool,
    /// How often it was asked.
    pub(super) asked: AtomicUsize,
}

impl TopicMaker for Gate {
    fn ensure<'a>(
        &'a self,
        _topic: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<(), NotMade>> + Send + 'a>> {
        self.asked.fetch_add(1, SeqCst);
        let ensured = match (self.is_shut.load(SeqCst), self.collides.load(SeqCst)) {
            (true, _) => Err(NotMade::Later),
            (false, true) => Err(NotMade::Collides("there is a_b".to_owned())),
            (false, false) => Ok(()),
        };
        Box::pin(async move { ensured })
    }
}

pub(super) struct Parts {
    pub(super) producer: AckProducer,
    rebuilt: IntCounter,
    pub(super) gate: Arc<Gate>,
    _folder: tempfile::TempDir,
}

fn producer(kafka: &OwnKafka, wait: Duration) -> Result<Parts> {
    producer_at(kafka.bootstrap(), wait)
}

pub(super) fn producer_at(bootstrap: &str, wait: Duration) -> Result<Parts> {
    let folder = tempfile::tempdir()?;
    let settings = SpoolSettings {
        folder: folder.path().join("spool"),
        max_bytes: 64 << 20,
        topic_share: 1.0,
    };
    let config = kafka_config(&[
        ("BULKER_KAFKA_BOOTSTRAP_SERVERS", bootstrap),
        ("BULKER_PRODUCER_WAIT_FOR_DELIVERY_MS", &wait.as_millis().to_string()),
    ]);
    let labels = ["topicId", "destinationId", "mode", "tableName", "status", "errorType"];
    let rebuilt = IntCounter::new("rebuilt", "rebuilt")?;
    let metrics = ProducerMetrics {
        messages: IntCounterVec::new(Opts::new("messages", "messages"), &labels)?,
        rebuilt: rebuilt.clone(),
    };
    let gate = Arc::new(Gate::default());
    let using = SpoolUse {
        spool: Spool::open(&settings, unregistered_metrics())?,
        topics: gate.clone(),
        lookup_wait: Duration::from_secs(1),
    };
    let producer = AckProducer::new(&config, "it", metrics, Some(using))?;
    Ok(Parts { producer, rebuilt, gate, _folder: folder })
}

impl Parts {
    /// Sends the event with this number; its key is the number, too.
    pub(super) async fn send(&self, topic: &str, number: usize) -> Result<(), SendError> {
        let (key, topic) = (number.to_string(), self.producer.topic(topic));
        let headers = [("number", key.as_bytes())];
        self.producer.send(&topic, key.as_bytes(), key.as_bytes(), &headers).await
    }

    pub(super) async fn until_replayed(&self) -> Result<()> {
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

/// Whether the broker takes records for this topic: rights need a moment to reach it.
async fn may_write(kafka: &Kafka, topic: &str) -> bool {
    kafka.produce(topic, 0, "other", "1000", &[]).await.is_ok()
}

pub(super) fn numbers(records: &[Record]) -> Vec<usize> {
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
async fn a_kafka_that_is_away_is_answered_from_the_disk_and_gets_all_of_it_in_order() -> Result<()>
{
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
    // given senders without a pause, of less than a slow Kafka can take, and a Kafka that was away
    // for longer than the wait
    own.stop_process()?;
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)));
    let mut senders = JoinSet::new();
    for _ in 0..2 {
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
    wait_until(PATIENCE, || async { spooled() > 200 }).await?;
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

/// A broker where a topic is open to everybody until a user has a right to it.
const WITH_RIGHTS: &str = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
    allow.everyone.if.no.acl.found=true\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_loses_its_right_while_spooled_is_put_away_and_holds_up_nobody() -> Result<()>
{
    let own = OwnKafka::start_with(WITH_RIGHTS).await?;
    let kafka = own.kafka();
    let (closed, open) = (kafka.topic("closed", 1).await?, kafka.topic("open", 1).await?);
    let base = kafka_config(&[("BULKER_KAFKA_BOOTSTRAP_SERVERS", own.bootstrap())]);
    let admin: AdminClient<DefaultClientContext> = base.client_config("it").create()?;
    let parts = producer(&own, Duration::from_millis(300))?;
    for number in 0..3 {
        parts.send(&closed, number).await?;
        parts.send(&open, number).await?;
    }
    parts.until_replayed().await?;

    // given events in the spool when the right to write is gone: who may only read may not write
    parts.gate.is_shut.store(true, SeqCst);
    own.stop_process()?;
    for number in 3..50 {
        parts.send(&closed, number).await?;
        parts.send(&open, number).await?;
    }
    own.continue_process()?;
    let name = closed.name().to_owned();
    let (admin, name) = tokio::task::spawn_blocking(move || {
        allow(admin.inner(), &name, Right::Read, PATIENCE).map(|()| (admin, name))
    })
    .await??;
    wait_until(PATIENCE, || async { !may_write(&kafka, &name).await }).await?;
    parts.gate.is_shut.store(false, SeqCst);

    // then its events are put away with the reason, those of the other topic arrive
    parts.until_replayed().await?;
    assert_eq!(numbers(&kafka.read_all(&open).await?), (0..50).collect::<Vec<_>>());
    let spool = parts.producer.spool().cloned().unwrap();
    let [quarantined] = &spool.quarantined()[..] else { panic!("{:?}", spool.quarantined()) };
    assert_eq!(quarantined.topic, name);
    let (reason, count) = quarantined.reasons.iter().next().unwrap();
    assert!(reason.contains("authorization"), "{reason}");
    let mut arrived = numbers(&kafka.read_all(&closed).await?);
    arrived.retain(|number| *number < 50);
    assert_eq!(arrived.len() + count, 50);
    assert_eq!(arrived, (0..arrived.len()).collect::<Vec<_>>());
    let refused = parts.send(&closed, 50).await;
    assert!(matches!(refused, Err(SendError::Refused(_))), "{refused:?}");

    // and they follow when the right is there again
    tokio::task::spawn_blocking(move || allow(admin.inner(), &name, Right::Write, PATIENCE))
        .await??;
    wait_until(PATIENCE, || async { may_write(&kafka, &closed).await }).await?;
    parts.producer.replay_quarantine(Some(closed.name())).await?;
    parts.until_replayed().await?;
    let mut arrived = numbers(&kafka.read_all(&closed).await?);
    arrived.retain(|number| *number < 50);
    assert_eq!(arrived, (0..50).collect::<Vec<_>>());
    assert_eq!(spool.status().quarantined, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_finds_events_in_every_partition_also_those_that_surface_late() -> Result<()> {
    let kafka = testkit::kafka().await?;
    let topic = kafka.topic("t", 3).await?;
    let config = kafka_config(&[("BULKER_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())]);
    let look_up = LookUp::new(config.client_config("it"), Duration::from_secs(4));
    let since = SystemTime::now();
    for (partition, key) in [(0, "first"), (1, "second"), (2, "third")] {
        kafka.produce(&topic, partition, key, "", &[]).await?;
        kafka.produce_all(&topic, partition, vec!["other"; 500]).await?;
    }
    let keys =
        |keys: &[&str]| keys.iter().map(|key| key.as_bytes().to_vec()).collect::<HashSet<_>>();
    let wanted = keys(&["first", "second", "third", "late", "nowhere"]);
    let (found, late) = tokio::join!(
        look_up.find(&topic, wanted, since),
        kafka.produce(&topic, 1, "late", "", &[]),
    );
    late?;
    assert_eq!(found?, keys(&["first", "second", "third", "late"]));
    Ok(())
}
