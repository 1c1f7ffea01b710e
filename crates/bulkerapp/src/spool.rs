//! The spool as this service and its operators use it: opening, measuring, and the commands about it.
//!
//! A folder belongs to one process. A command about a folder that a running process has leaves a request there, which
//! that process carries out; where nobody has it, the command does it itself.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use appbase::{config::Environment, lifecycle::Deadline};
use kafkabase::{
    AckMode, AckProducer, Admin, KafkaConfig, ProducerMetrics, Spool, SpoolMetrics, SpoolOpenError,
    SpoolSettings, SpoolUse, TopicMaker,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    config::Config,
    destinations::{Configuration, RedisSettings},
    metrics,
    topics::Topics,
};

/// The file that asks for the quarantine to be sent again; it holds a topic's name, or nothing for all topics.
const REQUEST: &str = "replay-quarantine";
/// How often it is looked for, and how often a command says what is left.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How Kafka's brokers see the commands.
const CLIENT_ID: &str = "bulkerapp-spool";
/// The longest an administrative call of a command may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a command is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send what is in the folder.
    Replay { folder: String },
    /// Send again what Kafka had refused for good; of all topics where none is named.
    Quarantine { folder: String, topic: Option<String> },
}

impl Command {
    /// What follows `spool` on the command line. `None`: not understood.
    pub fn parse(arguments: &[String]) -> Option<Command> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["replay", folder] => Some(Command::Replay { folder: (*folder).to_owned() }),
            ["quarantine", folder, topic @ ..] if topic.len() < 2 => Some(Command::Quarantine {
                folder: (*folder).to_owned(),
                topic: topic.first().map(|topic| (*topic).to_owned()),
            }),
            _ => None,
        }
    }
}

/// Opens the spool that the settings name.
pub fn open(config: &KafkaConfig, topics: Arc<dyn TopicMaker>) -> Result<Option<SpoolUse>> {
    let Some(settings) = config.spool() else {
        info!("no spool (SPOOL_DIR): events that kafka does not take in time are refused");
        return Ok(None);
    };
    let spool = Spool::open(&settings, counters())?;
    let status = spool.status();
    info!(
        folder = %settings.folder.display(),
        waiting = status.waiting,
        quarantined = status.quarantined,
        bytes = status.bytes,
        "spool opened"
    );
    Ok(Some(SpoolUse { spool, topics, lookup_wait: config.spool_lookup_wait_ms }))
}

fn counters() -> SpoolMetrics {
    SpoolMetrics {
        events: metrics::SPOOL_EVENTS.clone(),
        refused: metrics::SPOOL_REFUSED.clone(),
        damaged_bytes: metrics::SPOOL_DAMAGED.clone(),
    }
}

/// Keeps the gauges true.
pub fn measure(spool: &Spool) {
    let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    let status = spool.status();
    metrics::SPOOL_WAITING.set(gauge(status.waiting));
    metrics::SPOOL_QUARANTINED.set(gauge(status.quarantined));
    metrics::SPOOL_BYTES.set(i64::try_from(status.bytes).unwrap_or(i64::MAX));
    metrics::SPOOL_AGE.set(i64::try_from(status.oldest_age.as_secs()).unwrap_or(i64::MAX));
}

/// Writes what is only in memory, and says what stays for the next start.
pub async fn close(spool: &Spool, deadline: Deadline) {
    if !matches!(deadline.cut(spool.sync()).await, Some(Ok(()))) {
        warn!(
            "the spool forgets which of its last events kafka has; they are looked for at the next start"
        );
    }
    let waiting = spool.status().waiting;
    if waiting > 0 {
        info!(waiting, "events stay in the spool and are sent after the next start");
    }
}

/// Carries out requests of commands, for as long as the service runs.
pub async fn watch_requests(
    settings: Option<SpoolSettings>,
    producer: AckProducer,
    stop: CancellationToken,
) {
    let Some(settings) = settings else { return };
    let request = settings.folder.join(REQUEST);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Ok(text) = tokio::fs::read_to_string(&request).await else { continue };
        if let Err(error) = tokio::fs::remove_file(&request).await {
            error!(error = %error, "a request in the spool folder cannot be removed");
            continue;
        }
        let topic = Some(text.trim()).filter(|topic| !topic.is_empty());
        match producer.replay_quarantine(topic).await {
            Ok(topics) => info!(topics, "events of the quarantine are sent again"),
            Err(error) => error!(error = %error, "the quarantine cannot be released"),
        }
    }
}

