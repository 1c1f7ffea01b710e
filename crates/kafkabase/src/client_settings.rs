//! What all clients of a process have in common, without a type of the client library.

use std::{fmt, sync::Arc};

use rdkafka::ClientConfig;

/// Brokers and security, and the name that the brokers know the client by. Cheap to clone.
///
/// `Debug` shows name, brokers and protocol only: the rest has passwords and keys.
#[derive(Clone)]
pub struct ClientSettings {
    config: Arc<ClientConfig>,
}

impl ClientSettings {
    /// For brokers that want neither TLS nor a password. `brokers` as `host:port`, separated by
    /// commas. Where operators configure the brokers, it is
    /// [`KafkaConfig::client_settings`](crate::KafkaConfig::client_settings).
    pub fn plaintext(client_id: &str, brokers: &str) -> ClientSettings {
        let mut config = ClientConfig::new();
        config.set("client.id", client_id).set("bootstrap.servers", brokers);
        ClientSettings::new(config)
    }

    pub(crate) fn new(config: ClientConfig) -> ClientSettings {
        ClientSettings { config: Arc::new(config) }
    }

    /// A copy for one client, which adds what it needs.
    pub(crate) fn to_config(&self) -> ClientConfig {
        (*self.config).clone()
    }
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |key| self.config.get(key).unwrap_or_default();
        f.debug_struct("ClientSettings")
            .field("client_id", &shown("client.id"))
            .field("brokers", &shown("bootstrap.servers"))
            .field("security_protocol", &shown("security.protocol"))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::samples::kafka_config;

    #[test]
    fn debug_output_names_the_brokers_and_no_secret() {
        let settings = kafka_config(&[
            ("BULKER_KAFKA_SASL", r#"{mechanisms: "PLAIN", username: "u", password: "s3cret"}"#),
            ("BULKER_KAFKA_SSL", "true"),
            ("BULKER_KAFKA_SSL_CA", "a-certificate"),
        ])
        .client_settings("bulkerapp");
        let shown = format!("{settings:?}");
        for part in ["bulkerapp", "a:1,b:2", "SASL_SSL"] {
            assert!(shown.contains(part), "{shown}");
        }
        for part in ["s3cret", "a-certificate"] {
            assert!(!shown.contains(part), "{shown}");
        }
    }
}
