//! From the first signal to the last line: one token that says stop, one deadline for all that
//! follows.

use std::{future::Future, io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// A token that the first SIGINT or SIGTERM cancels; later signals are ignored, the deadline rules
/// then. To be called within a runtime; fails where signals cannot be watched.
pub fn stop_on_signal() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        info!(signal = name, "stopping");
        cancelled.cancel();
    });
    Ok(stop)
}

/// The moment by which everything has to be over, shared by the steps of a stop.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The moment that is this far from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline(Instant::now() + time)
    }

    /// What is left; zero once it is over.
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The result of `work`, or `None` if the deadline came first: `work` is dropped then.
    pub async fn cut<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.0, work).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_cuts_what_takes_longer() {
        let deadline = Deadline::after(Duration::from_millis(20));
        assert_eq!(deadline.cut(async { 5 }).await, Some(5));
        assert_eq!(deadline.cut(std::future::pending::<()>()).await, None);
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }
}
