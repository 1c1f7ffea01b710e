//! The HTTP API: who may ask, and what answers.

mod events;
mod log;
mod metrics;
mod post;
mod probes;
mod range;
mod write_keys;

use std::sync::Arc;

use appbase::http::{error_reply, not_found, redirect_to_route};
use axum::{
    Router,
    extract::FromRequestParts,
    http::{Method, StatusCode, Uri, header::AUTHORIZATION, request::Parts},
    response::Response,
    routing::{MethodFilter, on},
};

use crate::state::AppState;

/// Methods and paths, for redirects of those that differ by a slash at the end.
const ROUTES: [(Method, &str); 6] = [
    (Method::POST, "/post/{destinationId}"),
    (Method::GET, "/log/{eventType}/{actorId}"),
    (Method::GET, "/events"),
    (Method::GET, "/metrics"),
    (Method::GET, "/ready"),
    (Method::GET, "/health"),
];

/// The API on the main port.
pub fn router(state: Arc<AppState>) -> Router {
    let open = Router::new()
        .route("/ready", on(MethodFilter::GET, probes::ready).fallback(no_method))
        .route("/health", on(MethodFilter::GET, probes::health).fallback(no_method));
    let guarded = Router::new()
        .route("/post/{destinationId}", on(MethodFilter::POST, post::post).fallback(no_route))
        .route("/log/{eventType}/{actorId}", on(MethodFilter::GET, log::log).fallback(no_route))
        .route("/events", on(MethodFilter::GET, events::events).fallback(no_route))
        .route("/metrics", on(MethodFilter::GET, metrics::guarded_metrics).fallback(no_route))
        .fallback(no_route);
    open.merge(guarded).with_state(state)
}

/// Metrics alone, without tokens.
pub fn metrics_router() -> Router {
    Router::new()
        .route("/metrics", on(MethodFilter::GET, metrics::metrics).fallback(no_method))
        .fallback(async || not_found())
}

/// A wrong method of a path that is open to everybody.
async fn no_method() -> Response {
    not_found()
}

/// Everything else. A path that only differs by a slash is redirected, without a look at the token.
async fn no_route(method: Method, uri: Uri, access: Result<Authorized, Response>) -> Response {
    if let Some(redirect) = redirect_to_route(&method, &uri, &ROUTES) {
        return redirect;
    }
    access.err().unwrap_or_else(not_found)
}

/// A sender with a known token. 401 for everybody else.
struct Authorized;

impl FromRequestParts<Arc<AppState>> for Authorized {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<AppState>,
    ) -> Result<Authorized, Response> {
        let header = parts.headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        match state.auth.check(header) {
            Ok(_) => Ok(Authorized),
            Err(error) => Err(error_reply(StatusCode::UNAUTHORIZED, &error.to_string())),
        }
    }
}
