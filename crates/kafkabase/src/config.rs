//! How to reach Kafka, and what topics and producers are made with.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use appbase::values::{ValueError, boolean, float, hours, integer, millis};
use clap::{ArgAction, Args};
use rdkafka::ClientConfig;

use crate::{ClientSettings, SpoolSettings};

/// What a produced event waits for before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckMode {
    /// Kafka's acknowledgement from all in-sync replicas.
    Durable,
    /// A place in the queue of this process, as the original does. A crash loses what is queued.
    Async,
}

impl AckMode {
    fn parse(text: &str) -> Result<AckMode, ValueError> {
        match text {
            "" | "durable" => Ok(AckMode::Durable),
            "async" => Ok(AckMode::Async),
            _ => Err(ValueError("neither durable nor async")),
        }
    }
}

/// Settings of the Kafka library. Names and defaults are those of the original.
#[derive(Debug, Clone, Args)]
pub struct KafkaConfig {
    /// Brokers as `host:port`, separated by commas.
    #[arg(long, required = true)]
    pub kafka_bootstrap_servers: String,
    /// Encrypt connections to the brokers.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub kafka_ssl: bool,
    /// Do not verify the brokers' certificates.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub kafka_ssl_skip_verify: bool,
    /// Certificates to trust, as PEM.
    #[arg(long)]
    pub kafka_ssl_ca: Option<String>,
    /// File with certificates to trust.
    #[arg(long)]
    pub kafka_ssl_ca_file: Option<String>,
    /// SASL settings as an hjson object: `{"mechanisms": "SCRAM-SHA-256", "username": "u",
    /// "password": "p"}`.
    #[arg(long, value_parser = SaslSettings::parse)]
    pub kafka_sasl: Option<SaslSettings>,
    /// Security protocol; overrides what follows from the settings above.
    #[arg(long)]
    pub kafka_security_protocol: Option<String>,
    /// Silence, in milliseconds, after which the broker gives partitions away.
    #[arg(long, default_value = "45000", value_parser = millis)]
    pub kafka_session_timeout_ms: Duration,
    /// Milliseconds between two polls of a consumer.
    #[arg(long, default_value = "300000", value_parser = millis)]
    pub kafka_max_poll_interval_ms: Duration,
    /// Bytes of one partition in one answer of a broker.
    #[arg(long, default_value = "1048576", value_parser = integer::<u32>)]
    pub kafka_fetch_message_max_bytes: u32,
    /// Compression of what is produced, and of topics we make.
    #[arg(long, default_value = "snappy")]
    pub kafka_topic_compression: String,
    /// Hours that a topic keeps events.
    #[arg(long, default_value = "48", value_parser = hours)]
    pub kafka_topic_retention_hours: Duration,
    /// Hours after which a topic starts a new segment.
    #[arg(long, default_value = "24", value_parser = hours)]
    pub kafka_topic_segment_hours: Duration,
    /// What names of topics start with.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub kafka_topic_prefix: String,
    /// Bytes of a segment of a retry topic.
    #[arg(long, default_value = "104857600", value_parser = integer::<u32>)]
    pub kafka_retry_topic_segment_bytes: u32,
    /// Hours that a retry topic keeps events.
    #[arg(long, default_value = "48", value_parser = hours)]
    pub kafka_retry_topic_retention_hours: Duration,
    /// Hours that the dead letter topic keeps events.
    #[arg(long, default_value = "168", value_parser = hours)]
    pub kafka_dead_topic_retention_hours: Duration,
    /// Replicas of topics we make; 0 is the brokers' default.
    #[arg(long, default_value = "0", value_parser = integer::<i32>)]
    pub kafka_topic_replication_factor: i32,
    /// `min.insync.replicas` of topics we make; 0 is the brokers' default.
    #[arg(long, default_value = "0", value_parser = integer::<i32>)]
    pub kafka_topic_min_insync_replicas: i32,
    /// Milliseconds that a question for metadata may take.
    #[arg(long, default_value = "1000", value_parser = millis)]
    pub kafka_admin_metadata_timeout_ms: Duration,
    /// How a consumer group shares partitions.
    #[arg(long, default_value = "roundrobin")]
    pub kafka_consumer_partitions_assigment_strategy: String,
    /// Topic of events for many destinations.
    #[arg(long, default_value = "destination-messages")]
    pub kafka_destinations_topic_name: String,
    /// Partitions of that topic.
    #[arg(long, default_value = "16", value_parser = integer::<i32>)]
    pub kafka_destinations_topic_partitions: i32,
    /// Retry topic beside it.
    #[arg(long, default_value = "destination-messages-retry")]
    pub kafka_destinations_retry_topic_name: String,
    /// The dead letter topic.
    #[arg(long, default_value = "destination-messages-dead-letter")]
    pub kafka_destinations_dead_letter_topic_name: String,

