//! Leases as loads hold them: armed before they are asked for, renewed while the load runs, given up when it ends
//! without filling.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use cache_core::error::BackendErrorKind;
use cache_core::{CacheError, CacheService, Claim, LeaseToken, Lookup};

use crate::tasks::Tasks;

/// Gives a lease up when the load that asked for it ends without filling, or is cancelled.
///
/// Made before the lease is asked for: whoever is dropped while the store's answer is on its way, or never gets one, may
/// hold the lease without knowing.
#[derive(Debug)]
pub(crate) struct LeaseGuard {
    claim: Claim,
    armed: Option<Armed>,
}

#[derive(Debug)]
struct Armed {
    service: Arc<dyn CacheService>,
    key: Arc<str>,
    tasks: Arc<Tasks>,
}

impl LeaseGuard {
    /// Of a lease that is about to be asked for.
    pub(crate) fn arm(
        service: &Arc<dyn CacheService>,
        tasks: &Arc<Tasks>,
        key: &Arc<str>,
        token: LeaseToken,
    ) -> Self {
        let (service, key, tasks) = (Arc::clone(service), Arc::clone(key), Arc::clone(tasks));
        Self { claim: Claim::lease(token), armed: Some(Armed { service, key, tasks }) }
    }

    /// What the store said to it.
    ///
    /// # Errors
    /// Those of the store; the lease is then given up in case it was granted.
    pub(crate) fn answered(self, answer: Result<Lookup, CacheError>) -> Result<Asked, CacheError> {
        match answer {
            Ok(Lookup::Granted(_)) => Ok(Asked::Granted(self)),
            Ok(Lookup::Busy) => {
                self.disarm();
                Ok(Asked::Busy)
            }
            Ok(Lookup::Hit(bytes)) => {
                self.disarm();
                Ok(Asked::Hit(bytes))
            }
            Err(error) => {
                if was_not_sent(&error) {
                    self.disarm();
                }
                Err(error)
            }
        }
    }

    /// The claim by this lease.
    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The lease is used up: nothing to give up any more.
    pub(crate) fn disarm(mut self) {
        self.armed = None;
    }

    /// Keeps the lease for as long as this is polled. Ends renewing when the lease is lost: the key was
    /// invalidated, and the fill will be refused.
    pub(crate) async fn keep_renewing(&self, lease_for: Duration) -> Infallible {
        if let Some(Armed { service, key, .. }) = &self.armed {
            loop {
                tokio::time::sleep(lease_for / 3).await;
                if let Ok(false) = service.renew(key, &self.claim, lease_for).await {
                    break;
                }
            }
        }
        std::future::pending().await
    }
}

/// What a request for a lease was answered.
pub(crate) enum Asked {
    Granted(LeaseGuard),
    Busy,
    Hit(bytes::Bytes),
}

impl Drop for LeaseGuard {
    /// In the background, because `drop` cannot wait; without a runtime the lease ends by its own time.
    fn drop(&mut self) {
        let Some(Armed { service, key, tasks }) = self.armed.take() else { return };
        let claim = self.claim.clone();
        tasks.settle(async move {
            let release = || service.release(&key, &claim);
            // A lost connection is made again meanwhile; the lease's own end is the last resort.
            let again =
                ExponentialBuilder::default().with_min_delay(Duration::from_millis(50)).with_max_times(3);
            if let Err(error) = release.retry(again).when(CacheError::is_transient).await {
                tracing::debug!(%error, "a lease was not given up, and ends by its own time");
            }
        });
    }
}

/// Whether the store cannot have seen the request.
fn was_not_sent(error: &CacheError) -> bool {
    match error {
        CacheError::InvalidKey(_) => true,
        CacheError::Backend(error) => error.kind == BackendErrorKind::CircuitOpen,
        _ => false,
    }
}
