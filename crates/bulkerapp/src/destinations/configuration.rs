//! Keeps the destinations as their source has them, from the start to the end of the process.
//!
//! The repository (`appbase::repository`) reads the source, follows it and keeps copies; here each
//! document of it is put in force, together with the destinations of the installation itself.

use std::sync::Arc;

use appbase::{
    config::Environment,
    repository::{NoCopy, Repository, RepositoryStatus, Source, StartError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    cache,
    registry::{Changes, Destinations},
    settings::{RedisSettings, SourceConfig},
    sources::{DestinationSource, SourceError, internal},
};
use crate::{config::PREFIX, metrics};

/// Why the service has no destinations to start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The settings name no source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source cannot be read, and no copy stands in for it.
    #[error("{PREFIX}_CONFIG_SOURCE: the {name} source gives no destinations: {reason}; {copies}")]
    Unreadable {
        /// What operators call the source.
        name: &'static str,
        /// Why it cannot be read. Holds no secret.
        reason: String,
        /// Why no copy stands in.
        copies: NoCopy,
    },
}

impl From<StartError> for ConfigurationError {
    fn from(StartError { source_name, reason, copies }: StartError) -> ConfigurationError {
        ConfigurationError::Unreadable { name: source_name, reason, copies }
    }
}

/// The source at work.
pub struct Configuration {
    repository: Repository<DestinationSource>,
    destinations: Arc<Destinations>,
}

impl Configuration {
    /// Reads the source once; the newest copy stands in where that fails. A dropped call leaves
    /// nothing behind.
    pub async fn start(
        config: &SourceConfig,
        redis: &RedisSettings,
        environment: &Environment,
    ) -> Result<Configuration, ConfigurationError> {
        let source = DestinationSource::new(config, redis, environment)?;
        let source_name = source.name();
        let cache = cache::new(config, redis, &source);
        let internal = internal(config, environment);
        let destinations = Arc::<Destinations>::default();
        let in_force = destinations.clone();
        let apply = move |document: &_| {
            let Changes { added, changed, removed } = in_force.apply(&internal.beside(document));
            if added + changed + removed > 0 {
                info!(added, changed, removed, "configuration applied");
            }
        };
        let errors = metrics::CONFIGURATION_ERRORS.clone();
        let repository = Repository::start(source, cache, errors, apply).await?;
        let status = repository.status().borrow().clone();
        if status.is_missing() {
            warn!(source = source_name, error = status.error, "no destinations yet");
        }
        let count = destinations.snapshot().iter().count();
        info!(count, source = source_name, "destinations configured");
        Ok(Configuration { repository, destinations })
    }

    /// The destinations in force, now and later.
    pub fn destinations(&self) -> Arc<Destinations> {
        self.destinations.clone()
    }

    /// Where they came from, and from then on each change of that.
    pub fn status(&self) -> watch::Receiver<RepositoryStatus> {
        self.repository.status()
    }

    /// Follows the source until `stop`. A dropped call leaves the last destinations in force and
    /// each copy whole, if maybe older.
    pub async fn follow(self, stop: CancellationToken) {
        self.repository.follow(stop).await;
    }
}