    /// What an event waits for before it is answered: `durable` or `async`.
    #[arg(long, default_value = "durable", value_parser = AckMode::parse)]
    pub ack_mode: AckMode,
    /// Milliseconds that an event waits for Kafka's acknowledgement before it is refused.
    #[arg(long, default_value = "1000", value_parser = millis)]
    pub producer_wait_for_delivery_ms: Duration,
    /// Events that wait for Kafka at most.
    #[arg(long, default_value = "100000", value_parser = integer::<u32>)]
    pub producer_queue_size: u32,
    /// Share of the queue above which the service is not ready.
    #[arg(long, default_value = "0.5", value_parser = float)]
    pub producer_queue_size_threshold: f64,
    /// Bytes of a batch on its way to a broker; at least 1,000,000 when `ACK_MODE` is `durable`.
    #[arg(long, default_value = "65535", value_parser = integer::<u32>)]
    pub producer_batch_size: u32,
    /// Milliseconds that a batch waits for more; at most 1 when `ACK_MODE` is `durable`.
    #[arg(long, default_value = "1000", value_parser = millis)]
    pub producer_linger_ms: Duration,
    /// Bytes of the largest event, with its key and headers.
    #[arg(long, default_value = "1000000", value_parser = integer::<u32>)]
    pub kafka_message_max_bytes: u32,

    /// Folder for events that Kafka does not take in time, on a volume that outlives the process;
    /// empty: they are refused.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub spool_dir: String,
    /// Megabytes that the spool's files have at most.
    #[arg(long, default_value = "1024", value_parser = integer::<u32>)]
    pub spool_max_mb: u32,
    /// Share of the spool that the events of one topic have at most.
    #[arg(long, default_value = "0.5", value_parser = float)]
    pub spool_topic_share: f64,
    /// Milliseconds that a record may take to surface in Kafka; more than the brokers'
    /// `replica.lag.time.max.ms`.
    #[arg(long, default_value = "45000", value_parser = millis)]
    pub spool_lookup_wait_ms: Duration,

    /// Keep a log of failed events on disk.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub failover_logger_enabled: bool,
    /// Keep all events there.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub failover_logger_log_all_messages: bool,
    /// Folder of that log.
    #[arg(long, default_value = "/tmp/kafka_failover")]
    pub failover_logger_base_path: String,
    /// Minutes until a new file.
    #[arg(long, default_value = "60", value_parser = integer::<u32>)]
    pub failover_logger_rotation_period_minutes: u32,
    /// Megabytes of a file.
    #[arg(long, default_value = "100", value_parser = integer::<u32>)]
    pub failover_logger_max_size_mb: u32,
    /// Compress finished files.
    #[arg(long, default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub failover_logger_compress: bool,
    /// Finished files that are kept; 0 is all.
    #[arg(long, default_value = "10", value_parser = integer::<u32>)]
    pub failover_logger_local_max_old_files: u32,
    /// Copy finished files to S3.
    #[arg(long, default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub failover_logger_s3_enabled: bool,
    /// S3 bucket.
    #[arg(long)]
    pub failover_logger_s3_bucket: Option<String>,
    /// What names in the bucket start with.
    #[arg(long)]
    pub failover_logger_s3_prefix: Option<String>,
    /// S3 region.
    #[arg(long, default_value = "us-east-1")]
    pub failover_logger_s3_region: String,
}

impl KafkaConfig {
    /// Names that are also read without the prefix.
    pub const UNPREFIXED: &'static [&'static str] = &[
        "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_SSL_CA",
        "KAFKA_SSL_CA_FILE",
        "KAFKA_SASL",
        "KAFKA_SECURITY_PROTOCOL",
        "KAFKA_TOPIC_PREFIX",
        "KAFKA_TOPIC_REPLICATION_FACTOR",
        "FAILOVER_LOGGER_S3_BUCKET",
        "FAILOVER_LOGGER_S3_PREFIX",
    ];

    /// Bytes that one event may have at most, its key and headers included.
    pub fn producer_message_max_bytes(&self) -> usize {
        self.kafka_message_max_bytes as usize
    }

    /// Events in the producer's queue above which the service wants no traffic.
    pub fn producer_queue_threshold(&self) -> usize {
        // a share between 0 and 1 of a number that fits into 32 bits
        (f64::from(self.producer_queue_size) * self.producer_queue_size_threshold) as usize
    }

    /// Where the spool is, if there is one: only durable mode has a use for it.
    pub fn spool(&self) -> Option<SpoolSettings> {
        if self.spool_dir.is_empty() || self.ack_mode == AckMode::Async {
            return None;
        }
        Some(SpoolSettings {
            folder: PathBuf::from(&self.spool_dir),
            max_bytes: u64::from(self.spool_max_mb) << 20,
            topic_share: self.spool_topic_share,
        })
    }

    /// What all clients have in common: brokers, security, reconnecting. `client_id` is how the
    /// brokers see the client.
    pub fn client_settings(&self, client_id: &str) -> ClientSettings {
        ClientSettings::new(self.client_config(client_id))
    }

    /// The same, for a client of this crate that adds its own.
    pub(crate) fn client_config(&self, client_id: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", client_id)
            .set("bootstrap.servers", &self.kafka_bootstrap_servers)
            // from quick to slow, but never so slow that a broker that is back is kept waiting
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000");
        if self.kafka_ssl {
            let sasl = self.kafka_sasl.is_some();
            config.set("security.protocol", if sasl { "SASL_SSL" } else { "SSL" });
            if self.kafka_ssl_skip_verify {
                config.set("enable.ssl.certificate.verification", "false");
            }
            if let Some(pem) = &self.kafka_ssl_ca {
                config.set("ssl.ca.pem", pem);
            }
            if let Some(file) = &self.kafka_ssl_ca_file {
                config.set("ssl.ca.location", file);
            }
        }
        if let Some(SaslSettings(settings)) = &self.kafka_sasl {
            for (key, value) in settings {
                config.set(format!("sasl.{key}"), value);
            }
        }
        if let Some(protocol) = &self.kafka_security_protocol {
            config.set("security.protocol", protocol);
        }
        config
    }
}

