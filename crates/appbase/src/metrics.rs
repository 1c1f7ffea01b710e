//! Metrics as Prometheus text.

use prometheus::TextEncoder;

/// Content type of [`render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Everything that was registered in the process' default registry. Names stay as registered. Fails
/// where a collector gives what cannot be written; those that the crate makes never do.
pub fn render() -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&prometheus::gather())
}
