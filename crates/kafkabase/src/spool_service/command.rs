//! What an operator has done about a spool's folder: sending what is in it, or in its quarantine.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::requests::leave_request;
use crate::{
    AckMode, AckProducer, ClientSetupError, KafkaConfig, ProducerMetrics, QuarantinedTopic, Spool,
    SpoolError, SpoolMetrics, SpoolOpenError, SpoolSettings, SpoolUse, TopicMaker,
};

/// How often it is looked at what is left.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a command is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolCommand {
    /// Send what is in the folder.
    Replay {
        /// The spool's folder.
        folder: String,
    },
    /// Send again what Kafka had refused for good.
    Quarantine {
        /// The spool's folder.
        folder: String,
        /// The topic; `None`: all topics.
        topic: Option<String>,
    },
}

impl SpoolCommand {
    /// From what follows `spool` on the command line: `replay FOLDER` or
    /// `quarantine FOLDER [TOPIC]`. `None`: not understood.
    pub fn parse(arguments: &[String]) -> Option<SpoolCommand> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["replay", folder] => Some(SpoolCommand::Replay { folder: (*folder).to_owned() }),
            ["quarantine", folder, topic @ ..] if topic.len() < 2 => {
                Some(SpoolCommand::Quarantine {
                    folder: (*folder).to_owned(),
                    topic: topic.first().map(|topic| (*topic).to_owned()),
                })
            }
            _ => None,
        }
    }

    /// Takes the folder, or leaves a request with the process that has it. That is decided before
    /// anything else is started: a request needs neither Kafka nor a configuration.
    pub fn begin(
        &self,
        kafka: &KafkaConfig,
        metrics: SpoolMetrics,
    ) -> Result<SpoolBegun, SpoolCommandError> {
        let (folder, release) = match self {
            SpoolCommand::Replay { folder } => (folder, None),
            SpoolCommand::Quarantine { folder, topic } => (folder, Some(topic.clone())),
        };
        let folder = Path::new(folder);
        if !folder.is_dir() {
            return Err(SpoolCommandError::NoFolder { folder: folder.to_owned() });
        }
        let settings = SpoolSettings {
            folder: folder.to_owned(),
            max_bytes: u64::from(kafka.spool_max_mb) << 20,
            topic_share: kafka.spool_topic_share,
        };
        match (Spool::open(&settings, metrics), release) {
            (Ok(spool), release) => Ok(SpoolBegun::Here(SpoolWork { spool, release })),
            (Err(SpoolOpenError::Taken { .. }), Some(topic)) => {
                leave_request(folder, topic.as_deref())
                    .map_err(|source| SpoolCommandError::Request { source })?;
                Ok(SpoolBegun::Requested)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// The spool's folder.
    pub fn folder(&self) -> &Path {
        let (SpoolCommand::Replay { folder } | SpoolCommand::Quarantine { folder, .. }) = self;
        Path::new(folder)
    }
}

/// Which process does what a command asks for.
pub enum SpoolBegun {
    /// A running process has the folder, and found or finds a request there.
    Requested,
    /// This one: it has the folder now.
    Here(SpoolWork),
}

/// Why a command was not carried out. What is in the folder stays there.
#[derive(Debug, thiserror::Error)]
pub enum SpoolCommandError {
    /// There is no such folder.
    #[error("{} is not a folder", folder.display())]
    NoFolder {
        /// As the operator named it.
        folder: PathBuf,
    },
    /// The folder is no spool, or another process has it and would not replay it on request.
    #[error(transparent)]
    Open(#[from] SpoolOpenError),
    /// The running process was not asked.
    #[error("leave a request in the folder")]
    Request {
        /// What the disk said.
        source: io::Error,
    },
    /// The settings make no producer.
    #[error("Kafka's settings")]
    Client(#[from] ClientSetupError),
    /// The disk failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// A folder that a command has, and what is to be done with it.
pub struct SpoolWork {
    spool: Spool,
    /// Topics whose quarantine is released first: `Some(None)` is all of them, `None` none.
    release: Option<Option<String>>,
}

impl SpoolWork {
    /// Sends all that waits and returns the topics whose events Kafka refused for good, which stay
    /// in the folder. `client_id` is how the brokers see the command; `tell` hears how many events
    /// are left whenever that changed. Goes on for as long as Kafka is away. Dropped, it leaves in
    /// the folder what Kafka is not known to have.
    pub async fn run(
        self,
        kafka: &KafkaConfig,
        client_id: &str,
        topics: Arc<dyn TopicMaker>,
        metrics: ProducerMetrics,
        tell: impl FnMut(usize),
    ) -> Result<Vec<QuarantinedTopic>, SpoolCommandError> {
        let SpoolWork { spool, release } = self;
        let lookup_wait = kafka.spool_lookup_wait_ms;
        let using = SpoolUse { spool: spool.clone(), topics, lookup_wait };
        // whatever the service does: an event leaves the folder once Kafka acknowledged it
        let kafka = KafkaConfig { ack_mode: AckMode::Durable, ..kafka.clone() };
        let producer = AckProducer::new(&kafka, client_id, metrics, Some(using))?;
        if let Some(topic) = release {
            producer.replay_quarantine(topic.as_deref()).await?;
        }
        until_sent(&spool, tell).await;
        spool.sync().await?;
        Ok(spool.quarantined())
    }
}

async fn until_sent(spool: &Spool, mut tell: impl FnMut(usize)) {
    let mut last = None;
    loop {
        let waiting = spool.status().waiting;
        if waiting == 0 {
            return;
        }
        if last.replace(waiting) != Some(waiting) {
            tell(waiting);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::samples::kafka_config, spool::unregistered_metrics};

    #[test]
    fn commands_name_a_folder_and_perhaps_a_topic() {
        let parse = |line: &str| {
            SpoolCommand::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        };
        let folder = || "/spool".to_owned();
        assert_eq!(parse("replay /spool"), Some(SpoolCommand::Replay { folder: folder() }));
        let all = SpoolCommand::Quarantine { folder: folder(), topic: None };
        assert_eq!(parse("quarantine /spool"), Some(all));
        let one = SpoolCommand::Quarantine { folder: folder(), topic: Some("t".to_owned()) };
        assert_eq!(parse("quarantine /spool t"), Some(one));
        for line in ["", "replay", "replay a b", "quarantine", "quarantine a b c", "drop a"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_a_process_has_gets_a_request_for_its_quarantine_only() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap().to_owned();
        let kafka = kafka_config(&[]);
        let begin = |command: SpoolCommand| command.begin(&kafka, unregistered_metrics());
        let replay = SpoolCommand::Replay { folder: name.clone() };
        let Ok(SpoolBegun::Here(_held)) = begin(replay.clone()) else { panic!("not taken") };
        let again = begin(replay);
        assert!(matches!(again, Err(SpoolCommandError::Open(SpoolOpenError::Taken { .. }))));
        let quarantine = SpoolCommand::Quarantine { folder: name, topic: Some("t".to_owned()) };
        assert!(matches!(begin(quarantine), Ok(SpoolBegun::Requested)));
        let request = std::fs::read_to_string(folder.path().join("replay-quarantine")).unwrap();
        assert_eq!(request, "t");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_named() {
        let command = SpoolCommand::Replay { folder: "/nowhere".to_owned() };
        let error = command.begin(&kafka_config(&[]), unregistered_metrics()).err().unwrap();
        assert_eq!(error.to_string(), "/nowhere is not a folder");
    }
}