/// Runs a command to its end.
pub async fn run(command: &Command, config: &Config, environment: &Environment) -> Result<()> {
    let (folder, release) = match command {
        Command::Replay { folder } => (folder, None),
        Command::Quarantine { folder, topic } => (folder, Some(topic.as_deref())),
    };
    let folder = Path::new(folder);
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    let settings = SpoolSettings {
        folder: folder.to_owned(),
        max_bytes: u64::from(config.kafka.spool_max_mb) << 20,
        topic_share: config.kafka.spool_topic_share,
    };
    let spool = match (Spool::open(&settings, counters()), release) {
        (Ok(spool), _) => spool,
        (Err(SpoolOpenError::Taken { .. }), Some(topic)) => return request(folder, topic),
        (Err(error), _) => return Err(error.into()),
    };
    let redis = RedisSettings::from(&config.events_log);
    let configuration = Configuration::start(&config.source, &redis, environment).await?;
    let destinations = configuration.destinations();
    let admin = Admin::new(&config.kafka.client_settings(CLIENT_ID), ADMIN_TIMEOUT)?;
    let topics = Arc::new(Topics::new(admin, &config.kafka, destinations));
    let stop = CancellationToken::new();
    let watching = {
        let (topics, stop) = (topics.clone(), stop.clone());
        tokio::spawn(async move { topics.watch(LOOK_EVERY, stop).await })
    };
    let counters = ProducerMetrics {
        messages: metrics::PRODUCER_MESSAGES.clone(),
        rebuilt: metrics::PRODUCER_REBUILDS.clone(),
    };
    let lookup_wait = config.kafka.spool_lookup_wait_ms;
    let using = SpoolUse { spool: spool.clone(), topics, lookup_wait };
    // whatever the service does: an event leaves the folder once Kafka acknowledged it
    let kafka = KafkaConfig { ack_mode: AckMode::Durable, ..config.kafka.clone() };
    let producer =
        AckProducer::new(&kafka, CLIENT_ID, counters, Some(using)).context("Kafka's settings")?;
    if let Some(topic) = release {
        producer.replay_quarantine(topic).await?;
    }
    until_sent(&spool).await;
    spool.sync().await?;
    stop.cancel();
    watching.await?;
    let left = spool.status().quarantined;
    if left > 0 {
        let reasons = spool.quarantined();
        bail!("Kafka refused {left} events for good; they stay in the folder: {reasons:?}");
    }
    println!("nothing is left in {}", folder.display());
    Ok(())
}

async fn until_sent(spool: &Spool) {
    let mut last = None;
    loop {
        let waiting = spool.status().waiting;
        if waiting == 0 {
            return;
        }
        if last.replace(waiting) != Some(waiting) {
            println!("{waiting} events are to be sent");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Leaves a request for the process that has the folder.
fn request(folder: &Path, topic: Option<&str>) -> Result<()> {
    // whole or not there: the other side reads whatever it finds
    let (path, draft) = (folder.join(REQUEST), folder.join(format!("{REQUEST}.new")));
    std::fs::write(&draft, topic.unwrap_or_default()).context("leave a request in the folder")?;
    std::fs::rename(&draft, &path).context("leave a request in the folder")?;
    println!("the process that uses {} sends them again", folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_a_folder_and_perhaps_a_topic() {
        let parse =
            |line: &str| Command::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let folder = || "/spool".to_owned();
        assert_eq!(parse("replay /spool"), Some(Command::Replay { folder: folder() }));
        let all = Command::Quarantine { folder: folder(), topic: None };
        assert_eq!(parse("quarantine /spool"), Some(all));
        let one = Command::Quarantine { folder: folder(), topic: Some("t".to_owned()) };
        assert_eq!(parse("quarantine /spool t"), Some(one));
        for line in ["", "replay", "replay a b", "quarantine", "quarantine a b c", "drop a"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
