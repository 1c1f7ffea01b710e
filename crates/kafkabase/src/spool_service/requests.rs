//! Requests that a command leaves in the folder for the process that has it.
//!
//! Each is a file of its own, whole or not there, so that one that was not read yet is not
//! overwritten by the next. The name says what is asked for and, by the time in it, the order.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{AckProducer, QuarantinedTopic, Spool, SpoolError, SpoolSettings};

/// Asks for the quarantine to be sent again; holds a topic's name, or nothing for all topics.
const RELEASE: &str = "replay-quarantine";
/// Asks for the quarantine to be forgotten; holds the reason, and in a second line a topic's name.
const DISCARD: &str = "discard-quarantine";
/// The end of a file's name that is still written.
const DRAFT: &str = ".new";
/// How often requests are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a process is asked for that has the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Release { topic: Option<String> },
    Discard { topic: Option<String>, reason: String },
}

impl Request {
    /// Leaves it in the folder.
    pub(super) fn leave(&self, folder: &Path) -> io::Result<()> {
        let (kind, text) = match self {
            Request::Release { topic } => (RELEASE, topic.clone().unwrap_or_default()),
            Request::Discard { topic, reason } => {
                let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
                (DISCARD, format!("{reason}\n{}", topic.as_deref().unwrap_or_default()))
            }
        };
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("{kind}.{at:020}");
        let draft = folder.join(format!("{name}{DRAFT}"));
        std::fs::write(&draft, text)?;
        std::fs::rename(&draft, folder.join(name))
    }

    /// Takes all that are there, oldest first.
    pub(super) async fn take_all(folder: &Path) -> Vec<Request> {
        let mut names = Vec::new();
        let Ok(mut entries) = tokio::fs::read_dir(folder).await else { return Vec::new() };
        while let Ok(Some(entry)) = entries.next_entry().await {
            names.extend(entry.file_name().into_string().ok());
        }
        // by the time in the name; one of an older release has none
        names.sort_by_key(|name| name.split_once('.').map(|(_, at)| at.to_owned()));
        let mut requests = Vec::new();
        for name in names {
            let kind = name.split_once('.').map_or(name.as_str(), |(kind, _)| kind);
            if ![RELEASE, DISCARD].contains(&kind) || name.ends_with(DRAFT) {
                continue;
            }
            let path = folder.join(&name);
            let Ok(text) = tokio::fs::read_to_string(&path).await else { continue };
            if let Err(error) = tokio::fs::remove_file(&path).await {
                error!(error = %error, "a request in the spool folder cannot be removed");
                continue;
            }
            requests.push(Request::parse(kind, &text));
        }
        requests
    }

    fn parse(kind: &str, text: &str) -> Request {
        let topic = |text: &str| Some(text.trim().to_owned()).filter(|topic| !topic.is_empty());
        if kind == RELEASE {
            return Request::Release { topic: topic(text) };
        }
        let (reason, rest) = text.split_once('\n').unwrap_or((text, ""));
        Request::Discard { topic: topic(rest), reason: reason.to_owned() }
    }
}

impl Spool {
    /// As [`Spool::discard`], with a line in the log for each topic.
    pub(super) async fn discard_on_word(
        &self,
        topic: Option<&str>,
        reason: &str,
    ) -> Result<Vec<QuarantinedTopic>, SpoolError> {
        let gone = self.discard(topic).await?;
        for QuarantinedTopic { topic, reasons } in &gone {
            let (events, refused) = (reasons.values().sum::<usize>(), format!("{reasons:?}"));
            warn!(topic, events, refused, reason, "events of the quarantine were discarded");
        }
        Ok(gone)
    }
}

/// Carries out what commands ask for, until `stop`. `settings` are those of the producer's spool;
/// without any it ends at once. Dropped, it leaves a request that it has not read for the next
/// look.
pub async fn watch_spool_requests(
    settings: Option<SpoolSettings>,
    producer: AckProducer,
    stop: CancellationToken,
) {
    let Some(settings) = settings else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        for request in Request::take_all(&settings.folder).await {
            carry_out(&request, &producer).await;
        }
    }
}

async fn carry_out(request: &Request, producer: &AckProducer) {
    match request {
        Request::Release { topic } => match producer.replay_quarantine(topic.as_deref()).await {
            Ok(topics) => info!(topics, "events of the quarantine are sent again"),
            Err(error) => error!(error = %error, "the quarantine cannot be released"),
        },
        Request::Discard { topic, reason } => {
            let Some(spool) = producer.spool() else { return };
            if let Err(error) = spool.discard_on_word(topic.as_deref(), reason).await {
                error!(error = %error, "the quarantine cannot be discarded");
            }
        }
    }
}
