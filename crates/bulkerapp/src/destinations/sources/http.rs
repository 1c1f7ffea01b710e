//! Destinations over HTTP: a JSON array, as a console exports it.

use std::time::Duration;

use reqwest::{
    Client, StatusCode, Url,
    header::{HeaderValue, IF_MODIFIED_SINCE, LAST_MODIFIED},
};
use serde_json::Value;

use super::{ReadError, SourceError};
use crate::destinations::document::Document;

/// For a connection, of the time that a reading may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct HttpSource {
    client: Client,
    url: Url,
    token: Option<String>,
    /// Of the last answer that was read.
    last_modified: Option<HeaderValue>,
}

impl HttpSource {
    pub(super) fn new(url: &str, token: Option<String>) -> Result<HttpSource, SourceError> {
        let url = Url::parse(url).map_err(|_| SourceError::Url("http://"))?;
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| SourceError::Client(error.without_url().to_string()))?;
        Ok(HttpSource { client, url, token, last_modified: None })
    }

    pub(super) async fn read(&mut self) -> Result<Option<Document>, ReadError> {
        let mut request = self.client.get(self.url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(last_modified) = &self.last_modified {
            request = request.header(IF_MODIFIED_SINCE, last_modified);
        }
        let response = request.send().await.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if self.last_modified.is_some() => return Ok(None),
            status => return Err(ReadError::new(format!("answered {status}"))),
        }
        let last_modified = response.headers().get(LAST_MODIFIED).cloned();
        let body = response.bytes().await.map_err(failed)?;
        let elements: Vec<Value> = serde_json::from_slice(&body).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            ReadError::new(format!("the answer is not a JSON array ({place})")).of_content()
        })?;
        self.last_modified = last_modified;
        Ok(Some(Document::of_array(elements)))
    }
}

/// Without the address, which may hold a password.
fn failed(error: reqwest::Error) -> ReadError {
    ReadError::new(appbase::telemetry::chain(&error.without_url()).to_string())
}
