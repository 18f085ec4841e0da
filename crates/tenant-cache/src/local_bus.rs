//! The bus of a process that shares with nobody.

use std::sync::Arc;

use async_trait::async_trait;
use cache_core::bus::{BusHealth, Sinks};
use cache_core::{
    BusState, CacheError, Invalidation, InvalidationBus, InvalidationSink, Subscription, Trust,
};

/// Tells the one sink there is. What [`Caches::in_memory`](crate::Caches::in_memory) stands on; processes with
/// more than a registry use the bus of the `concurrency` crate.
#[derive(Debug)]
pub(crate) struct Alone {
    sinks: Sinks,
    trust: Arc<Trust>,
}

impl Default for Alone {
    fn default() -> Self {
        Self { sinks: Sinks::default(), trust: Arc::new(Trust::always()) }
    }
}

#[async_trait]
impl InvalidationBus for Alone {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
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
        state.panics = self.sinks.panics();
        state
    }
}
