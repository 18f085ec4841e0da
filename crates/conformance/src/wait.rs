//! Waiting for what must come, without sleeping for a fixed time.

use std::time::{Duration, Instant};

/// How long what must come may take, on a busy machine and a real server.
pub const SOON: Duration = Duration::from_secs(20);

const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// Looks until it holds.
///
/// # Panics
/// When it does not within [`SOON`].
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        look_again(what, deadline).await;
    }
}

/// As [`until`], for what has to be asked.
///
/// # Panics
/// When it does not hold within [`SOON`].
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        look_again(what, deadline).await;
    }
}

async fn look_again(what: &str, deadline: Instant) {
    assert!(Instant::now() < deadline, "{what} did not come");
    tokio::time::sleep(BETWEEN_LOOKS).await;
}
