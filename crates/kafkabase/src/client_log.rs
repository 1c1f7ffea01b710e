//! librdkafka's own log lines and errors, carried into ours.

use rdkafka::{config::RDKafkaLogLevel, error::KafkaError};
use tracing::{debug, error, info, warn};

pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            error!(facility, message, "kafka client");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            warn!(facility, message, "kafka client");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            info!(facility, message, "kafka client");
        }
        RDKafkaLogLevel::Debug => debug!(facility, message, "kafka client"),
    }
}

pub(crate) fn log_error(error: &KafkaError, reason: &str) {
    warn!(error = %error, reason, "kafka client error");
}
