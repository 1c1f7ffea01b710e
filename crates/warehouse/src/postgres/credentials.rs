//! How to reach a PostgreSQL destination, as its configuration says it.

use std::{collections::BTreeMap, fmt, time::Duration};

use openssl::pkey::PKey;
use serde::Deserialize;
use serde_json::Value;
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgSslMode},
};

use super::{quote_ident, quote_literal};
use crate::error::LoadError;

const DEFAULT_PORT: u16 = 5432;

/// The `credentials` of a destination of type `postgres`. Its `Debug` shows no secret.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    host: String,
    /// 5432 where it is not given.
    #[serde(default)]
    port: Option<u16>,
    database: String,
    /// The schema of tables without a namespace; required, but only once the destination is used.
    #[serde(default)]
    default_schema: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// Settings of the connection; `connect_timeout` is in seconds.
    #[serde(default)]
    parameters: BTreeMap<String, String>,
    /// `disable`, `require`, `verify-ca` or `verify-full`.
    #[serde(default)]
    ssl_mode: Option<String>,
    /// This and the next two: PEM, its contents or an absolute path; used with the two verifying
    /// modes.
    #[serde(default, rename = "sslServerCA")]
    ssl_server_ca: Option<String>,
    #[serde(default)]
    ssl_client_cert: Option<String>,
    #[serde(default)]
    ssl_client_key: Option<String>,
    /// `password` where it is not given; `google-psc` is refused.
    #[serde(default)]
    authentication_method: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("database", &self.database)
            .field("default_schema", &self.default_schema)
            .finish_non_exhaustive()
    }
}

/// Parameters that drivers take for themselves; they are not settings of a session.
const OF_DRIVERS: [&str; 16] = [
    "binary_parameters",
    "connect_timeout",
    "default_query_exec_mode",
    "description_cache_capacity",
    "fallback_application_name",
    "min_read_buffer_size",
    "pool_health_check_period",
    "pool_max_conn_idle_time",
    "pool_max_conn_lifetime",
    "pool_max_conns",
    "pool_min_conns",
    "prefer_simple_protocol",
    "sslmode",
    "statement_cache_capacity",
    "statement_cache_mode",
    "target_session_attrs",
];

impl Credentials {
    /// Reads what a destination's configuration has under `credentials`: an object, or its text in
    /// JSON or YAML. The error names a field, never a value.
    pub fn read(value: &Value) -> Result<Credentials, LoadError> {
        let parsed = match value {
            Value::String(text) if text.trim_start().starts_with('{') => {
                serde_json::from_str(text).map_err(|error| without_values(&error.to_string()))
            }
            Value::String(text) => {
                serde_saphyr::from_str(text).map_err(|error| without_values(&error.to_string()))
            }
            value => {
                Credentials::deserialize(value).map_err(|error| without_values(&error.to_string()))
            }
        };
        parsed.map_err(|reason| LoadError::config(format!("credentials: {reason}")))
    }

    /// Refuses what reaches into the machine that this runs on: files, and sockets that are files.
    /// They are for destinations that an operator configured, not for what a client sends.
    ///
    /// The answer is the same whether there is such a file or not.
    pub(super) fn refuse_local_files(&self) -> Result<(), LoadError> {
        if is_path(&self.host) {
            return Err(LoadError::config("host: sockets of this machine are not opened"));
        }
        let fields = [
            ("sslServerCA", &self.ssl_server_ca),
            ("sslClientCert", &self.ssl_client_cert),
            ("sslClientKey", &self.ssl_client_key),
        ];
        match fields.iter().find(|(_, value)| value.as_deref().is_some_and(is_path)) {
            Some((field, _)) => Err(LoadError::config(format!(
                "{field}: files of this machine are not read; send the PEM itself"
            ))),
            None => Ok(()),
        }
    }

    /// The schema of tables without a namespace.
    pub(super) fn schema(&self) -> Result<&str, LoadError> {
        match self.default_schema.as_str() {
            "" => Err(LoadError::config("defaultSchema is required")),
            schema => Ok(schema),
        }
    }

    pub(super) fn connect_timeout(&self) -> Option<Duration> {
        self.parameters.get("connect_timeout")?.parse().ok().map(Duration::from_secs)
    }

    pub(super) fn connect_options(&self) -> Result<PgConnectOptions, LoadError> {
        if let Some(method) = self.authentication_method.as_deref().filter(|m| *m == "google-psc") {
            return Err(LoadError::config(format!(
                "authenticationMethod {method} is not supported yet; use username and password"
            )));
        }
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port.unwrap_or(DEFAULT_PORT))
            .database(&self.database)
            .username(&self.username)
            .password(&self.password)
            // a pooler in transaction mode keeps no prepared statements and refuses this start-up
            // parameter
            .statement_cache_capacity(0)
            .extra_float_digits(None)
            // single events are in their statements
            .disable_statement_logging();
        if let Some(name) = self.parameters.get("application_name") {
            options = options.application_name(name);
        }
        self.with_tls(options)
    }

    /// `; set local …` for the parameters that are settings of a session. Not sent when connecting:
    /// a pooler would refuse them there.
    pub(super) fn session_settings(&self) -> String {
        let settings = self.parameters.iter().filter(|(name, _)| {
            !OF_DRIVERS.contains(&name.as_str()) && *name != "application_name"
        });
        let settings = settings.map(|(name, value)| {
            format!("; set local {} = {}", quote_ident(name), quote_literal(value))
        });
        settings.collect()
    }

    fn with_tls(&self, options: PgConnectOptions) -> Result<PgConnectOptions, LoadError> {
        let named = self.ssl_mode.as_deref().filter(|mode| !mode.is_empty());
        let mode = match named.or(self.parameters.get("sslmode").map(String::as_str)) {
            None | Some("") => return Ok(options),
            Some("disable") => return Ok(options.ssl_mode(PgSslMode::Disable)),
            Some("require") => return Ok(options.ssl_mode(PgSslMode::Require)),
            Some("verify-ca") => PgSslMode::VerifyCa,
            Some("verify-full") => PgSslMode::VerifyFull,
            Some(mode) => return Err(LoadError::config(format!("unsupported ssl mode: {mode}"))),
        };
        let mut options = options.ssl_mode(mode);
        if let Some(pem) = given("sslServerCA", self.ssl_server_ca.as_deref())? {
            options = options.ssl_root_cert_from_pem(pem);
        }
        if let Some(pem) = given("sslClientCert", self.ssl_client_cert.as_deref())? {
            options = options.ssl_client_cert_from_pem(pem);
        }
        if let Some(pem) = given("sslClientKey", self.ssl_client_key.as_deref())? {
            options = options.ssl_client_key_from_pem(as_pkcs8(&pem)?);
        }
        Ok(options)
    }
}

