//! `/debug/pprof`: where the original has the profiles of Go's runtime.

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};

use crate::routes::AdminToken;

const TEXT: &str =
    "404 there is no Go runtime to profile here: use perf on the process, and /metrics\n";

/// 404, with the reason.
pub(in crate::routes) async fn no_profile(_: AdminToken) -> Response {
    (StatusCode::NOT_FOUND, [(CONTENT_TYPE, "text/plain")], TEXT).into_response()
}
