//! Logs on standard error, as text or JSON, and errors with their causes.

mod format;

use std::{error::Error, fmt, io};

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

pub use format::LogFormat;
use format::LogLayer;

/// What is logged when `RUST_LOG` does not say otherwise.
const DEFAULT_FILTER: &str = "info";

/// Never logged, whatever `RUST_LOG` says: texts that functions in a database send to their clients,
/// which may hold values of rows.
const NEVER: &str = "sqlx::postgres::notice=off";

/// Starts logging, of what `RUST_LOG` names, else from `info` on. Only the first call of a process
/// has an effect.
pub fn init(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let filter = filter.add_directive(NEVER.parse().expect("a directive"));
    let layer = LogLayer::new(format, io::stderr);
    // fails when a test has installed a subscriber already, which is then the one to use
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

/// An error with its causes, as `outer: cause: root`.
pub fn chain<E: Error + ?Sized>(error: &E) -> Chain<'_, E> {
    Chain(error)
}

/// Prints an error with its causes; see [`chain`].
pub struct Chain<'a, E: ?Sized>(&'a E);

impl<E: Error + ?Sized> fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("batch not loaded")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_chain_names_every_cause() {
        let error = Outer(io::Error::other("connection reset"));
        assert_eq!(chain(&error).to_string(), "batch not loaded: connection reset");
    }
}
