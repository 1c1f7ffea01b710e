//! How to reach a Redis that a variable names: encrypted where the settings say so, with limits.
//!
//! Invariant: no text of an error holds the address, which may hold a password, nor what was sent
//! or received.

use std::{io, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisError,
    TlsCertificates,
    aio::{MultiplexedConnection, PubSub},
};

/// The longest that making a connection takes, unless the caller has a limit of its own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for an answer; a hash may hold megabytes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// How connections are encrypted.
#[derive(Debug, Clone, Default)]
pub struct RedisTls {
    /// Certificates to trust instead of the system's, as PEM; every connection is encrypted then.
    pub ca: Option<String>,
    /// Whether no certificate is verified.
    pub skips_verify: bool,
}

/// Why a client cannot be made; no retry mends it. Holds the reason, which quotes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisClientError {
    /// The text is not the address of a Redis.
    #[error("{0}")]
    Address(String),
    /// The certificates to trust cannot be read.
    #[error("{0}")]
    Certificates(String),
}

/// An address that could be read; connects when asked to.
pub struct RedisClient {
    client: Box<Client>,
    connect_timeout: Duration,
    response_timeout: Duration,
}

impl RedisClient {
    /// Reads the address; nothing is connected yet. `url` is
    /// `redis[s]://[user:password@]host[:port][/database]`, or what else the driver takes.
    pub fn new(url: &str, tls: &RedisTls) -> Result<RedisClient, RedisClientError> {
        Ok(RedisClient {
            client: Box::new(client(url, tls)?),
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
        })
    }

    /// The same with other limits than 5 s for a connection and 20 s for an answer.
    pub fn with_limits(self, connect: Duration, response: Duration) -> RedisClient {
        RedisClient { connect_timeout: connect, response_timeout: response, ..self }
    }

    /// The number of the database that the address names.
    pub fn database(&self) -> i64 {
        self.client.get_connection_info().redis_settings().db()
    }

    /// A new connection, which many callers may share. Fails after the limit at the latest, and so
    /// does each command on it. A dropped call leaves no connection behind; a dropped command may
    /// still be carried out.
    pub async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// A new connection for subscriptions. Fails after the limit at the latest; what it waits for
    /// later has none. A dropped call leaves no connection behind.
    pub async fn pubsub(&self) -> Result<PubSub, RedisError> {
        let connected = self.client.get_async_pubsub();
        match tokio::time::timeout(self.connect_timeout, connected).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }
}

fn client(url: &str, tls: &RedisTls) -> Result<Client, RedisClientError> {
    let no_address = |error: RedisError| RedisClientError::Address(reason(&error));
    let info = url.into_connection_info().map_err(no_address)?;
    let (host, port, skips_verify) = match info.addr().clone() {
        // certificates without rediss:// mean TLS, as in the original
        ConnectionAddr::Tcp(host, port) if tls.ca.is_some() => (host, port, false),
        ConnectionAddr::TcpTls { host, port, insecure, .. } => (host, port, insecure),
        _ => return Client::open(info).map_err(no_address),
    };
    let insecure = skips_verify || tls.skips_verify;
    let address = ConnectionAddr::TcpTls { host, port, insecure, tls_params: None };
    let root_cert = tls.ca.as_ref().map(|pem| pem.clone().into_bytes());
    let trusted = TlsCertificates { client_tls: None, root_cert };
    Client::build_with_tls(info.set_addr(address), trusted)
        .map_err(|error| RedisClientError::Certificates(reason(&error)))
}

/// What went wrong with Redis, without what was sent or received.
pub fn reason(error: &RedisError) -> String {
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
        let tls = RedisTls { skips_verify: true, ..RedisTls::default() };
        for (url, number) in [("redis://h:1/7", 7), ("redis://h:1", 0), ("rediss://h:1/7", 7)] {
            assert_eq!(RedisClient::new(url, &tls).unwrap().database(), number, "{url}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_not_quoted() {
        let error =
            RedisClient::new("redis://:s3cret@[", &RedisTls::default()).map(|_| ()).unwrap_err();
        assert!(matches!(&error, RedisClientError::Address(reason) if !reason.contains("s3cret")));
    }

    #[test]
    fn certificates_that_are_none_are_told_from_a_wrong_address() {
        let tls = RedisTls { ca: Some("s3cret".to_owned()), ..RedisTls::default() };
        let error = RedisClient::new("redis://h:1", &tls).map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, RedisClientError::Certificates(reason) if !reason.contains("s3cret"))
        );
    }
}
