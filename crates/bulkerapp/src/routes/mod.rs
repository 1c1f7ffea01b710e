//! The HTTP API: who may ask, and what answers.

mod access;
mod admin;
mod encoding;
mod intake;
mod masked;
mod observe;
mod query;
mod table;

use std::sync::Arc;

use appbase::http::{not_found, redirect_to_route};
use axum::{
    Router,
    http::{Method, Uri},
    response::Response,
    routing::{MethodFilter, on},
};

pub use table::{Access, ROUTES, Route};

use loader::Stats;

use crate::state::AppState;
use access::{AdminToken, Authorized, BodyReader, IsAdmin};

/// The API on the main port.
pub fn router(state: AppState) -> Router {
    let (mut open, mut guarded) = (Router::new(), Router::new());
    for route in &ROUTES {
        let router = match route.access {
            Access::Open => &mut open,
            Access::Guarded => &mut guarded,
        };
        *router = std::mem::take(router).route(route.path, route.methods());
    }
    open.method_not_allowed_fallback(no_method)
        .merge(guarded.method_not_allowed_fallback(no_route))
        .fallback(no_route)
        .with_state(state)
}

/// Metrics alone, without tokens.
pub fn metrics_router(stats: Arc<Stats>) -> Router {
    Router::new()
        .route("/metrics", on(MethodFilter::GET, observe::metrics).fallback(no_method))
        .fallback(async || not_found())
        .with_state(stats)
}

/// A wrong method of an open path.
async fn no_method() -> Response {
    not_found()
}

/// Everything else. A path that only differs by a slash is redirected, without a look at the token.
async fn no_route(method: Method, uri: Uri, access: Result<Authorized, Response>) -> Response {
    let routes = ROUTES.iter().map(|route| (&route.method, route.path));
    if let Some(redirect) = redirect_to_route(&method, &uri, routes) {
        return redirect;
    }
    access.err().unwrap_or_else(not_found)
}
