//! `/metrics`, as Prometheus reads it.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use tracing::error;

use loader::Stats;

use crate::routes::Authorized;

/// How long a reply waits for counters that destinations keep; Prometheus gives up after 10 s,
/// unless told otherwise.
const COUNTERS_WITHIN: Duration = Duration::from_secs(5);

/// All metrics of the process as text, for senders with a token.
pub(in crate::routes) async fn guarded_metrics(
    _: Authorized,
    stats: State<Arc<Stats>>,
) -> Response {
    metrics(stats).await
}

/// All metrics of the process as text.
pub(in crate::routes) async fn metrics(State(stats): State<Arc<Stats>>) -> Response {
    stats.refresh_within(COUNTERS_WITHIN).await;
    match appbase::metrics::render() {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            error!(error = %error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
