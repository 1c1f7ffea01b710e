//! Connections, encrypted where the settings say so; the server's certificate is verified unless told otherwise.

use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult,
    TlsCertificates, aio::MultiplexedConnection,
};
use tokio::sync::Mutex;

use super::{CALL_LIMIT, RedisLog};
use crate::{EventsLogConfig, LogMetrics, OpenError};

impl RedisLog {
    pub(crate) fn open(
        url: &str,
        config: &EventsLogConfig,
        metrics: LogMetrics,
    ) -> Result<RedisLog, OpenError> {
        let info = url.into_connection_info().map_err(|_| OpenError::RedisUrl)?;
        let certificates = config.redis_tls_ca.as_ref().map(|pem| pem.clone().into_bytes());
        let skips_verify = config.redis_tls_skip_verify;
        let client = match info.addr().clone() {
            // certificates without rediss:// mean TLS, as in the original
            ConnectionAddr::Tcp(host, port) if certificates.is_some() => {
                encrypted(info, (host, port), skips_verify, certificates)?
            }
            ConnectionAddr::TcpTls { host, port, insecure, .. } => {
                encrypted(info, (host, port), insecure || skips_verify, certificates)?
            }
            _ => Client::open(info).map_err(|_| OpenError::RedisUrl)?,
        };
        let max_size = config.events_log_max_size as usize;
        Ok(RedisLog { client, connection: Mutex::new(None), max_size, metrics })
    }
}

/// `certificates` (PEM) are trusted instead of the system's.
fn encrypted(
    info: ConnectionInfo,
    (host, port): (String, u16),
    insecure: bool,
    certificates: Option<Vec<u8>>,
) -> Result<Client, OpenError> {
    let address = ConnectionAddr::TcpTls { host, port, insecure, tls_params: None };
    let certificates = TlsCertificates { client_tls: None, root_cert: certificates };
    Client::build_with_tls(info.set_addr(address), certificates)
        .map_err(|_| OpenError::RedisCertificate)
}

pub(super) async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    // the limit of the whole call is the one that counts
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CALL_LIMIT))
        .set_response_timeout(Some(CALL_LIMIT));
    client.get_multiplexed_async_connection_with_config(&config).await
}
