//! How to reach a PostgreSQL destination, as its configuration says it.

use std::{collections::BTreeMap, fmt, time::Duration};

use openssl::pkey::PKey;
use serde::Deserialize;
use serde_json::Value;
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgSslMode},
};

use super::parameters;
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
    /// `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`.
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
            ("sslServerCA", self.ssl_server_ca.as_deref()),
            ("sslClientCert", self.ssl_client_cert.as_deref()),
            ("sslClientKey", self.ssl_client_key.as_deref()),
        ];
        let files = ["sslrootcert", "sslcert", "sslkey"].map(|name| (name, self.parameter(name)));
        let mut paths = fields.iter().chain(&files);
        match paths.find(|(_, value)| value.is_some_and(is_path)) {
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

    /// `; set local …` for the parameters that are settings of a session.
    pub(super) fn session_settings(&self) -> String {
        parameters::session_settings(&self.parameters)
    }

    fn with_tls(&self, options: PgConnectOptions) -> Result<PgConnectOptions, LoadError> {
        let named = self.ssl_mode.as_deref().filter(|mode| !mode.is_empty());
        let ca = self.pem("sslServerCA", &self.ssl_server_ca, "sslrootcert");
        let mode = match named.or(self.parameter("sslmode")) {
            None => return Ok(options),
            Some("disable") => return Ok(options.ssl_mode(PgSslMode::Disable)),
            // the driver knows no way to try without TLS first; with it first is as good
            Some("allow" | "prefer") => return Ok(options.ssl_mode(PgSslMode::Prefer)),
            // as libpq has it: whoever names a certificate wants it looked at
            Some("require") if self.parameter("sslrootcert").is_some() => PgSslMode::VerifyCa,
            Some("require") => return Ok(options.ssl_mode(PgSslMode::Require)),
            Some("verify-ca") => PgSslMode::VerifyCa,
            Some("verify-full") => PgSslMode::VerifyFull,
            Some(mode) => return Err(LoadError::config(format!("unsupported ssl mode: {mode}"))),
        };
        let mut options = options.ssl_mode(mode);
        if let Some(pem) = ca? {
            options = options.ssl_root_cert_from_pem(pem);
        }
        if let Some(pem) = self.pem("sslClientCert", &self.ssl_client_cert, "sslcert")? {
            options = options.ssl_client_cert_from_pem(pem);
        }
        if let Some(pem) = self.pem("sslClientKey", &self.ssl_client_key, "sslkey")? {
            let password = self.parameter("sslpassword").unwrap_or_default();
            options = options.ssl_client_key_from_pem(as_pkcs8(&pem, password)?);
        }
        Ok(options)
    }

    /// A parameter that is not empty.
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A PEM that a field gives, else the parameter that libpq has for it.
    fn pem(
        &self,
        field: &str,
        value: &Option<String>,
        parameter: &str,
    ) -> Result<Option<Vec<u8>>, LoadError> {
        match given(field, value.as_deref())? {
            Some(pem) => Ok(Some(pem)),
            None => given(parameter, self.parameter(parameter)),
        }
    }
}

/// A private key in the form that the TLS library takes, whichever it has.
fn as_pkcs8(pem: &[u8], password: &str) -> Result<Vec<u8>, LoadError> {
    let key = PKey::private_key_from_pem_passphrase(pem, password.as_bytes());
    let converted = key.and_then(|key| key.private_key_to_pem_pkcs8());
    converted.map_err(|_| {
        LoadError::config("sslClientKey is not a private key in PEM, or its password is another")
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
    fn the_modes_that_take_what_they_get_are_taken() {
        for mode in ["prefer", "allow"] {
            let named = [
                format!(r#","sslMode":"{mode}""#),
                format!(r#","parameters":{{"sslmode":"{mode}"}}"#),
            ];
            for more in named {
                let options = credentials(&more).connect_options().unwrap();
                assert!(matches!(options.get_ssl_mode(), PgSslMode::Prefer), "{more}");
            }
        }
    }

    #[test]
    fn files_of_tls_may_be_parameters_but_not_a_clients() {
        let missing = credentials(
            r#","parameters":{"sslmode":"verify-full","sslrootcert":"/nowhere/ca.pem"}"#,
        );
        let error = missing.connect_options().unwrap_err().to_string();
        assert!(error.contains("sslrootcert: cannot read /nowhere/ca.pem"), "{error}");
        let refused = missing.refuse_local_files().unwrap_err().to_string();
        assert!(refused.contains("sslrootcert: files of this machine are not read"), "{refused}");
    }

    #[test]
    fn a_schema_is_required() {
        let mut credentials = credentials("");
        credentials.default_schema.clear();
        assert!(credentials.schema().is_err());
    }
}
