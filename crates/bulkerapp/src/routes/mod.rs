//! The HTTP API: who may ask, and what answers.

mod metrics;
mod post;
mod probes;

use appbase::{
    auth::AuthError,
    http::{error_reply, not_found, redirect_to_route},
};
use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, header::AUTHORIZATION},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{MethodFilter, on},
};

use crate::state::AppState;

/// Methods and paths, for redirects of those that differ by a slash at the end.
const ROUTES: [(Method, &str); 4] = [
    (Method::POST, "/post/{destinationId}"),
    (Method::GET, "/metrics"),
    (Method::GET, "/ready"),
    (Method::GET, "/health"),
];

/// The API on the main port.
pub fn router(state: AppState) -> Router {
    let open = Router::new()
        .route("/ready", on(MethodFilter::GET, probes::ready).fallback(no_method))
        .route("/health", on(MethodFilter::GET, probes::health).fallback(no_method));
    let guarded = Router::new()
        .route("/post/{destinationId}", on(MethodFilter::POST, post::post).fallback(no_method))
        .route("/metrics", on(MethodFilter::GET, metrics::metrics).fallback(no_method))
        .fallback(no_route)
        .layer(from_fn_with_state(state.clone(), require_token));
    open.merge(guarded).with_state(state)
}

/// Metrics alone, without tokens.
pub fn metrics_router() -> Router {
    Router::new()
        .route("/metrics", on(MethodFilter::GET, metrics::metrics).fallback(no_method))
        .fallback(async || not_found())
}

async fn no_method() -> Response {
    not_found()
}

async fn no_route(method: Method, request: Request) -> Response {
    redirect_to_route(&method, request.uri(), &ROUTES).unwrap_or_else(not_found)
}

/// 401 without a known token. A path that only differs by a slash is redirected before.
async fn require_token(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    match state.auth.check(header) {
        Ok(_) => next.run(request).await,
        Err(error) => match redirect_to_route(request.method(), request.uri(), &ROUTES) {
            Some(redirect) => redirect,
            None => unauthorized(error),
        },
    }
}

fn unauthorized(error: AuthError) -> Response {
    error_reply(StatusCode::UNAUTHORIZED, &error.to_string())
}
