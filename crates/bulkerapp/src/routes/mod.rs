//! The HTTP API: who may ask, and what answers.

mod admin;
mod intake;
mod masked;
mod observe;
mod query;

use std::sync::Arc;

use appbase::{
    auth::{Access, AuthError},
    http::{error_reply, not_found, redirect_to_route},
};
use axum::{
    Router,
    extract::FromRequestParts,
    http::{Method, StatusCode, Uri, header::AUTHORIZATION, request::Parts},
    response::Response,
    routing::{MethodFilter, on},
};

pub use admin::FailedEvents;
pub use intake::BulkPermits;

use crate::{loading::Stats, state::AppState};

/// Methods and paths, for redirects of those that differ by a slash at the end.
const ROUTES: [(Method, &str); 17] = [
    (Method::POST, "/post/{destinationId}"),
    (Method::POST, "/bulk/{destinationId}"),
    (Method::POST, "/profiles/{profileBuilderId}/{priority}"),
    (Method::POST, "/test"),
    (Method::GET, "/failed/{destinationId}"),
    (Method::GET, "/connections-metrics/{workspaceId}"),
    (Method::GET, "/debug/pprof"),
    (Method::GET, "/debug/pprof/{profile}"),
    (Method::POST, "/destinations/{destinationId}/pause"),
    (Method::POST, "/destinations/{destinationId}/resume"),
    (Method::GET, "/stats"),
    (Method::GET, "/stats/{destinationId}"),
    (Method::GET, "/log/{eventType}/{actorId}"),
    (Method::GET, "/events"),
    (Method::GET, "/metrics"),
    (Method::GET, "/ready"),
    (Method::GET, "/health"),
];

/// The API on the main port.
pub fn router(state: Arc<AppState>) -> Router {
    let open = Router::new()
        .route("/ready", on(MethodFilter::GET, observe::ready).fallback(no_method))
        .route("/health", on(MethodFilter::GET, observe::health).fallback(no_method));
    let guarded = Router::new()
        .route("/post/{destinationId}", on(MethodFilter::POST, intake::post).fallback(no_route))
        .route("/bulk/{destinationId}", on(MethodFilter::POST, intake::bulk).fallback(no_route))
        .route(
            "/profiles/{profileBuilderId}/{priority}",
            on(MethodFilter::POST, intake::profiles).fallback(no_route),
        )
        .route("/test", on(MethodFilter::POST, intake::test).fallback(no_route))
        .route("/failed/{destinationId}", on(MethodFilter::GET, admin::failed).fallback(no_route))
        .route(
            "/connections-metrics/{workspaceId}",
            on(MethodFilter::GET, observe::connections_metrics).fallback(no_route),
        )
        .route("/debug/pprof", on(MethodFilter::GET, observe::no_profile).fallback(no_route))
        .route(
            "/debug/pprof/{profile}",
            on(MethodFilter::GET, observe::no_profile).fallback(no_route),
        )
        .route("/log/{eventType}/{actorId}", on(MethodFilter::GET, observe::log).fallback(no_route))
        .route("/events", on(MethodFilter::GET, observe::events).fallback(no_route))
        .route(
            "/destinations/{destinationId}/pause",
            on(MethodFilter::POST, admin::pause).fallback(no_route),
        )
        .route(
            "/destinations/{destinationId}/resume",
            on(MethodFilter::POST, admin::resume).fallback(no_route),
        )
        .route("/stats", on(MethodFilter::GET, observe::all_stats).fallback(no_route))
        .route(
            "/stats/{destinationId}",
            on(MethodFilter::GET, observe::stats_of_one).fallback(no_route),
        )
        .route("/metrics", on(MethodFilter::GET, observe::guarded_metrics).fallback(no_route))
        .fallback(no_route);
    open.merge(guarded).with_state(state)
}

/// Metrics alone, without tokens.
pub fn metrics_router(stats: Arc<Stats>) -> Router {
    Router::new()
        .route("/metrics", on(MethodFilter::GET, observe::metrics).fallback(no_method))
        .fallback(async || not_found())
        .with_state(stats)
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

/// A sender with an administrator's token where there are such tokens, else with any known one. 403 for a token that is
/// known and not enough, 401 for everybody else.
struct AdminToken;

impl FromRequestParts<Arc<AppState>> for Authorized {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<AppState>,
    ) -> Result<Authorized, Response> {
        check(parts, state).map(|_| Authorized).map_err(refusal)
    }
}

impl FromRequestParts<Arc<AppState>> for AdminToken {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<AppState>,
    ) -> Result<AdminToken, Response> {
        match check(parts, state).map_err(refusal)? {
            Access::Admin => Ok(AdminToken),
            Access::User => Err(refusal(AuthError::NotAdmin)),
        }
    }
}

fn check(parts: &Parts, state: &AppState) -> Result<Access, AuthError> {
    state.auth.check(parts.headers.get(AUTHORIZATION).map(|value| value.as_bytes()))
}

fn refusal(error: AuthError) -> Response {
    let status = match error {
        AuthError::NotAdmin => StatusCode::FORBIDDEN,
        AuthError::Missing | AuthError::Invalid => StatusCode::UNAUTHORIZED,
    };
    error_reply(status, &error.to_string())
}
