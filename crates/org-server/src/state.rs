//! What the routes share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use app_builder::AppService;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::connections::Connections;
use crate::orgs::Orgs;
use crate::routes::admin_auth::AdminToken;
use crate::store::Store;
use org_resolution::Problem;

/// What the routes share; clones share everything.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: StateParts,
    places: Semaphore,
    connections: Connections,
    work: TaskTracker,
    stopping: AtomicBool,
    propagation: AbortOnDropHandle<()>,
}

/// What an [`AppState`] is made of.
#[derive(Debug)]
pub struct StateParts {
    /// The database.
    pub store: Store,
    /// Cache, locks, limits and presence.
    pub app: AppService,
    /// The organisations.
    pub orgs: Orgs,
    /// Who may use `/admin`.
    pub admin: AdminToken,
    /// The metrics of the process.
    pub metrics: PrometheusHandle,
    /// The longest a request may take.
    pub request_timeout: Duration,
    /// How many requests are answered at once.
    pub max_requests: usize,
}

impl AppState {
    /// Shares these parts, and propagates what the outbox holds for as long as they are shared.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn new(parts: StateParts) -> Self {
        let places = Semaphore::new(parts.max_requests);
        let orgs = parts.orgs.clone();
        let propagation = tokio::spawn(async move { match orgs.propagate_always().await {} });
        Self(Arc::new(Shared {
            parts,
            places,
            connections: Connections::default(),
            work: TaskTracker::new(),
            stopping: AtomicBool::new(false),
            propagation: AbortOnDropHandle::new(propagation),
        }))
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.parts.store
    }

    /// Cache, locks, limits and presence.
    #[must_use]
    pub fn app(&self) -> &AppService {
        &self.0.parts.app
    }

    /// The organisations.
    #[must_use]
    pub fn orgs(&self) -> &Orgs {
        &self.0.parts.orgs
    }

    /// Who may use `/admin`.
    #[must_use]
    pub fn admin(&self) -> &AdminToken {
        &self.0.parts.admin
    }

    /// The metrics of the process.
    #[must_use]
    pub fn metrics(&self) -> &PrometheusHandle {
        &self.0.parts.metrics
    }

    /// The longest a request may take.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.0.parts.request_timeout
    }

    /// The places of requests that are being answered.
    #[must_use]
    pub fn places(&self) -> &Semaphore {
        &self.0.places
    }

    /// The connections that clients keep alive through this instance.
    #[must_use]
    pub fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// Runs work to its end, also when the client that asked for it goes away: between the commit of a change
    /// and the invalidation that follows it nothing may be dropped. [`finish`](Self::finish) waits for it.
    ///
    /// # Errors
    /// The work's own; [`Problem::internal`] when it panicked.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the work running.
    pub async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        match self.0.work.spawn(work).await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "a change did not run to its end");
                Err(Problem::internal())
            }
        }
    }

    /// From now on the server is not ready: it is about to stop.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
    }

    /// Whether the server is about to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    /// Waits for the work that runs [to its end](Self::to_its_end) and until every server was notified of it, both within
    /// the limit, and releases the connections kept alive here, at most so long; then ends the services and closes the
    /// database.
    ///
    /// # Cancel safety
    /// Safe; call it again to wait for the rest.
    pub async fn finish(&self, limit: Duration) {
        let began = Instant::now();
        self.0.work.close();
        if tokio::time::timeout(limit, self.0.work.wait()).await.is_err() {
            tracing::warn!(running = self.0.work.len(), "changes are still running after the time to stop");
        }
        // From here on the rest is propagated below; the task would only find the database closed.
        self.0.propagation.abort();
        self.orgs().propagate_rest(limit.saturating_sub(began.elapsed())).await;
        if tokio::time::timeout(limit, self.connections().release(self.app())).await.is_err() {
            tracing::warn!("connections were still being released after the time to stop");
        }
        self.app().shutdown().await;
        self.store().close().await;
    }
}
