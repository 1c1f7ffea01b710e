//! How to reach a Redis that a variable names.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, TlsCertificates,
    aio::{MultiplexedConnection, PubSub},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer; a hash may hold megabytes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// An address that could be read; connects when asked to.
pub(crate) struct RedisClient(Box<Client>);

impl RedisClient {
    /// With `ca`, certificates as PEM, every connection is encrypted and only these are trusted.
    pub(crate) fn new(url: &str, ca: Option<&str>) -> Result<RedisClient, RedisError> {
        let Some(ca) = ca else {
            return Ok(RedisClient(Box::new(Client::open(url)?)));
        };
        let url = match url.strip_prefix("redis://") {
            Some(rest) => format!("rediss://{rest}"),
            None => url.to_owned(),
        };
        let trusted = TlsCertificates { client_tls: None, root_cert: Some(ca.as_bytes().to_vec()) };
        Ok(RedisClient(Box::new(Client::build_with_tls(url, trusted)?)))
    }

    /// The number of the database that the address names.
    pub(crate) fn database(&self) -> i64 {
        self.0.get_connection_info().redis_settings().db()
    }

    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        self.0.get_multiplexed_async_connection_with_config(&config).await
    }

    pub(crate) async fn pubsub(&self) -> Result<PubSub, RedisError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.0.get_async_pubsub()).await {
            Ok(connected) => connected,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}

/// What went wrong, without what was sent or received.
pub(crate) fn reason(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Client => error.to_string(), // of this machine: connections, TLS
        _ => match error.code() {
            Some(code) => format!("Redis answered {code}"),
            None => error.category().to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_part_of_the_address() {
        assert_eq!(RedisClient::new("redis://h:1/7", None).unwrap().database(), 7);
        assert_eq!(RedisClient::new("redis://h:1", None).unwrap().database(), 0);
    }

    #[test]
    fn an_address_that_is_none_is_not_quoted() {
        let error = RedisClient::new("redis://:s3cret@[", None).map(|_| ()).unwrap_err();
        assert!(!reason(&error).contains("s3cret"), "{}", reason(&error));
    }
}
