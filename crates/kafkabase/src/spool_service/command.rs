//! What an operator has done about a spool's folder: sending what is in it, or in its quarantine,
//! or forgetting what is in its quarantine.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::requests::Request;
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
    /// Forget what Kafka had refused for good.
    Discard {
        /// The spool's folder.
        folder: String,
        /// Why, in the operator's words, for the log.
        reason: String,
        /// The topic; `None`: all topics.
        topic: Option<String>,
    },
}

impl SpoolCommand {
    /// What may follow `spool` on the command line.
    pub const USAGE: &str =
        "replay FOLDER | quarantine FOLDER [TOPIC] | quarantine discard FOLDER REASON [TOPIC]";

    /// From what follows `spool` on the command line: [`SpoolCommand::USAGE`]. `None`: not
    /// understood. A folder that is called `discard` has to be named `./discard`.
    pub fn parse(arguments: &[String]) -> Option<SpoolCommand> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let owned = |word: &str| word.to_owned();
        let one = |topic: &[&str]| match topic {
            [] => Some(None),
            [topic] => Some(Some(owned(topic))),
            _ => None,
        };
        match words.as_slice() {
            ["replay", folder] => Some(SpoolCommand::Replay { folder: owned(folder) }),
            ["quarantine", "discard", folder, reason, topic @ ..] if !reason.trim().is_empty() => {
                let (folder, reason) = (owned(folder), owned(reason));
                Some(SpoolCommand::Discard { folder, reason, topic: one(topic)? })
            }
            ["quarantine", "discard", ..] => None,
            ["quarantine", folder, topic @ ..] => {
                Some(SpoolCommand::Quarantine { folder: owned(folder), topic: one(topic)? })
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
        let folder = self.folder();
        if !folder.is_dir() {
            return Err(SpoolCommandError::NoFolder { folder: folder.to_owned() });
        }
        let settings = SpoolSettings {
            folder: folder.to_owned(),
            max_bytes: u64::from(kafka.spool_max_mb) << 20,
            topic_share: kafka.spool_topic_share,
        };
        match (Spool::open(&settings, metrics), self.request()) {
            (Ok(spool), Some(Request::Discard { topic, reason })) => {
                Ok(SpoolBegun::Discard(SpoolDiscard { spool, topic, reason }))
            }
            (Ok(spool), Some(Request::Release { topic })) => {
                Ok(SpoolBegun::Here(SpoolWork { spool, release: Some(topic) }))
            }
            (Ok(spool), None) => Ok(SpoolBegun::Here(SpoolWork { spool, release: None })),
            (Err(SpoolOpenError::Taken { .. }), Some(request)) => {
                request.leave(folder).map_err(|source| SpoolCommandError::Request { source })?;
                Ok(SpoolBegun::Requested)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// The spool's folder.
    pub fn folder(&self) -> &Path {
        let (SpoolCommand::Replay { folder }
        | SpoolCommand::Quarantine { folder, .. }
        | SpoolCommand::Discard { folder, .. }) = self;
        Path::new(folder)
    }

    /// What a process that has the folder is asked for; `None`: it does that by itself.
    fn request(&self) -> Option<Request> {
        match self.clone() {
            SpoolCommand::Replay { .. } => None,
            SpoolCommand::Quarantine { topic, .. } => Some(Request::Release { topic }),
            SpoolCommand::Discard { topic, reason, .. } => Some(Request::Discard { topic, reason }),
        }
    }
}

/// Which process does what a command asks for.
pub enum SpoolBegun {
    /// A running process has the folder, and found or finds a request there.
    Requested,
    /// This one: it has the folder now, and sends what is in it.
    Here(SpoolWork),
    /// This one: it has the folder now, and forgets what is in its quarantine.
    Discard(SpoolDiscard),
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

/// A folder that a command has, whose quarantine is to be forgotten. Neither Kafka nor a
/// configuration is needed for that.
pub struct SpoolDiscard {
    spool: Spool,
    topic: Option<String>,
    reason: String,
}

impl SpoolDiscard {
    /// Forgets the events, for good, and returns what they were. Dropped, it may have forgotten
    /// some of them.
    pub async fn run(self) -> Result<Vec<QuarantinedTopic>, SpoolCommandError> {
        Ok(self.spool.discard_on_word(self.topic.as_deref(), &self.reason).await?)
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
    use crate::{
        config::samples::kafka_config,
        spool::{EventParts, unregistered_metrics},
    };

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
        let discard = |topic| {
            let (folder, reason) = (folder(), "tests".to_owned());
            Some(SpoolCommand::Discard { folder, reason, topic })
        };
        assert_eq!(parse("quarantine discard /spool tests"), discard(None));
        assert_eq!(parse("quarantine discard /spool tests t"), discard(Some("t".to_owned())));
        for line in [
            "",
            "replay",
            "replay a b",
            "quarantine",
            "quarantine a b c",
            "quarantine discard",
            "quarantine discard /spool",
            "quarantine discard /spool tests t u",
            "drop a",
        ] {
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
        let quarantine =
            SpoolCommand::Quarantine { folder: name.clone(), topic: Some("t".to_owned()) };
        assert!(matches!(begin(quarantine), Ok(SpoolBegun::Requested)));
        let requests = || Request::take_all(folder.path());
        let release = Request::Release { topic: Some("t".to_owned()) };
        assert_eq!(requests().await, [release]);
        // two words of an operator are two requests
        for (reason, topic) in [("one\nline", None), ("tests", Some("t".to_owned()))] {
            let (folder, reason) = (name.clone(), reason.to_owned());
            let discard = SpoolCommand::Discard { folder, reason, topic };
            assert!(matches!(begin(discard), Ok(SpoolBegun::Requested)));
        }
        let discard = |reason: &str, topic: Option<&str>| Request::Discard {
            topic: topic.map(str::to_owned),
            reason: reason.to_owned(),
        };
        assert_eq!(requests().await, [discard("one line", None), discard("tests", Some("t"))]);
        assert_eq!(requests().await, []);
    }

    #[tokio::test]
    async fn what_is_discarded_is_gone_and_leaves_what_is_to_be_sent() {
        // given a folder with two topics, whose first events are in quarantine
        let folder = tempfile::tempdir().unwrap();
        let (name, kafka) = (folder.path().to_str().unwrap().to_owned(), kafka_config(&[]));
        let begin =
            |command: &SpoolCommand| match command.begin(&kafka, unregistered_metrics()).unwrap() {
                SpoolBegun::Here(SpoolWork { spool, .. })
                | SpoolBegun::Discard(SpoolDiscard { spool, .. }) => spool,
                SpoolBegun::Requested => panic!("another process has it"),
            };
        let spool = begin(&SpoolCommand::Replay { folder: name.clone() });
        for topic in ["a", "b"] {
            for key in [b"1", b"2"] {
                let event = EventParts { topic, key, headers: &[], value: b"v" };
                let (done, written) = tokio::sync::oneshot::channel();
                let seq = spool.append(event, None, Box::new(|r| done.send(r).unwrap())).unwrap();
                written.await.unwrap().unwrap();
                if key == b"1" {
                    spool.quarantine(topic, seq, "refused");
                }
            }
        }
        spool.sync().await.unwrap();
        drop(spool);
        // when one topic's are discarded, then the other's and all that waits are still there
        let (reason, topic) = ("tests".to_owned(), Some("a".to_owned()));
        let command = SpoolCommand::Discard { folder: name.clone(), reason, topic };
        let Ok(SpoolBegun::Discard(discard)) = command.begin(&kafka, unregistered_metrics()) else {
            panic!("not to be done here");
        };
        let gone = discard.run().await.unwrap();
        let of = |topic: &str| QuarantinedTopic {
            topic: topic.to_owned(),
            reasons: [("refused".to_owned(), 1)].into(),
        };
        assert_eq!(gone, [of("a")]);
        let spool = begin(&SpoolCommand::Replay { folder: name });
        assert_eq!((spool.quarantined(), spool.status().waiting), (vec![of("b")], 2));
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_named() {
        let command = SpoolCommand::Replay { folder: "/nowhere".to_owned() };
        let error = command.begin(&kafka_config(&[]), unregistered_metrics()).err().unwrap();
        assert_eq!(error.to_string(), "/nowhere is not a folder");
    }
}
