//! librdkafka's own log lines and errors, carried into ours.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};
use tracing::{debug, error, info, warn};

/// While brokers are away each client reports so many times a second: one line in this time is
/// enough.
const QUIET: Duration = Duration::from_secs(10);

static ERRORS: Mutex<Throttle> = Mutex::new(Throttle { logged: None, dropped: 0 });

/// The last error of any client that says why.
static LAST: Mutex<Option<ClientError>> = Mutex::new(None);

/// What a Kafka client of this process complained about last: a broker that is away, a certificate,
/// a password.
#[derive(Debug, Clone)]
pub struct ClientError {
    /// When it came.
    pub at: Instant,
    /// librdkafka's words. They name brokers, no secrets.
    pub reason: String,
}

impl ClientError {
    /// What is to be looked at, in a word: librdkafka has one code for all of these.
    pub fn kind(&self) -> &'static str {
        let kinds = [
            ("certificate", "certificate"),
            ("SSL", "tls"),
            ("SASL", "authentication"),
            ("uthentication", "authentication"),
            ("resolve", "name"),
            ("Connect", "connection"),
        ];
        let kind = kinds.iter().find(|(part, _)| self.reason.contains(part));
        kind.map_or("other", |(_, kind)| kind)
    }
}

/// The last error, however old. That brokers can be reached again is nowhere said: the caller knows
/// when Kafka answered last.
pub fn last_client_error() -> Option<ClientError> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

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
    // follows the error of the last broker, and says less
    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
        let last = ClientError { at: Instant::now(), reason: reason.to_owned() };
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }
    let allowed = match ERRORS.lock() {
        Ok(mut errors) => errors.allow(Instant::now()),
        Err(_) => Some(0),
    };
    if let Some(dropped) = allowed {
        warn!(error = %error, reason, dropped, "kafka client error");
    }
}

/// Lets one line through in a while and counts the others.
struct Throttle {
    logged: Option<Instant>,
    dropped: u64,
}

impl Throttle {
    /// How many lines were dropped since the last one; `None`: so is this one.
    fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.logged.is_some_and(|logged| now.saturating_duration_since(logged) < QUIET) {
            self.dropped += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.dropped))
    }
}

/// The context of a client that has nothing else to say.
#[derive(Clone)]
pub(crate) struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for LogContext {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_client_says_what_to_look_at() {
        let cases = [
            (
                "ssl://b:1/bootstrap: SSL handshake failed: …:certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured",
                "certificate",
            ),
            (
                "ssl://b:1/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker listener?",
                "tls",
            ),
            (
                "sasl_plaintext://b:1/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-256",
                "authentication",
            ),
            (
                "kafka:9092/bootstrap: Failed to resolve 'kafka:9092': Name or service not known",
                "name",
            ),
            (
                "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                "connection",
            ),
            ("b:1/1: Connection setup timed out in state CONNECT", "connection"),
            ("b:1/1: 3 request(s) timed out", "other"),
        ];
        for (reason, kind) in cases {
            let error = ClientError { at: Instant::now(), reason: reason.to_owned() };
            assert_eq!(error.kind(), kind, "{reason}");
        }
    }

    #[test]
    fn one_line_in_a_while_says_how_many_were_dropped() {
        let start = Instant::now();
        let mut throttle = Throttle { logged: None, dropped: 0 };
        assert_eq!(throttle.allow(start), Some(0));
        assert_eq!(throttle.allow(start), None);
        assert_eq!(throttle.allow(start + QUIET / 2), None);
        assert_eq!(throttle.allow(start + QUIET), Some(2));
    }
}
