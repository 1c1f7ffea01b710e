//! A console that exports destinations over HTTP, as the HTTP source asks for them.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{AUTHORIZATION, IF_MODIFIED_SINCE, LAST_MODIFIED},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) const CONSOLE_TOKEN: &str = "console-token";

/// Serves one document on a port of its own until it is dropped.
pub(crate) struct Console {
    port: u16,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    document: Mutex<(u32, String)>,
    /// Questions answered with 304.
    unchanged: Mutex<u32>,
}

impl Console {
    pub(crate) async fn start(document: &Value) -> Result<Console> {
        Console::start_on(testkit::free_port()?, document).await
    }

    pub(crate) async fn start_on(port: u16, document: &Value) -> Result<Console> {
        let shared = Arc::new(Shared::default());
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let router = Router::new().route("/export", get(export)).with_state(shared.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the console ended: {error}");
            }
        });
        let console = Console { port, shared, serving };
        console.set(document);
        Ok(console)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/export", self.port)
    }

    pub(crate) fn set(&self, document: &Value) {
        self.set_text(&document.to_string());
    }

    pub(crate) fn set_text(&self, text: &str) {
        let mut document = self.shared.document.lock().expect("nobody panics while holding it");
        *document = (document.0 + 1, text.to_owned());
    }

    pub(crate) fn unchanged(&self) -> u32 {
        *self.shared.unchanged.lock().expect("nobody panics while holding it")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn export(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let bearer = format!("Bearer {CONSOLE_TOKEN}");
    if headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) != Some(bearer.as_str()) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let (version, text) = shared.document.lock().expect("nobody panics while holding it").clone();
    // a time for each version
    let modified = format!("Tue, 24 Nov 2026 10:{:02}:{:02} GMT", version / 60, version % 60);
    if headers.get(IF_MODIFIED_SINCE).is_some_and(|since| since == modified.as_str()) {
        *shared.unchanged.lock().expect("nobody panics while holding it") += 1;
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let modified = HeaderValue::from_str(&modified).expect("a time is a value of a header");
    ([(LAST_MODIFIED, modified)], text).into_response()
}
