//! Waiting for a condition instead of sleeping for luck.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(20);

/// Asks until `condition` holds; an error when it does not within `limit`.
pub async fn wait_until<F>(limit: Duration, mut condition: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + limit;
    while !condition().await {
        if Instant::now() >= deadline {
            bail!("the condition did not hold within {limit:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Runs `work` to its end on a thread with a runtime of its own: for `Drop`, which cannot await,
/// and may run inside any runtime or none.
pub(crate) fn on_own_thread(
    limit: Duration,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<()> {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move { tokio::time::timeout(limit, work).await? })
    });
    thread.join().unwrap_or_else(|_| bail!("the clean-up panicked"))
}
