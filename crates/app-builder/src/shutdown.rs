//! The background work of an application, and its end.

use std::sync::Weak;
use std::time::Duration;

use cache_moka::MokaCacheService;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Between two sweeps of the in-process backend. An expired value is never answered; this only bounds how
/// long it takes up memory.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Tasks that end with this value, or earlier by [`end`](Self::end).
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    /// Drops expired entries now and then, while somebody uses the service.
    pub(crate) fn sweep(&mut self, service: Weak<MokaCacheService>) {
        self.0.get_mut().spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(service) = service.upgrade() else { return };
                // Linear in the number of entries: not on a worker that answers requests.
                if tokio::task::spawn_blocking(move || service.sweep()).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Ends them and waits until they have.
    pub(crate) async fn end(&self) {
        self.0.lock().await.shutdown().await;
    }
}
