//! Keeps the destinations as their source has them, from the start to the end of the process.
//!
//! Invariant: a source that is away changes nothing. At the start the newest copy stands in for it, later what it
//! said last stays in force; either way operators see how old that is.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use appbase::config::Environment;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    copies::{Confirmed, Copies},
    document::Document,
    registry::{Changes, Destinations},
    settings::{RedisSettings, SourceConfig},
    sources::{ReadError, Source, SourceError},
};
use crate::{config::PREFIX, metrics};

/// Why the service has no destinations to start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{PREFIX}_CONFIG_SOURCE: the {name} source gives no destinations: {reason}; {copies}")]
    Unreadable { name: &'static str, reason: String, copies: &'static str },
}

/// Where the destinations in force came from.
#[derive(Debug, Clone)]
pub struct ConfigurationStatus {
    /// `environment`, `file`, `http`, `redis` or `postgres`.
    pub source: &'static str,
    /// The place of the copy that stands in for the source since the start.
    pub copy: Option<&'static str>,
    /// When the source said so for the last time; `None` for a source that cannot change.
    pub confirmed_at: Option<SystemTime>,
    /// Why the source cannot be read at present. Holds no secret.
    pub error: Option<String>,
}

impl ConfigurationStatus {
    /// How old what is in force may be.
    pub fn age(&self) -> Option<Duration> {
        let at = self.confirmed_at?;
        Some(SystemTime::now().duration_since(at).unwrap_or_default())
    }
}

/// The source at work.
pub struct Configuration {
    source: Source,
    copies: Copies,
    destinations: Arc<Destinations>,
    status: watch::Sender<ConfigurationStatus>,
    /// What copies are made of.
    confirmed: watch::Sender<Option<Confirmed>>,
}

impl Configuration {
    /// Reads the source once; the newest copy stands in where that fails.
    pub async fn start(
        config: &SourceConfig,
        redis: &RedisSettings,
        environment: &Environment,
    ) -> Result<Configuration, ConfigurationError> {
        let source = Source::new(config, redis, environment)?;
        let copies = Copies::new(config, redis, &source);
        let status = ConfigurationStatus {
            source: source.name(),
            copy: None,
            confirmed_at: None,
            error: None,
        };
        let mut configuration = Configuration {
            source,
            copies,
            destinations: Arc::default(),
            status: watch::Sender::new(status),
            confirmed: watch::Sender::new(None),
        };
        match configuration.source.read().await {
            Ok(document) => configuration.take(document),
            Err(error) => configuration.start_from_copy(error).await?,
        }
        info!(
            count = configuration.destinations.snapshot().iter().count(),
            source = configuration.source.name(),
            "destinations configured"
        );
        Ok(configuration)
    }

    pub fn destinations(&self) -> Arc<Destinations> {
        self.destinations.clone()
    }

    pub fn status(&self) -> watch::Receiver<ConfigurationStatus> {
        self.status.subscribe()
    }

    /// Follows the source until `stop`.
    pub async fn follow(mut self, stop: CancellationToken) {
        let copies = std::mem::take(&mut self.copies);
        let keeping = copies.run(self.confirmed.subscribe(), stop.clone());
        tokio::join!(self.follow_source(stop), keeping);
    }

    async fn follow_source(&mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.source.changed() => {}
            }
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = self.source.read() => read,
            };
            match read {
                Ok(document) => self.take(document),
                Err(error) => self.failed(&error),
            }
        }
    }

    /// The source answered; `None`: nothing new.
    fn take(&mut self, document: Option<Document>) {
        let now = SystemTime::now();
        let is_known = |document: &Document| {
            self.confirmed.borrow().as_ref().is_some_and(|known| *known.document == *document)
        };
        if let Some(document) = document.filter(|document| !is_known(document)) {
            let Changes { added, changed, removed } =
                self.destinations.apply(&self.source.complete(&document));
            if added + changed + removed > 0 {
                info!(added, changed, removed, "configuration applied");
            }
            self.confirmed.send_replace(Some(Confirmed { document: Arc::new(document), at: now }));
        } else {
            self.confirmed.send_modify(|confirmed| {
                if let Some(confirmed) = confirmed {
                    confirmed.at = now;
                }
            });
        }
        let is_live = self.source.is_live();
        self.status.send_modify(|status| {
            if status.error.take().is_some() {
                info!(source = status.source, "configuration can be read again");
            }
            status.copy = None;
            status.confirmed_at = is_live.then_some(now);
        });
    }

    fn failed(&mut self, error: &ReadError) {
        metrics::CONFIGURATION_ERRORS.with_label_values(&[&error.label]).inc();
        let reason = error.to_string();
        self.status.send_modify(|status| {
            if status.error.as_ref() != Some(&reason) {
                let age_seconds = status.age().map(|age| age.as_secs());
                warn!(
                    source = status.source,
                    error = reason,
                    age_seconds,
                    "configuration cannot be read; what was read last counts"
                );
                status.error = Some(reason);
            }
        });
    }

    async fn start_from_copy(&mut self, error: ReadError) -> Result<(), ConfigurationError> {
        metrics::CONFIGURATION_ERRORS.with_label_values(&[&error.label]).inc();
        let name = self.source.name();
        let reason = error.to_string();
        let Some(copy) = self.copies.newest().await else {
            if !error.is_missing {
                let copies = match self.copies.is_none() {
                    true => "no copy of it is kept",
                    false => "there is no usable copy of it",
                };
                return Err(ConfigurationError::Unreadable { name, reason, copies });
            }
            warn!(source = name, error = reason, "no destinations yet");
            self.destinations.apply(&self.source.complete(&Document::default()));
            self.status.send_modify(|status| status.error = Some(reason));
            return Ok(());
        };
        self.destinations.apply(&self.source.complete(&copy.document));
        self.status.send_modify(|status| {
            status.copy = Some(copy.place);
            status.confirmed_at = Some(copy.confirmed_at);
            status.error = Some(reason);
            error!(
                source = name,
                error = status.error,
                copy = copy.place,
                age_seconds = status.age().map(|age| age.as_secs()),
                "configuration cannot be read; the last known copy of it counts"
            );
        });
        Ok(())
    }
}
