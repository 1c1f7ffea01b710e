//! Where destinations come from, as the settings name it.
//!
//! How a file, an address, a hash or a query is followed is the repository's business
//! (`appbase::repository`); what they answer becomes a document in `answers`.

mod answers;
mod environment;

use std::time::Duration;

use appbase::{
    config::Environment,
    redis_client::{RedisClient, RedisClientError},
    repository::{
        FileSource, HttpSettings, HttpSource, PostgresSettings, PostgresSource, RedisHashSource,
        Source, SourceReadError, SourceSettingsError, Validator,
    },
};

use super::{
    document::{Document, Format},
    settings::{RedisSettings, SourceConfig},
};
use crate::config::PREFIX;

/// Why there is nothing to read destinations from. Values are not quoted: they may hold passwords.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The setting starts like none of the sources.
    #[error(
        "{PREFIX}_CONFIG_SOURCE: no such source. There are: empty and env://{PREFIX}_<NAME> (variables), \
         file://<path> or a path, http://, https://, redis, redis://, rediss://, postgres://"
    )]
    Unknown,
    /// `env://` names no variables of this service.
    #[error("{PREFIX}_CONFIG_SOURCE: env:// must be followed by {PREFIX}_<NAME>")]
    Prefix,
    /// The address of an HTTP or PostgreSQL source is none. Holds how it starts.
    #[error("{PREFIX}_CONFIG_SOURCE: the address after {0} is not readable")]
    Url(&'static str),
    /// The source is the default Redis, and there is none.
    #[error("{PREFIX}_CONFIG_SOURCE is redis, so {PREFIX}_REDIS_URL must be set")]
    NoRedis,
    /// The Redis that is named cannot be reached like this.
    #[error("{variable}: {reason}")]
    Redis {
        /// The variable to repair.
        variable: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The client of an HTTP source cannot be made.
    #[error("HTTP client: {0}")]
    Client(String),
}

/// The source that the settings name.
pub(super) enum DestinationSource {
    /// Variables, which do not change while the process runs.
    Environment(Document),
    File(FileSource<Document>),
    Http(HttpSource<Document>),
    Redis(Box<RedisHashSource<Document>>),
    Postgres(Box<PostgresSource<Document>>),
}

impl DestinationSource {
    /// What the settings name. Nothing is connected yet.
    pub(super) fn new(
        config: &SourceConfig,
        redis: &RedisSettings,
        environment: &Environment,
    ) -> Result<DestinationSource, SourceError> {
        let source = config.config_source.as_str();
        let period = config.period();
        let file = |path| DestinationSource::File(FileSource::new(path, period, answers::of_file));
        Ok(match source.split_once("://").map(|(scheme, _)| scheme) {
            None if source.is_empty() => DestinationSource::Environment(environment::read(
                environment::DESTINATION,
                environment,
            )),
            None if source == "redis" => {
                let url = redis.url.as_deref().ok_or(SourceError::NoRedis)?;
                redis_source(url, "REDIS_URL", redis, period)?
            }
            None => file(source),
            Some("env") => {
                let group = environment::group_of(source)?;
                DestinationSource::Environment(environment::read(group, environment))
            }
            Some("file") => file(&source["file://".len()..]),
            Some("http" | "https") => http_source(config)?,
            Some("redis" | "rediss") => redis_source(source, "CONFIG_SOURCE", redis, period)?,
            Some(scheme) if scheme.starts_with("postgres") => postgres_source(config)?,
            Some(_) => return Err(SourceError::Unknown),
        })
    }

    /// The file that a copy is kept in, and how. `None`: it is on this machine anyway.
    pub(super) fn copy(&self) -> Option<(&'static str, Format)> {
        match self {
            DestinationSource::Environment(_) | DestinationSource::File(_) => None,
            // names and contents are those of the original
            DestinationSource::Http(_) => Some(("bulker-connections", Format::Array)),
            DestinationSource::Postgres(_) => Some(("repository.json", Format::ById)),
            DestinationSource::Redis(_) => Some(("redis.json", Format::ById)),
        }
    }
}

impl Source for DestinationSource {
    type Document = Document;

    fn name(&self) -> &'static str {
        match self {
            DestinationSource::Environment(_) => "environment",
            DestinationSource::File(file) => file.name(),
            DestinationSource::Http(http) => http.name(),
            DestinationSource::Redis(redis) => redis.name(),
            DestinationSource::Postgres(postgres) => postgres.name(),
        }
    }

    fn is_live(&self) -> bool {
        !matches!(self, DestinationSource::Environment(_))
    }

    async fn read(&mut self) -> Result<Option<Document>, SourceReadError> {
        match self {
            DestinationSource::Environment(document) => Ok(Some(document.clone())),
            DestinationSource::File(file) => file.read().await,
            DestinationSource::Http(http) => http.read().await,
            DestinationSource::Redis(redis) => redis.read().await,
            DestinationSource::Postgres(postgres) => postgres.read().await,
        }
    }

    async fn changed(&mut self) {
        match self {
            DestinationSource::Environment(_) => std::future::pending().await,
            DestinationSource::File(file) => file.changed().await,
            DestinationSource::Http(http) => http.changed().await,
            DestinationSource::Redis(redis) => redis.changed().await,
            DestinationSource::Postgres(postgres) => postgres.changed().await,
        }
    }
}

