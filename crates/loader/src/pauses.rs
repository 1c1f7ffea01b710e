//! Destinations that an operator paused: nothing is loaded into them, while their events go on
//! being taken.
//!
//! A pause is a record of a small compacted topic, by destination; a tombstone ends it. It is kept
//! in Kafka and not beside the offsets in the destination's database because that database is what
//! pauses are for: it may be away, or without the right to make a table, and a backup that is
//! restored into it would bring back the time before the pause in the middle of the work. Kafka has
//! to be there for anything to be loaded, all instances read the same topic, and the topic is made
//! by the first pause only.
//!
//! Invariant: no instance loads before it has read the topic once, so a restart ends no pause.
//! Other instances apply it within the period of their looks at the cluster; a batch in hand is
//! finished.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use appbase::telemetry::chain;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use kafkabase::{
    Admin, AdminError, ClientSettings, ClientSetupError, ConfirmedProducer, Fetcher,
    FetcherSettings, OpenError, RangeError, RangeItem, RangeReader, Record, TopicSettings,
    TopicView, Unconfirmed,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{observe::metrics, topic::PARTITION};

/// How long one wait for a record lasts.
const POLL: Duration = Duration::from_millis(100);
/// How long no record may arrive although there are some.
const STALL_AFTER: Duration = Duration::from_secs(20);

/// Paused destinations, with the time since when.
pub type PausedDestinations = BTreeMap<String, Timestamp>;

/// Where pauses are kept, and who asks.
pub struct PausesConfig {
    /// The topic, as the one who looks at the cluster looks for it.
    pub topic: String,
    /// For making it.
    pub settings: TopicSettings,
    /// Brokers and security.
    pub client: ClientSettings,
    /// Makes a producer for one pause.
    pub producer: Box<dyn Fn() -> Result<ConfirmedProducer, ClientSetupError> + Send + Sync>,
}

/// The paused destinations, as this instance knows them.
pub struct Pauses {
    config: PausesConfig,
    admin: Admin,
    topics: TopicView,
    current: ArcSwap<PausedDestinations>,
    /// The first offset that was not read. Held while it is read on.
    next: Mutex<Option<i64>>,
    /// Whether the topic was read, or is known not to be there.
    known: watch::Sender<bool>,
}

