//! Where destinations come from. Each source reads whole documents, and notices changes in its own way.

mod environment;
mod file;
mod http;
mod postgres;
mod redis;

use std::time::Duration;

use appbase::{
    config::Environment,
    redis_client::{RedisClient, RedisClientError},
};

use self::{file::FileSource, http::HttpSource, postgres::PostgresSource, redis::RedisSource};
use super::{
    document::{Document, Format},
    settings::{RedisSettings, SourceConfig},
};
use crate::config::PREFIX;

/// The longest that one reading may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is nothing to read destinations from. Values are not quoted: they may hold passwords.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error(
        "{PREFIX}_CONFIG_SOURCE: no such source. There are: empty and env://{PREFIX}_<NAME> (variables), \
         file://<path> or a path, http://, https://, redis, redis://, rediss://, postgres://"
    )]
    Unknown,
    #[error("{PREFIX}_CONFIG_SOURCE: env:// must be followed by {PREFIX}_<NAME>")]
    Prefix,
    #[error("{PREFIX}_CONFIG_SOURCE: the address after {0} is not readable")]
    Url(&'static str),
    #[error("{PREFIX}_CONFIG_SOURCE is redis, so {PREFIX}_REDIS_URL must be set")]
    NoRedis,
    #[error("{variable}: {reason}")]
    Redis { variable: String, reason: String },
    #[error("HTTP client: {0}")]
    Client(String),
}

/// Why a source gave no document. Holds no secret.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct ReadError {
    reason: String,
    /// The `errorType` that it is counted as.
    pub(super) label: String,
    /// There is nothing where destinations should be: no document, but no failure of a new installation either.
    pub(super) is_missing: bool,
}

impl ReadError {
    fn new(reason: String) -> ReadError {
        ReadError { reason, label: "error".to_owned(), is_missing: false }
    }

    /// What came is not what it should be.
    fn of_content(self) -> ReadError {
        self.labelled("parse_error".to_owned())
    }

    fn labelled(self, label: String) -> ReadError {
        ReadError { label, ..self }
    }

    fn missing(self) -> ReadError {
        ReadError { is_missing: true, ..self }
    }
}

/// A source, with what it remembers to notice changes.
pub(super) struct Source {
    inner: Inner,
    period: Duration,
    /// Destinations of the installation itself; those of the source win.
    internal: Document,
}

enum Inner {
    Environment(Document),
    File(FileSource),
    Http(HttpSource),
    Redis(Box<RedisSource>),
    Postgres(Box<PostgresSource>),
}

impl Source {
    /// What the settings name. Nothing is connected yet.
    pub(super) fn new(
        config: &SourceConfig,
        redis: &RedisSettings,
        environment: &Environment,
    ) -> Result<Source, SourceError> {
        let source = config.config_source.as_str();
        let period = config.period();
        let inner = match source.split_once("://").map(|(scheme, _)| scheme) {
            None if source.is_empty() => {
                Inner::Environment(environment::read(environment::DESTINATION, environment))
            }
            None if source == "redis" => {
                let url = redis.url.as_deref().ok_or(SourceError::NoRedis)?;
                redis_source(url, "REDIS_URL", redis, period)?
            }
            None => Inner::File(FileSource::new(source)),
            Some("env") => {
                let group = environment::group_of(source)?;
                Inner::Environment(environment::read(group, environment))
            }
            Some("file") => Inner::File(FileSource::new(&source["file://".len()..])),
            Some("http" | "https") => {
                let token = config.config_source_http_auth_token.clone();
                Inner::Http(HttpSource::new(source, token)?)
            }
            Some("redis" | "rediss") => redis_source(source, "CONFIG_SOURCE", redis, period)?,
            Some(scheme) if scheme.starts_with("postgres") => {
                let query = &config.config_source_sql_query;
                Inner::Postgres(Box::new(PostgresSource::new(source, query)?))
            }
            Some(_) => return Err(SourceError::Unknown),
        };
        let internal = match source {
            "" => Document::default(),
            _ => environment::read(environment::INTERNAL, environment),
        };
        Ok(Source { inner, period, internal })
    }