/// Destinations of the installation itself, beside those of a source that is named; those of the
/// source win.
pub(super) fn internal(config: &SourceConfig, environment: &Environment) -> Document {
    match config.config_source.as_str() {
        "" => Document::default(),
        _ => environment::read(environment::INTERNAL, environment),
    }
}

fn http_source(config: &SourceConfig) -> Result<DestinationSource, SourceError> {
    let settings = HttpSettings {
        url: config.config_source.clone(),
        token: config.config_source_http_auth_token.clone(),
        validator: Validator::LastModified,
        period: config.period(),
    };
    let source = HttpSource::new(settings, answers::of_http);
    source.map(DestinationSource::Http).map_err(|error| not_usable(error, "http://"))
}

fn postgres_source(config: &SourceConfig) -> Result<DestinationSource, SourceError> {
    let settings = PostgresSettings {
        url: config.config_source.clone(),
        query: config.config_source_sql_query.clone(),
        application_name: "bulkerapp",
        period: config.period(),
    };
    let source = PostgresSource::new(settings, answers::of_rows);
    let source = source.map_err(|error| not_usable(error, "postgres://"))?;
    Ok(DestinationSource::Postgres(Box::new(source)))
}

fn not_usable(error: SourceSettingsError, start: &'static str) -> SourceError {
    match error {
        SourceSettingsError::Address => SourceError::Url(start),
        SourceSettingsError::Client(reason) => SourceError::Client(reason),
    }
}

fn redis_source(
    url: &str,
    variable: &str,
    settings: &RedisSettings,
    period: Duration,
) -> Result<DestinationSource, SourceError> {
    let client = RedisClient::new(url, &settings.tls).map_err(|error| {
        let variable = match error {
            RedisClientError::Address(_) => variable,
            RedisClientError::Certificates(_) => "REDIS_TLS_CA",
        };
        SourceError::Redis { variable: format!("{PREFIX}_{variable}"), reason: error.to_string() }
    })?;
    let source = RedisHashSource::new(client, answers::HASH, period, answers::of_hash);
    Ok(DestinationSource::Redis(Box::new(source)))
}

#[cfg(test)]
mod tests {
    use appbase::redis_client::RedisTls;

    use super::*;
    use crate::destinations::{document::Found, settings::samples::source_config};

    const VARIABLES: [(&str, &str); 5] = [
        ("BULKER_DESTINATION_ONE", "{id: \"one\"}"),
        ("BULKER_OTHER_TWO", "{id: \"two\"}"),
        ("BULKER_OTHER_FOUR", "{id: \"four\", type: \"configured\"}"),
        ("BULKER_INTERNAL_FOUR", "{id: \"four\"}"),
        ("BULKER_INTERNAL_FIVE", "{id: \"five\"}"),
    ];

    fn source(config_source: &str) -> Result<DestinationSource, SourceError> {
        let environment = Environment::new("BULKER", VARIABLES, []);
        let config = source_config(&[("BULKER_CONFIG_SOURCE", config_source)]);
        DestinationSource::new(&config, &RedisSettings::default(), &environment)
    }

    async fn complete(config_source: &str) -> Document {
        let environment = Environment::new("BULKER", VARIABLES, []);
        let config = source_config(&[("BULKER_CONFIG_SOURCE", config_source)]);
        let document = source(config_source).unwrap().read().await.unwrap().unwrap();
        internal(&config, &environment).beside(&document)
    }

    async fn ids(config_source: &str) -> Vec<String> {
        let document = complete(config_source).await;
        document.0.iter().filter_map(Found::id).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_named_source_comes_with_the_internal_ones_and_wins_over_them() {
        assert_eq!(ids("").await, ["one"]);
        assert_eq!(ids("env://BULKER_DESTINATION").await, ["five", "four", "one"]);
        assert_eq!(ids("env://BULKER_OTHER").await, ["five", "four", "two"]);
        let document = complete("env://BULKER_OTHER").await;
        let four = document.0.iter().find(|found| found.id() == Some("four")).unwrap();
        assert_eq!(four.config().unwrap().kind, "configured");
    }

    #[test]
    fn every_source_has_its_own_start() {
        for (text, name) in [
            ("", "environment"),
            ("env://BULKER_X", "environment"),
            ("destinations.yaml", "file"),
            ("/etc/bulker/postgres.yaml", "file"),
            ("file:///etc/bulker.yaml", "file"),
            ("http://console/export", "http"),
            ("https://console/export", "http"),
            ("redis://h:1/2", "redis"),
            ("rediss://h:1/2", "redis"),
            ("postgres://h/d", "postgres"),
            ("postgresql://h/d", "postgres"),
        ] {
            assert_eq!(source(text).unwrap().name(), name, "{text}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused_without_quoting_it() {
        for text in [
            "s3cret://h",
            "http://s3cret:[",
            "postgres://s3cret:[",
            "redis://s3cret:[",
            "env://s3cret",
        ] {
            let error = source(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("BULKER_CONFIG_SOURCE"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert_eq!(source("redis").map(|_| ()).unwrap_err(), SourceError::NoRedis);
        let config = source_config(&[("BULKER_CONFIG_SOURCE", "redis://h")]);
        let ca = Some("not-a-certificate".to_owned());
        let tls = RedisTls { ca, ..RedisTls::default() };
        let redis = RedisSettings { tls, ..RedisSettings::default() };
        let environment = Environment::new("BULKER", VARIABLES, []);
        let error = DestinationSource::new(&config, &redis, &environment).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("BULKER_REDIS_TLS_CA: "), "{error}");
    }
}