/// What `KAFKA_SASL` holds: settings of the client without their `sasl.`. Never shown: it has a
/// password.
#[derive(Clone)]
pub struct SaslSettings(BTreeMap<String, String>);

impl SaslSettings {
    fn parse(text: &str) -> Result<SaslSettings, ValueError> {
        let object: serde_json::Map<String, serde_json::Value> =
            deser_hjson::from_str(text).map_err(|_| ValueError("not an hjson object"))?;
        let settings = object.into_iter().map(|(key, value)| match value {
            serde_json::Value::String(text) => (key, text),
            other => (key, other.to_string()),
        });
        Ok(SaslSettings(settings.collect()))
    }
}

impl std::fmt::Debug for SaslSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SaslSettings").field(&"…").finish()
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use appbase::config::{Environment, Names};
    use clap::Parser;

    use super::KafkaConfig;

    #[derive(Debug, Parser)]
    struct Sample {
        #[command(flatten)]
        kafka: KafkaConfig,
    }

    /// What the library is told by these variables, and by the brokers `a:1,b:2`.
    pub(crate) fn kafka_config(variables: &[(&str, &str)]) -> KafkaConfig {
        let names = Names { unprefixed: &[KafkaConfig::UNPREFIXED], fallbacks: &[] };
        let all = [("KAFKA_BOOTSTRAP_SERVERS", "a:1,b:2")];
        let environment = Environment::new("BULKER", all.iter().chain(variables).copied(), []);
        environment.parse::<Sample>(&[], &names).unwrap().config.kafka
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::kafka_config, *};

    fn client(variables: &[(&str, &str)]) -> ClientConfig {
        kafka_config(variables).client_config("bulkerapp")
    }

    #[test]
    fn brokers_are_all_that_is_needed() {
        let config = client(&[]);
        assert_eq!(config.get("bootstrap.servers"), Some("a:1,b:2"));
        assert_eq!(config.get("client.id"), Some("bulkerapp"));
        assert_eq!(config.get("security.protocol"), None);
    }

    #[test]
    fn security_follows_from_tls_and_sasl_unless_it_is_named() {
        let sasl =
            ("BULKER_KAFKA_SASL", r#"{mechanisms: "SCRAM-SHA-256", username: "u", password: "p"}"#);
        let tls = ("BULKER_KAFKA_SSL", "true");
        let named = ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT");
        let protocol =
            |variables: &[_]| client(variables).get("security.protocol").map(str::to_owned);
        assert_eq!(protocol(&[tls]).as_deref(), Some("SSL"));
        assert_eq!(protocol(&[tls, sasl]).as_deref(), Some("SASL_SSL"));
        assert_eq!(protocol(&[sasl]), None);
        assert_eq!(protocol(&[sasl, tls, named]).as_deref(), Some("SASL_PLAINTEXT"));
        let config = client(&[sasl]);
        assert_eq!(config.get("sasl.mechanisms"), Some("SCRAM-SHA-256"));
        assert_eq!(config.get("sasl.password"), Some("p"));
    }

    #[test]
    fn certificates_are_verified_unless_told_otherwise() {
        let verification = "enable.ssl.certificate.verification";
        let skip = ("BULKER_KAFKA_SSL_SKIP_VERIFY", "true");
        assert_eq!(client(&[("BULKER_KAFKA_SSL", "true")]).get(verification), None);
        assert_eq!(client(&[skip]).get(verification), None, "says nothing without TLS");
        assert_eq!(client(&[skip, ("BULKER_KAFKA_SSL", "1")]).get(verification), Some("false"));
    }

    #[test]
    fn a_password_shows_in_no_debug_output_and_in_no_error() {
        let secret = SaslSettings::parse("{\n  password: s3cret\n}").unwrap();
        assert!(!format!("{secret:?}").contains("s3cret"));
        let error = SaslSettings::parse("s3cret").unwrap_err();
        assert!(!error.to_string().contains("s3cret"));
    }
}
