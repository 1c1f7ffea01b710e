//! The log in ClickHouse: the table `events_log`, which an administrator makes and trims. Spoken
//! over HTTP.

mod read;
mod write;

use std::time::Duration;

use reqwest::{Client, Url, redirect::Policy};

use crate::{EventsLogConfig, OpenError, StoreError};

/// The longest that making a connection takes.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The longest a call takes.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Where ClickHouse names the number of an error.
const ERROR_CODE: &str = "x-clickhouse-exception-code";

/// A table on one ClickHouse.
pub(crate) struct ClickHouseLog {
    http: Client,
    /// With the database.
    url: Url,
    user: String,
    password: String,
}

impl ClickHouseLog {
    pub(crate) fn open(host: &str, config: &EventsLogConfig) -> Result<ClickHouseLog, OpenError> {
        let scheme = if config.clickhouse_ssl { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://{host}/"));
        let mut url = url.map_err(|_| OpenError::ClickHouseHost)?;
        if let Some(database) = &config.clickhouse_database {
            url.query_pairs_mut().append_pair("database", database);
        }
        let http = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(CALL_LIMIT)
            .no_proxy() // a library reads no environment
            .redirect(Policy::none()) // the password would go along
            .tls_danger_accept_invalid_certs(config.clickhouse_ssl_skip_verify)
            .build()
            .map_err(OpenError::Http)?;
        let user = config.clickhouse_username.clone();
        let password = config.clickhouse_password.clone().unwrap_or_default();
        Ok(ClickHouseLog { http, url, user, password })
    }

    /// Runs a statement with these settings and returns the answer's body.
    async fn call(
        &self,
        settings: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<bytes::Bytes, StoreError> {
        let mut url = self.url.clone();
        url.query_pairs_mut().extend_pairs(settings);
        let request = self
            .http
            .post(url)
            .header("X-ClickHouse-User", &self.user)
            .header("X-ClickHouse-Key", &self.password)
            .body(body);
        let response = request.send().await.map_err(StoreError::of_http)?;
        let code = response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok());
        if !response.status().is_success() || code.is_some() {
            let code = code.unwrap_or("unknown").to_owned();
            return Err(StoreError::ClickHouseRefused { status: response.status().into(), code });
        }
        response.bytes().await.map_err(StoreError::of_http)
    }
}

impl std::fmt::Debug for ClickHouseLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseLog").field("user", &self.user).finish_non_exhaustive()
    }
}
