//! `/metrics`, as Prometheus reads it.

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use tracing::error;

use super::Authorized;

/// All metrics of the process as text, for whoever has a token.
pub(super) async fn guarded_metrics(_: Authorized) -> Response {
    metrics().await
}

/// All metrics of the process as text.
pub(super) async fn metrics() -> Response {
    match appbase::metrics::render() {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            error!(error = %error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
