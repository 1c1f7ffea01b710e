//! The loader's clock. A debug build lets a test set it ahead or behind while it runs: the machine's
//! own clock belongs to all others, too.

use loader::Clock;

/// The machine's clock.
#[cfg(not(debug_assertions))]
pub(super) fn clock() -> Clock {
    Clock::default()
}

/// The machine's clock, or as many seconds ahead of it as the file says that
/// `BULKER_TEST_CLOCK_FILE` names.
#[cfg(debug_assertions)]
pub(super) fn clock() -> Clock {
    const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(500);
    let clock = Clock::default();
    if let Some(path) = std::env::var_os("BULKER_TEST_CLOCK_FILE") {
        let stepped = clock.clone();
        tokio::spawn(async move {
            loop {
                let text = tokio::fs::read_to_string(&path).await.unwrap_or_default();
                if let Ok(seconds) = text.trim().parse() {
                    stepped.set_ahead(seconds);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }
    clock
}
