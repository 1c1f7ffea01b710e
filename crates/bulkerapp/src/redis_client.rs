//! How to reach a Redis that a variable names.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisError,
    TlsCertificates,
    aio::{MultiplexedConnection, PubSub},
};

use crate::destinations::RedisSettings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer; a hash may hold megabytes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// An address that could be read; connects when asked to.
pub(crate) struct RedisClient(Box<Client>);

impl RedisClient {
    pub(crate) fn new(url: &str, settings: &RedisSettings) -> Result<RedisClient, RedisError> {
        let info = url.into_connection_info()?;
        let (host, port, skips_verify) = match info.addr().clone() {
            // certificates without rediss:// mean TLS, as in the original
            ConnectionAddr::Tcp(host, port) if settings.tls_ca.is_some() => (host, port, false),
            ConnectionAddr::TcpTls { host, port, insecure, .. } => (host, port, insecure),
            _ => return Ok(RedisClient(Box::new(Client::open(info)?))),
        };
        let insecure = skips_verify || settings.skips_verify;
        let address = ConnectionAddr::TcpTls { host, port, insecure, tls_params: None };
        let root_cert = settings.tls_ca.as_ref().map(|pem| pem.clone().into_bytes());
        let trusted = TlsCertificates { client_tls: None, root_cert };
        Ok(RedisClient(Box::new(Client::build_with_tls(info.set_addr(address), trusted)?)))
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
        let tls = RedisSettings { skips_verify: true, ..RedisSettings::default() };
        for (url, number) in [("redis://h:1/7", 7), ("redis://h:1", 0), ("rediss://h:1/7", 7)] {
            let client = RedisClient::new(url, &tls).map_err(|error| reason(&error)).unwrap();
            assert_eq!(client.database(), number, "{url}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_not_quoted() {
        let error = RedisClient::new("redis://:s3cret@[", &RedisSettings::default())
            .map(|_| ())
            .unwrap_err();
        assert!(!reason(&error).contains("s3cret"), "{}", reason(&error));
    }
}