/// A private key in the form that the TLS library takes, whichever it has.
fn as_pkcs8(pem: &[u8]) -> Result<Vec<u8>, LoadError> {
    let key = PKey::private_key_from_pem_passphrase(pem, b"");
    let converted = key.and_then(|key| key.private_key_to_pem_pkcs8());
    converted.map_err(|_| {
        LoadError::config("sslClientKey is not a private key without a password in PEM")
    })
}

/// What serde says of a field, without the value that it found there.
fn without_values(text: &str) -> String {
    match text.split_once("missing field `").and_then(|(_, rest)| rest.split_once('`')) {
        Some((field, _)) => format!("{field} is missing"),
        None => "not an object, or a field has another type than it should".to_owned(),
    }
}

/// Whether a host is the folder of a socket, or a PEM the file that holds it.
fn is_path(value: &str) -> bool {
    value.starts_with('/')
}

/// A PEM that is given as its contents or as an absolute path.
fn given(field: &str, value: Option<&str>) -> Result<Option<Vec<u8>>, LoadError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    if !is_path(value) {
        return Ok(Some(value.as_bytes().to_vec()));
    }
    let read = std::fs::read(value);
    read.map(Some)
        .map_err(|error| LoadError::config(format!("{field}: cannot read {value}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(more: &str) -> Credentials {
        let text = format!(
            r#"{{"host":"h","database":"d","defaultSchema":"s","username":"u","password":"secret"{more}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", credentials("")).contains("secret"));
    }

    #[test]
    fn an_unknown_ssl_mode_is_refused_by_name() {
        let error = credentials(r#","sslMode":"maybe""#).connect_options().unwrap_err();
        assert!(error.to_string().contains("unsupported ssl mode: maybe"), "{error}");
    }

    #[test]
    fn credentials_are_an_object_or_its_text() {
        let object = serde_json::json!({"host": "h", "port": 5433, "database": "d"});
        let yaml = "host: h\nport: 5433\ndatabase: d\n";
        for value in [object.clone(), object.to_string().into(), yaml.into()] {
            let credentials = Credentials::read(&value).unwrap();
            assert_eq!((credentials.host.as_str(), credentials.port), ("h", Some(5433)), "{value}");
        }
    }

    #[test]
    fn unreadable_credentials_name_the_field_and_no_value() {
        let cases = [
            (r#"{"host": "s3cret"}"#, "database is missing"),
            ("host: s3cret", "database is missing"),
            (r#"{"host": ["s3cret"], "database": "d"}"#, "another type"),
            ("s3cret", "not an object"),
        ];
        for (text, expected) in cases {
            let error = Credentials::read(&text.into()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("s3cret"), "{text}: {error}");
        }
    }

    #[test]
    fn parameters_are_settings_of_the_session_or_the_drivers_own() {
        let credentials = credentials(
            r#","parameters":{"work_mem":"64MB","sslmode":"require","pool_max_conns":"5","application_name":"x"}"#,
        );
        assert_eq!(credentials.session_settings(), "; set local \"work_mem\" = '64MB'");
    }

    #[test]
    fn files_of_this_machine_are_refused_alike_whether_they_are_there_or_not() {
        let answer = |more: &str| credentials(more).refuse_local_files().map_err(|e| e.to_string());
        for field in ["sslServerCA", "sslClientCert", "sslClientKey"] {
            let named = |path| answer(&format!(r#","sslMode":"verify-ca","{field}":"{path}""#));
            assert!(named("/etc/passwd").unwrap_err().contains(field));
            for other in ["/nope", "/dev/zero", "/"] {
                assert_eq!(named(other), named("/etc/passwd"), "{field} {other}");
            }
        }
        // a mode that reads no file is no way around it
        assert!(answer(r#","sslMode":"disable","sslClientKey":"/etc/passwd""#).is_err());
        assert_eq!(answer(r#","sslServerCA":"-----BEGIN CERTIFICATE-----""#), Ok(()));
        assert_eq!(answer(r#","sslServerCA":"""#), Ok(()));
        let mut socket = credentials("");
        socket.host = "/var/run/postgresql".to_owned();
        assert!(socket.refuse_local_files().unwrap_err().to_string().contains("host"));
    }

    #[test]
    fn a_schema_is_required() {
        let mut credentials = credentials("");
        credentials.default_schema.clear();
        assert!(credentials.schema().is_err());
    }
}
