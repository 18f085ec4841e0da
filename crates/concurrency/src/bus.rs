//! The invalidation bus within one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use cache_core::bus::{BusHealth, Sinks};
use cache_core::{
    BusState, CacheError, Invalidation, InvalidationBus, InvalidationSink, Subscription, Trust,
};

/// Tells every sink of this process, at once.
///
/// Always trusted: nothing can be missed between a caller and itself. When `publish` returns, every sink has
/// applied the message.
///
/// ```
/// use cache_core::{Invalidation, InvalidationBus};
/// use concurrency::LocalBus;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let bus = LocalBus::new();
/// bus.publish(&Invalidation::key("acme:org-config:1")).await?;
/// assert_eq!(bus.state().published, 1);
/// # Ok::<(), cache_core::CacheError>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct LocalBus {
    sinks: Sinks,
    trust: Arc<Trust>,
    published: AtomicU64,
}

impl LocalBus {
    /// A bus nobody listens to yet.
    #[must_use]
    pub fn new() -> Self {
        Self { sinks: Sinks::default(), trust: Arc::new(Trust::always()), published: AtomicU64::new(0) }
    }
}

impl Default for LocalBus {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl InvalidationBus for LocalBus {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.published.fetch_add(1, Ordering::Relaxed);
        self.sinks.apply_own(message);
        Ok(())
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        self.sinks.subscribe(sink)
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust)
    }

    fn state(&self) -> BusState {
        let mut state = BusState::default();
        state.health = BusHealth::Trusted;
        state.published = self.published.load(Ordering::Relaxed);
        state.panics = self.sinks.panics();
        state
    }
}
