//! From the spool to Kafka, by itself, once Kafka is back: one task for each topic that has events
//! there.
//!
//! Invariants: a topic is replayed in order, and only while librdkafka has none of its requests'
//! events. What may be in Kafka already is looked for before it is sent; that an event is handed
//! over is on the medium before it is. What Kafka refuses for good goes to the quarantine, and the
//! topic moves on. A topic that is stuck holds up no other.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rdkafka::{
    error::RDKafkaErrorCode,
    producer::{BaseRecord, Producer},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::{debug, info, warn};

use super::{
    AckProducer, NotMade, ProducerTopic, SendError, owned, replayer::Replayer, reports::Report,
};
use crate::{Spool, SpoolError, error::code_of, spool::SpooledEvent};

/// Events, and their bytes, that are sent before the next ones wait for their acknowledgement.
const MOST_EVENTS: usize = 10_000;
const MOST_BYTES: usize = 900_000; // one batch: what follows one that is refused would overtake it
/// How much more is sent after all went well.
const GROWTH: usize = 4;
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether events arrived on the disk that are just being written.
const GLANCE: Duration = Duration::from_millis(2);
/// How long brokers may take to tell of a topic.
const PROBE: Duration = Duration::from_secs(5);

/// Why a step of a replay did not end well; the next one comes after a pause.
#[derive(Debug, thiserror::Error)]
enum Stuck {
    #[error(transparent)]
    NotMade(#[from] NotMade),
    #[error("the look for events that may be in kafka failed: {0}")]
    LookUp(#[from] super::lookup::LookUpError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("kafka does not tell of the topic")]
    Silent,
    #[error("the disk is full, and other topics have the oldest events")]
    NotItsTurn,
    #[error("{0}")]
    Send(SendError),
}

/// The replay of one topic, from its first spooled event until nothing is left.
pub(super) struct Replay<'a> {
    producer: &'a AckProducer,
    replayer: &'a Replayer,
    topic: &'a Arc<ProducerTopic>,
    /// How many events are sent next: one to try, then more and more.
    events: usize,
    /// More at a time are too large for Kafka, although each alone is not.
    most: usize,
    /// How long the last events took.
    latency: Option<Duration>,
    /// The last failure that was logged.
    told: String,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        producer: &'a AckProducer,
        replayer: &'a Replayer,
        topic: &'a Arc<ProducerTopic>,
    ) -> Replay<'a> {
        let (most, told) = (MOST_EVENTS, String::new());
        Replay { producer, replayer, topic, events: 1, most, latency: None, told }
    }

    pub(super) async fn run(mut self) {
        info!(topic = self.topic.name(), "events of this topic go to the spool");
        while !self.is_done() {
            if let Err(stuck) = self.step().await {
                self.tell(&stuck);
                self.events = 1;
                self.latency = None;
                self.release();
                tokio::time::sleep(PAUSE).await;
            }
        }
        info!(topic = self.topic.name(), "events of this topic go to kafka again");
    }

    /// Kafka being away, or a disk being full, is told elsewhere, and not once for each topic.
    fn tell(&mut self, stuck: &Stuck) {
        let text = stuck.to_string();
        let is_told = match stuck {
            Stuck::Silent | Stuck::NotItsTurn => true,
            Stuck::NotMade(why) => !matches!(why, NotMade::Collides(_)),
            _ => false,
        };
        if is_told || self.told == text {
            debug!(topic = self.topic.name(), error = text, "replay waits");
        } else {
            warn!(topic = self.topic.name(), error = text, "replay waits");
            self.told = text;
        }
    }

    fn spool(&self) -> &'a Spool {
        self.replayer.spool()
    }

    /// Switches back when the spool has nothing of the topic.
    fn is_done(&self) -> bool {
        let mut outstanding = self.topic.outstanding();
        if !self.spool().is_clear(self.topic.name()) {
            return false;
        }
        outstanding.switch_back();
        drop(outstanding);
        self.topic.released.notify_waiters();
        true
    }

    async fn step(&mut self) -> Result<(), Stuck> {
        let name = self.topic.name();
        self.until_idle().await;
        if self.spool().has_handed(name) {
            return self.look_for_handed().await;
        }
        if !self.spool().is_turn_of(name) {
            return Err(Stuck::NotItsTurn);
        }
        if self.events == 1 {
            self.ensure_topic().await?;
            self.probe().await?;
        }
        let permit = self.permit().await;
        self.hold_if_little_is_left().await;
        let events = {
            let _reader = self.replayer.readers.acquire().await;
            self.spool().first(name, self.events, MOST_BYTES).await?
        };
        if events.is_empty() {
            tokio::time::sleep(GLANCE).await; // on their way to the disk
            return Ok(());
        }
        self.send(events, permit).await
    }

    /// Waits until librdkafka has no event of the topic, or the spool has none.
    async fn until_idle(&self) {
        while !self.topic.outstanding().is_empty() && !self.spool().is_clear(self.topic.name()) {
            // told by each report; the time-out is for the spool
            let _ = tokio::time::timeout(PAUSE, self.topic.settled.notified()).await;
        }
    }

    /// Finds out which events that were handed over Kafka has. They go; the others are to be sent.
    async fn look_for_handed(&self) -> Result<(), Stuck> {
        self.ensure_topic().await?;
        let (name, spool) = (self.topic.name(), self.spool());
        let handed = {
            let _reader = self.replayer.readers.acquire().await;
            spool.handed(name).await?
        };
        let since = handed.iter().map(SpooledEvent::handed_at).min().unwrap_or(SystemTime::now());
        let keys = handed.iter().map(|event| event.key.clone()).collect::<HashSet<_>>();
        let found = self.replayer.look_up.find(name, keys, since).await?;
        let (there, missing): (Vec<_>, Vec<_>) =
            handed.iter().partition(|event| found.contains(&event.key));
        info!(topic = name, found = there.len(), missing = missing.len(), "looked for events");
        spool.count("found", there.len());
        spool.remove(name, there.iter().map(|event| event.seq()));
        spool.set_missing(name, missing.iter().map(|event| event.seq()));
        Ok(())
    }

    /// A topic that will not be made takes its events into the quarantine.
    async fn ensure_topic(&self) -> Result<(), Stuck> {
        let name = self.topic.name();
        let ensured = self.replayer.using.topics.ensure(name).await;
        if let Err(NotMade::Refused(reason)) = &ensured {
            let seqs = self.spool().waiting(name);
            warn!(topic = name, events = seqs.len(), reason, "events put into quarantine");
            seqs.into_iter().for_each(|seq| self.spool().quarantine(name, seq, reason));
        }
        Ok(ensured?)
    }

    /// Asks whether the topic's leaders are there, before an event is handed over that would have
    /// to be looked for after a crash.
    async fn probe(&self) -> Result<(), Stuck> {
        let replayer = self.replayer;
        let _permit = replayer.probes.acquire().await;
        let lock = || replayer.silent_at.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(Stuck::Silent);
        }
        let (client, name) = (self.producer.shared.client.current(), self.topic.name().to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = client.client().fetch_metadata(Some(&name), PROBE).ok()?;
            let topic = metadata.topics().first()?;
            let mut leaders = topic.partitions().iter().map(|partition| partition.leader());
            let are_there = !topic.partitions().is_empty() && leaders.all(|leader| leader >= 0);
            Some(are_there)
        });
        match asked.await {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false)) => Err(Stuck::Silent),
            Ok(None) | Err(_) => {
                *lock() = Some(Instant::now());
                Err(Stuck::Silent)
            }
        }
    }

    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if self.events == 1 {
            return None;
        }
        self.replayer.senders.clone().acquire_owned().await.ok()
    }

    /// When the next step may be the last, new events wait for it instead of making it one more.
    async fn hold_if_little_is_left(&self) {
        let wait = self.producer.shared.wait;
        let (name, spool) = (self.topic.name(), self.spool());
        let is_quick = self.latency.is_some_and(|latency| latency < wait);
        if !is_quick || !spool.fits(name, self.events, MOST_BYTES) {
            return;
        }
        let now = Instant::now();
        {
            let mut outstanding = self.topic.outstanding();
            if !outstanding.is_held(now) {
                outstanding.hold(Some(now + 2 * wait));
            }
        }
        while spool.has_pending(name) && now.elapsed() < wait {
            tokio::time::sleep(GLANCE).await;
        }
    }

    fn release(&self) {
        self.topic.outstanding().hold(None);
        self.topic.released.notify_waiters();
    }

    /// Sends events in order, and settles them as Kafka answers.
    async fn send(
        &mut self,
        events: Vec<SpooledEvent>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Stuck> {
        let (name, spool) = (self.topic.name(), self.spool());
        let started = Instant::now();
        spool.mark_handed(name, events.iter().map(SpooledEvent::seq).collect()).await?;
        let count = events.len();
        let (answer, answers) = mpsc::unbounded_channel();
        let not_sent = self.hand_over(&events, answer);
        drop(events);
        let failed = self.settle(count, answers, permit).await;
        if let Some(error) = not_sent.or(failed) {
            return Err(Stuck::Send(error));
        }
        self.latency = Some(started.elapsed());
        self.events = (self.events * GROWTH).min(self.most);
        Ok(())
    }

    /// Stops at the first event that librdkafka does not take.
    fn hand_over(
        &self,
        events: &[SpooledEvent],
        answer: mpsc::UnboundedSender<(u64, Result<(), SendError>)>,
    ) -> Option<SendError> {
        let (name, spool, client) = (self.topic.name(), self.spool(), &self.producer.shared.client);
        for (number, event) in events.iter().enumerate() {
            let report = Box::new(Report::Replayed {
                topic: self.topic.clone(),
                seq: event.seq(),
                answer: answer.clone(),
            });
            let record = BaseRecord::with_opaque_to(name, report)
                .key(event.key.as_slice())
                .payload(event.value.as_slice())
                .headers(owned(&event.headers()));
            let Err(error) = client.send(record) else {
                self.topic.count_produced();
                continue;
            };
            let code = code_of(&error);
            if code == RDKafkaErrorCode::Fatal {
                client.rebuild();
            }
            // never handed over after all
            spool.set_missing(name, events[number..].iter().map(SpooledEvent::seq));
            let error = SendError::of(code);
            if !error.is_retriable() {
                self.put_away(event.seq(), &error);
                return None;
            }
            return Some(error);
        }
        None
    }

    /// Waits for all answers. Returns a failure that passes, if there was one.
    async fn settle(
        &mut self,
        count: usize,
        mut answers: mpsc::UnboundedReceiver<(u64, Result<(), SendError>)>,
        mut permit: Option<OwnedSemaphorePermit>,
    ) -> Option<SendError> {
        let (name, spool) = (self.topic.name(), self.spool());
        let wait = self.producer.shared.wait;
        let (mut failed, mut batch) = (None, Vec::new());
        loop {
            let received = answers.recv_many(&mut batch, MOST_EVENTS);
            match tokio::time::timeout(wait, received).await {
                Ok(0) => return failed, // all have been answered
                Ok(_) => {}
                Err(_) => {
                    drop(permit.take()); // Kafka went away: others need not wait for it
                    continue;
                }
            }
            let mut delivered = Vec::new();
            for (seq, result) in batch.drain(..) {
                match result {
                    Ok(()) => delivered.push(seq),
                    // said of a batch: each alone may pass
                    Err(error) if count > 1 && error.is_of_batch() => {
                        self.most = (count / 2).max(1);
                        spool.set_missing(name, [seq]);
                        failed = Some(error);
                    }
                    Err(error) if !error.is_retriable() => self.put_away(seq, &error),
                    // handed over, with no answer: looked for in the next step
                    Err(error) => failed = Some(error),
                }
            }
            spool.count("delivered", delivered.len());
            spool.remove(name, delivered);
        }
    }

    fn put_away(&self, seq: u64, error: &SendError) {
        warn!(topic = self.topic.name(), error = %error, "event put into quarantine");
        self.spool().quarantine(self.topic.name(), seq, &error.to_string());
    }
}
