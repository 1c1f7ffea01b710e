//! A document over HTTP, asked for with the condition that it changed.

use std::time::Duration;

use axum::body::Bytes;
use reqwest::{
    Client, StatusCode, Url,
    header::{
        ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
    },
};

use super::source::{Document, Source, SourceReadError, SourceSettingsError};

/// For a connection, of the time that a reading may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the document is, and how it is asked for.
pub struct HttpSettings {
    /// `http://…` or `https://…`; may hold a user and a password.
    pub url: String,
    /// Bearer token; sent beside a user and a password of the address, if there are both.
    pub token: Option<String>,
    /// What of an answer the next request is conditional on.
    pub validator: Validator,
    /// Between two requests, from the end of one to the start of the next.
    pub period: Duration,
}

/// What an answer says of its version. An answer without it makes the next request unconditional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validator {
    /// `Last-Modified`, sent back as `If-Modified-Since`.
    LastModified,
    /// `ETag`, sent back as `If-None-Match`.
    ETag,
}

impl Validator {
    fn headers(self) -> (HeaderName, HeaderName) {
        match self {
            Validator::LastModified => (LAST_MODIFIED, IF_MODIFIED_SINCE),
            Validator::ETag => (ETAG, IF_NONE_MATCH),
        }
    }
}

/// A whole answer of status 200.
#[derive(Debug)]
pub struct HttpAnswer {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, to the end.
    pub body: Bytes,
}

/// An address that is asked each period. Redirects are followed; an answer other than 200, or 304
/// to a conditional request, is a failure.
pub struct HttpSource<D> {
    client: Client,
    url: Url,
    token: Option<String>,
    validator: Validator,
    period: Duration,
    parse: fn(&HttpAnswer) -> Result<D, String>,
    /// The version of the last answer that was parsed.
    version: Option<HeaderValue>,
}

impl<D: Document> HttpSource<D> {
    /// Nothing is connected yet. `parse` makes a document of an answer, or says what is wrong with
    /// it without quoting it.
    pub fn new(
        settings: HttpSettings,
        parse: fn(&HttpAnswer) -> Result<D, String>,
    ) -> Result<HttpSource<D>, SourceSettingsError> {
        let HttpSettings { url, token, validator, period } = settings;
        let url = Url::parse(&url).map_err(|_| SourceSettingsError::Address)?;
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| SourceSettingsError::Client(error.without_url().to_string()))?;
        Ok(HttpSource { client, url, token, validator, period, parse, version: None })
    }
}

impl<D: Document> Source for HttpSource<D> {
    type Document = D;

    fn name(&self) -> &'static str {
        "http"
    }

    async fn read(&mut self) -> Result<Option<D>, SourceReadError> {
        let (version_header, condition_header) = self.validator.headers();
        let mut request = self.client.get(self.url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(version) = &self.version {
            request = request.header(condition_header, version);
        }
        let response = request.send().await.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if self.version.is_some() => return Ok(None),
            status => return Err(SourceReadError::new(format!("answered {status}"))),
        }
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(failed)?;
        let answer = HttpAnswer { headers, body };
        let document =
            (self.parse)(&answer).map_err(|problem| SourceReadError::new(problem).of_content())?;
        self.version = answer.headers.get(version_header).cloned();
        Ok(Some(document))
    }

    async fn changed(&mut self) {
        tokio::time::sleep(self.period).await;
    }
}

/// Without the address, which may hold a password.
fn failed(error: reqwest::Error) -> SourceReadError {
    SourceReadError::new(crate::telemetry::chain(&error.without_url()).to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, extract::Request, response::IntoResponse};
    use tokio::net::TcpListener;

    use super::*;
    use crate::repository::samples::Words;

    /// A server that answers with these, one after the other, and the headers that it was sent.
    async fn server(
        mut answers: Vec<(StatusCode, HeaderName, &'static str, &'static str)>,
    ) -> (String, Arc<Mutex<Vec<HeaderMap>>>) {
        answers.reverse();
        let (answers, requests) = (Arc::new(Mutex::new(answers)), Arc::new(Mutex::new(Vec::new())));
        let seen = requests.clone();
        let answer = move |request: Request| async move {
            seen.lock().unwrap().push(request.headers().clone());
            let (status, header, value, body) = answers.lock().unwrap().pop().unwrap();
            (status, [(header, value)], body).into_response()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/words", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, requests)
    }

    fn source(url: String, token: Option<&str>, validator: Validator) -> HttpSource<Words> {
        let token = token.map(str::to_owned);
        let settings = HttpSettings { url, token, validator, period: Duration::from_secs(1) };
        HttpSource::new(settings, |answer| Words::parse(&answer.body)).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_conditional_on_the_version_of_the_last_answer_that_was_parsed() {
        for (validator, version_header, condition_header) in [
            (Validator::LastModified, LAST_MODIFIED, IF_MODIFIED_SINCE),
            (Validator::ETag, ETAG, IF_NONE_MATCH),
        ] {
            let (url, requests) = server(vec![
                (StatusCode::OK, version_header.clone(), "first", "one."),
                (StatusCode::NOT_MODIFIED, version_header.clone(), "first", ""),
                (StatusCode::OK, version_header.clone(), "second", "one tw"),
                (StatusCode::OK, version_header, "second", "one two."),
                (StatusCode::OK, HeaderName::from_static("x-other"), "", "one two three."),
                (StatusCode::NOT_MODIFIED, HeaderName::from_static("x-other"), "", ""),
            ])
            .await;
            let mut source = source(url, None, validator);
            assert_eq!(source.read().await.unwrap(), Some(Words::of("one")));
            assert_eq!(source.read().await.unwrap(), None);
            assert_eq!(source.read().await.unwrap_err().label, "parse_error");
            assert_eq!(source.read().await.unwrap(), Some(Words::of("one two")));
            assert_eq!(source.read().await.unwrap(), Some(Words::of("one two three")));
            let error = source.read().await.unwrap_err(); // 304, although nothing was asked for
            assert_eq!(error.to_string(), "answered 304 Not Modified");
            let conditions: Vec<_> = requests
                .lock()
                .unwrap()
                .iter()
                .map(|headers| headers.get(&condition_header).cloned())
                .collect();
            let sent = |version| Some(HeaderValue::from_static(version));
            let expected =
                [None, sent("first"), sent("first"), sent("first"), sent("second"), None];
            assert_eq!(conditions, expected);
        }
    }

    #[tokio::test]
    async fn the_token_is_sent_and_no_error_holds_the_address() {
        let other = HeaderName::from_static("x-other");
        let (url, requests) = server(vec![(StatusCode::OK, other, "", ".")]).await;
        let mut with_token = source(url, Some("t0ken"), Validator::LastModified);
        with_token.read().await.unwrap();
        assert_eq!(requests.lock().unwrap()[0]["authorization"], "Bearer t0ken");

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:s3cret@{}/words", listener.local_addr().unwrap());
        drop(listener);
        let error = source(url, None, Validator::LastModified).read().await.unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        let settings = HttpSettings {
            url: "http://s3cret:[".to_owned(),
            token: None,
            validator: Validator::ETag,
            period: Duration::from_secs(1),
        };
        let refused = HttpSource::<Words>::new(settings, |_| Err(String::new())).map(|_| ());
        assert_eq!(refused, Err(SourceSettingsError::Address));
    }
}
