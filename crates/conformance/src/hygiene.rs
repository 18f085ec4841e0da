//! What a test must leave behind: nothing.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

/// The longest a case may take, on a busy machine and a real server.
pub const CASE_LIMIT: Duration = Duration::from_secs(120);

/// How long the background work of what was dropped may take to end.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// Runs a case: one that hangs fails, and so does one that leaves a task behind.
pub async fn case(run: impl Future<Output = ()>) {
    let done = tokio::time::timeout(CASE_LIMIT, Box::pin(run)).await;
    assert!(done.is_ok(), "the case was not done within {CASE_LIMIT:?}");
    no_task_left().await;
}

/// Waits until no task of this runtime is left: everything the test made must have been dropped before. To be
/// called from the test itself, not from a task.
pub async fn no_task_left() {
    tasks_left(0).await;
}

/// Waits until no more than `most` tasks of this runtime are left.
pub async fn tasks_left(most: usize) {
    let metrics = Handle::current().metrics();
    let deadline = Instant::now() + SETTLE_LIMIT;
    while metrics.num_alive_tasks() > most {
        let left = metrics.num_alive_tasks();
        assert!(Instant::now() < deadline, "{left} tasks are left, {most} may be");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SH5: a task that nobody ends is found.
    #[tokio::test]
    async fn a_task_that_is_left_is_found() {
        tasks_left(0).await;
        let task = tokio::spawn(std::future::pending::<()>());
        let found = tokio::time::timeout(Duration::from_millis(50), no_task_left()).await;
        assert!(found.is_err(), "it is still there");
        tasks_left(1).await;
        task.abort();
        no_task_left().await;
    }
}
