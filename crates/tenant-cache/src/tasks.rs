//! The tasks that loads run in, and that give leases up.
//!
//! A load must be able to go on while none of its callers is polled, and to be cancelled when the last of them leaves:
//! so it is a task, and needs a Tokio runtime.

use std::sync::Arc;
use std::time::Duration;

use cache_core::LoadError;
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The tasks of a process's caches.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: TaskTracker,
    ending: CancellationToken,
}

impl Tasks {
    /// Runs a load in a task of its own, in the present tracing span. When the caches are shut down it ends with
    /// [`LoadError::ShutDown`]; a panic anywhere in it is [`LoadError::Panicked`].
    ///
    /// # Errors
    /// [`LoadError::NoRuntime`].
    pub(crate) fn load<T: Send + 'static, E: From<LoadError> + Send + 'static>(
        &self,
        domain: &Arc<str>,
        load: impl Future<Output = Result<T, E>> + Send + 'static,
        land: impl FnOnce(Result<T, E>) + Send + 'static,
    ) -> Result<AbortHandle, LoadError> {
        let runtime = runtime(domain)?;
        let (ending, domain) = (self.ending.clone(), Arc::clone(domain));
        let guarded = std::panic::AssertUnwindSafe(load).catch_unwind();
        let work = async move {
            let ended = tokio::select! {
                biased;
                () = ending.cancelled() => Err(LoadError::ShutDown { domain }.into()),
                ended = guarded => ended.unwrap_or_else(|_| Err(LoadError::Panicked { domain }.into())),
            };
            land(ended);
        };
        Ok(self.running.spawn_on(work.in_current_span(), &runtime).abort_handle())
    }

    /// Runs what nobody waits for, to its end; not at all where there is no runtime.
    pub(crate) fn settle(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            self.running.spawn_on(work, &runtime);
        }
    }

    /// Ends all loads, now and from now on, and waits until they have given their leases up, for no longer than `limit`.
    /// `false` when that did not suffice.
    pub(crate) async fn shut_down(&self, limit: Duration) -> bool {
        self.ending.cancel();
        self.running.close();
        tokio::time::timeout(limit, self.running.wait()).await.is_ok()
    }
}

/// The running runtime.
///
/// # Errors
/// [`LoadError::NoRuntime`].
pub(crate) fn runtime(domain: &Arc<str>) -> Result<Handle, LoadError> {
    Handle::try_current().map_err(|_| LoadError::NoRuntime { domain: Arc::clone(domain) })
}
