//! Requests that a command leaves in the folder for the process that has it.

use std::{io, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{AckProducer, SpoolSettings};

/// Asks for the quarantine to be sent again; holds a topic's name, or nothing for all topics.
const REQUEST: &str = "replay-quarantine";
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Carries out what commands ask for, until `stop`. `settings` are those of the producer's spool;
/// without any it ends at once. Dropped, it leaves a request that it has not read for the next
/// look.
pub async fn watch_spool_requests(
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

/// Leaves a request for the process that has the folder: for one topic's events, or for all.
pub(super) fn leave_request(folder: &Path, topic: Option<&str>) -> io::Result<()> {
    // whole or not there: the other side reads whatever it finds
    let (path, draft) = (folder.join(REQUEST), folder.join(format!("{REQUEST}.new")));
    std::fs::write(&draft, topic.unwrap_or_default())?;
    std::fs::rename(&draft, &path)
}
