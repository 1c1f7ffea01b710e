//! How to reach a PostgreSQL destination, as its configuration says it.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::error::LoadError;

const DEFAULT_PORT: u16 = 5432;

/// The `credentials` of a destination of type `postgres`. Its `Debug` shows no secret.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    pub host: String,
    #[serde(default)]
    pub port: Option<u16>,
    pub database: String,
    #[serde(default)]
    pub default_schema: String,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
    /// Settings of the connection; `connect_timeout` is in seconds.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    #[serde(default)]
    pub ssl_mode: Option<String>,
    /// Contents or absolute paths; used with the two verifying modes.
    #[serde(default, rename = "sslServerCA")]
    pub ssl_server_ca: Option<String>,
    #[serde(default)]
    pub ssl_client_cert: Option<String>,
    #[serde(default)]
    pub ssl_client_key: Option<String>,
    #[serde(default)]
    pub authentication_method: Option<String>,
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
    /// The schema of tables without a namespace.
    pub(crate) fn schema(&self) -> Result<&str, LoadError> {
        match self.default_schema.as_str() {
            "" => Err(LoadError::config("defaultSchema is required")),
            schema => Ok(schema),
        }
    }

    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.parameters.get("connect_timeout")?.parse().ok().map(Duration::from_secs)
    }

    pub(crate) fn connect_options(&self) -> Result<PgConnectOptions, LoadError> {
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
            // a pooler in transaction mode keeps no prepared statements and refuses this start-up parameter
            .statement_cache_capacity(0)
            .extra_float_digits(None);
        for (name, value) in &self.parameters {
            options = match name.as_str() {
                "connect_timeout" => options,
                "application_name" => options.application_name(value),
                _ => options.options([(name, value)]),
            };
        }
        self.with_tls(options)
    }

    fn with_tls(&self, options: PgConnectOptions) -> Result<PgConnectOptions, LoadError> {
        let mode = match self.ssl_mode.as_deref() {
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
            options = options.ssl_client_key_from_pem(pem);
        }
        Ok(options)
    }
}

/// A PEM that is given as its contents or as an absolute path.
fn given(field: &str, value: Option<&str>) -> Result<Option<Vec<u8>>, LoadError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    if !value.starts_with('/') {
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
    fn a_schema_is_required() {
        let mut credentials = credentials("");
        credentials.default_schema.clear();
        assert!(credentials.schema().is_err());
    }
}