/// Why a pause, or its end, is not known to be kept.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// Kafka did not make it, or did not say how long it is.
    #[error("the topic of pauses cannot be made or asked for")]
    Admin(#[from] AdminError),
    /// Settings that no client can be made of.
    #[error("no client for the topic of pauses")]
    Client(#[from] ClientSetupError),
    /// Kafka did not acknowledge the record in time; it may come all the same.
    #[error("the pause may not be kept")]
    Unconfirmed(#[from] Unconfirmed),
    /// Kafka did not hand the topic out; the pause may be kept, and is not known here yet.
    #[error("the topic of pauses cannot be opened")]
    Open(#[from] OpenError),
    /// The same: it was not read to its end.
    #[error("the topic of pauses cannot be read")]
    Range(#[from] RangeError),
    /// The same: what was read is not understood.
    #[error("the topic of pauses cannot be read: {0}")]
    Read(String),
}

/// The value of a record.
#[derive(Serialize, Deserialize)]
struct Pause {
    since: String,
}

impl Pauses {
    /// Knows nothing yet: [`Pauses::watch`] reads.
    pub fn new(config: PausesConfig, admin: Admin, topics: TopicView) -> Pauses {
        Pauses {
            config,
            admin,
            topics,
            current: ArcSwap::default(),
            next: Mutex::default(),
            known: watch::Sender::new(false),
        }
    }

    /// All of them. The same pointer as long as nothing changes.
    pub fn current(&self) -> Arc<PausedDestinations> {
        self.current.load_full()
    }

    /// Whether nothing is to be loaded into this destination, as far as this instance knows.
    pub fn is_paused(&self, destination_id: &str) -> bool {
        self.current.load().contains_key(destination_id)
    }

    /// Pauses a destination; answers since when it is. It is kept when this returns, and known
    /// here.
    /// Dropped half way, it may be kept, and becomes known with the next look.
    pub async fn pause(&self, destination_id: &str) -> Result<Timestamp, PauseError> {
        if let Some(since) = self.current.load().get(destination_id) {
            return Ok(*since);
        }
        self.admin.create_topic(&self.config.topic, &self.config.settings).await?;
        let since = Timestamp::now();
        let value =
            serde_json::to_vec(&Pause { since: since.to_string() }).map_err(|e| read_error(&e))?;
        self.keep(destination_id, Some(value)).await?;
        Ok(since)
    }

    /// Ends a pause. `false`: there was none. Dropped half way, it may be ended all the same, and
    /// becomes known with the next look.
    pub async fn resume(&self, destination_id: &str) -> Result<bool, PauseError> {
        if !self.is_paused(destination_id) {
            return Ok(false);
        }
        self.keep(destination_id, None).await?;
        Ok(true)
    }

    /// Looks for changes that other instances made, again and again, until `stop`. Dropped, it leaves
    /// what it last knew.
    pub async fn watch(&self, every: Duration, stop: CancellationToken) {
        loop {
            let snapshot = self.topics.load();
            // the first look at the cluster is waited for by all loads
            let pause = if snapshot.at.is_some() { every } else { every.min(POLL) };
            if snapshot.has_pauses {
                if let Err(error) = self.read_new().await {
                    let error = chain(&error);
                    warn!(error = %error, "pauses of destinations not known; the last ones count");
                }
            } else if snapshot.at.is_some() {
                self.known.send_replace(true); // there was never a pause
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether they were read once; nothing is loaded before.
    pub fn is_known(&self) -> bool {
        *self.known.borrow()
    }

    /// Returns once the pauses are known.
    pub(crate) async fn known(&self) {
        let _ = self.known.subscribe().wait_for(|known| *known).await; // its sender is ours
    }

    async fn keep(&self, destination_id: &str, value: Option<Vec<u8>>) -> Result<(), PauseError> {
        let producer = (self.config.producer)()?;
        let key = Some(destination_id.as_bytes().to_vec());
        let record = Record { topic: self.config.topic.clone(), key, value, ..Record::default() };
        for result in producer.send_all(&[record]).await {
            result?;
        }
        self.read_new().await
    }

    /// Reads what was appended since the last time.
    async fn read_new(&self) -> Result<(), PauseError> {
        let mut next = self.next.lock().await;
        let PausesConfig { client, topic, .. } = &self.config;
        let known = next.map(|next| (next, (*self.current()).clone()));
        let (end, paused) = read_on(&self.admin, client, topic, known).await?;
        *next = Some(end);
        self.take(paused);
        self.known.send_replace(true);
        Ok(())
    }

    fn take(&self, paused: PausedDestinations) {
        let before = self.current();
        if *before == paused {
            return;
        }
        for id in before.keys().filter(|id| !paused.contains_key(*id)) {
            metrics::set_paused(id, false);
            info!(destination_id = id, "destination resumed");
        }
        for id in paused.keys().filter(|id| !before.contains_key(*id)) {
            metrics::set_paused(id, true);
            warn!(destination_id = id, "destination paused: nothing is loaded into it");
        }
        self.current.store(Arc::new(paused));
    }
}

/// The paused destinations, for one who asks once. The topic has to be there.
pub async fn paused_destinations(
    admin: &Admin,
    client: &ClientSettings,
    topic: &str,
) -> Result<PausedDestinations, PauseError> {
    Ok(read_on(admin, client, topic, None).await?.1)
}

/// Reads from what is known, an offset and what holds up to it, to the end.
async fn read_on(
    admin: &Admin,
    client: &ClientSettings,
    topic: &str,
    known: Option<(i64, PausedDestinations)>,
) -> Result<(i64, PausedDestinations), PauseError> {
    let group = admin.topic_group(topic, PARTITION);
    let end = group.end().await?;
    let low = group.low().await?;
    // an end before what was read: the topic was made anew
    let known = known.filter(|(next, _)| low <= *next && *next <= end);
    let (from, mut paused) = known.unwrap_or((low, PausedDestinations::default()));
    let (client, topic) = (client.clone(), topic.to_owned());
    let read = tokio::task::spawn_blocking(move || read(&client, &topic, from, end));
    for (destination_id, pause) in read.await.map_err(|e| read_error(&e))?? {
        match pause {
            Some(since) => paused.insert(destination_id, since),
            None => paused.remove(&destination_id),
        };
    }
    Ok((end, paused))
}

/// A destination, and since when it is paused.
type Change = (String, Option<Timestamp>);

/// The records of `from..end`, in order. A client for the time of reading: it is hardly ever
/// needed.
fn read(
    client: &ClientSettings,
    topic: &str,
    from: i64,
    end: i64,
) -> Result<Vec<Change>, PauseError> {
    let mut changes = Vec::new();
    if from >= end {
        return Ok(changes);
    }
    let fetcher = Arc::new(Fetcher::new(client, &FetcherSettings::default())?);
    let reader = fetcher.read(topic, PARTITION, from)?;
    let mut range = RangeReader::new(reader, end, STALL_AFTER);
    loop {
        match range.next(POLL)? {
            RangeItem::Message(message) => {
                let key = message.key().map(String::from_utf8_lossy).unwrap_or_default();
                // what is no pause ends one: an unreadable record must not hold a destination for
                // ever
                let pause: Option<Pause> = serde_json::from_slice(message.payload()).ok();
                let since = pause.and_then(|pause| pause.since.parse().ok());
                changes.push((key.into_owned(), since));
            }
            RangeItem::Waiting => {}
            RangeItem::End => return Ok(changes),
        }
    }
}

fn read_error(error: &impl ToString) -> PauseError {
    PauseError::Read(error.to_string())
}
