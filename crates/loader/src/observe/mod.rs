//! What operators and other services see of loading.

pub(crate) mod metrics;
pub(crate) mod reporter;
pub(crate) mod snapshot;
pub(crate) mod stats;