    /// What operators call it.
    pub(super) fn name(&self) -> &'static str {
        match self.inner {
            Inner::Environment(_) => "environment",
            Inner::File(_) => "file",
            Inner::Http(_) => "http",
            Inner::Redis(_) => "redis",
            Inner::Postgres(_) => "postgres",
        }
    }

    /// The file that a copy is kept in, and how. `None`: it is on this machine anyway.
    pub(super) fn copy(&self) -> Option<(&'static str, Format)> {
        match self.inner {
            Inner::Environment(_) | Inner::File(_) => None,
            // names and contents are those of the original
            Inner::Http(_) => Some(("bulker-connections", Format::Array)),
            Inner::Postgres(_) => Some(("repository.json", Format::ById)),
            Inner::Redis(_) => Some(("redis.json", Format::ById)),
        }
    }

    /// Whether it can change while the process runs.
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.inner, Inner::Environment(_))
    }

    /// Everything that is configured now. `None`: the same as the last time.
    pub(super) async fn read(&mut self) -> Result<Option<Document>, ReadError> {
        let read = async {
            match &mut self.inner {
                Inner::Environment(document) => Ok(Some(document.clone())),
                Inner::File(file) => file.read().await,
                Inner::Http(http) => http.read().await,
                Inner::Redis(redis) => redis.read().await,
                Inner::Postgres(postgres) => postgres.read().await,
            }
        };
        match tokio::time::timeout(READ_TIMEOUT, read).await {
            Ok(read) => read,
            Err(_) => Err(ReadError::new(format!("no answer within {READ_TIMEOUT:?}"))),
        }
    }

    /// Waits until it is worth reading again.
    pub(super) async fn changed(&mut self) {
        match &mut self.inner {
            Inner::Environment(_) => std::future::pending().await,
            Inner::Redis(redis) => redis.changed().await,
            Inner::File(_) | Inner::Http(_) | Inner::Postgres(_) => {
                tokio::time::sleep(self.period).await;
            }
        }
    }

    /// The document together with the destinations of the installation itself.
    pub(super) fn complete(&self, document: &Document) -> Document {
        let ids: std::collections::HashSet<_> =
            document.0.iter().filter_map(super::document::Found::id).collect();
        let is_free = |id: Option<&str>| id.is_none_or(|id| !ids.contains(id));
        let internal = self.internal.0.iter().filter(|found| is_free(found.id()));
        Document(internal.chain(&document.0).cloned().collect())
    }
}

fn redis_source(
    url: &str,
    variable: &str,
    settings: &RedisSettings,
    period: Duration,
) -> Result<Inner, SourceError> {
    let client = RedisClient::new(url, &settings.tls).map_err(|error| {
        let variable = match error {
            RedisClientError::Address(_) => variable,
            RedisClientError::Certificates(_) => "REDIS_TLS_CA",
        };
        SourceError::Redis { variable: format!("{PREFIX}_{variable}"), reason: error.to_string() }
    })?;
    Ok(Inner::Redis(Box::new(RedisSource::new(client, period))))
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

    fn source(config_source: &str) -> Result<Source, SourceError> {
        let environment = Environment::new("BULKER", VARIABLES, []);
        let config = source_config(&[("BULKER_CONFIG_SOURCE", config_source)]);
        Source::new(&config, &RedisSettings::default(), &environment)
    }

    async fn ids(config_source: &str) -> Vec<String> {
        let mut source = source(config_source).unwrap();
        let document = source.read().await.unwrap().unwrap();
        let document = source.complete(&document);
        document.0.iter().filter_map(Found::id).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_named_source_comes_with_the_internal_ones_and_wins_over_them() {
        assert_eq!(ids("").await, ["one"]);
        assert_eq!(ids("env://BULKER_DESTINATION").await, ["five", "four", "one"]);
        assert_eq!(ids("env://BULKER_OTHER").await, ["five", "four", "two"]);
        let mut other = source("env://BULKER_OTHER").unwrap();
        let document = other.read().await.unwrap().unwrap();
        let document = other.complete(&document);
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
        let error = Source::new(&config, &redis, &environment).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("BULKER_REDIS_TLS_CA: "), "{error}");
    }
}
