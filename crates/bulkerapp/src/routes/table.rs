//! The table of routes: the one list that the router, the redirects and the test of the guide read.

use axum::{
    http::Method,
    routing::{MethodFilter, MethodRouter, on},
};

use super::{admin, intake, observe};
use crate::state::AppState;

/// All routes of the main port. A new endpoint is a handler, a line here and one in DEPLOYMENT.md.
pub static ROUTES: [Route; 17] = [
    guarded(Method::POST, "/post/{destinationId}", |of| on(of, intake::post)),
    guarded(Method::POST, "/bulk/{destinationId}", |of| on(of, intake::bulk)),
    guarded(Method::POST, "/profiles/{profileBuilderId}/{priority}", |of| on(of, intake::profiles)),
    guarded(Method::POST, "/test", |of| on(of, intake::test)),
    guarded(Method::GET, "/failed/{destinationId}", |of| on(of, admin::failed)),
    guarded(Method::POST, "/destinations/{destinationId}/pause", |of| on(of, admin::pause)),
    guarded(Method::POST, "/destinations/{destinationId}/resume", |of| on(of, admin::resume)),
    guarded(Method::GET, "/stats", |of| on(of, observe::all_stats)),
    guarded(Method::GET, "/stats/{destinationId}", |of| on(of, observe::stats_of_one)),
    guarded(Method::GET, "/log/{eventType}/{actorId}", |of| on(of, observe::log)),
    guarded(Method::GET, "/events", |of| on(of, observe::events)),
    guarded(Method::GET, "/connections-metrics/{workspaceId}", |of| {
        on(of, observe::connections_metrics)
    }),
    guarded(Method::GET, "/metrics", |of| on(of, observe::guarded_metrics)),
    guarded(Method::GET, "/debug/pprof", |of| on(of, observe::no_profile)),
    guarded(Method::GET, "/debug/pprof/{profile}", |of| on(of, observe::no_profile)),
    open(Method::GET, "/ready", |of| on(of, observe::ready)),
    open(Method::GET, "/health", |of| on(of, observe::health)),
];

/// A line of the table.
pub struct Route {
    pub method: Method,
    /// Segments in braces are parameters.
    pub path: &'static str,
    pub access: Access,
    handler: fn(MethodFilter) -> MethodRouter<AppState>,
}

/// Who is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// All who ask.
    Open,
    /// Senders with a token; the handler says of which kind.
    Guarded,
}

impl Route {
    /// The handler under its method.
    pub(super) fn methods(&self) -> MethodRouter<AppState> {
        let filter = MethodFilter::try_from(self.method.clone());
        (self.handler)(filter.expect("the methods of the table are those that axum knows"))
    }
}

const fn guarded(
    method: Method,
    path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<AppState>,
) -> Route {
    Route { method, path, access: Access::Guarded, handler }
}

const fn open(
    method: Method,
    path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<AppState>,
) -> Route {
    Route { method, path, access: Access::Open, handler }
}
