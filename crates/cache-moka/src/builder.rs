//! Assembling the service.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Clock, InvalidationBus};

use crate::cache::MokaCacheService;
use crate::policy::{Capacity, MokaPolicy};

/// Assembles a [`MokaCacheService`].
#[derive(Debug, Clone, Default)]
pub struct MokaCacheBuilder {
    policy: MokaPolicy,
    clock: Clock,
    bus: Option<Arc<dyn InvalidationBus>>,
}

impl MokaCacheBuilder {
    /// All options at once.
    #[must_use]
    pub fn policy(mut self, policy: MokaPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// What bounds the memory. Default 10 000 entries.
    #[must_use]
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.policy.capacity = capacity;
        self
    }

    /// Life of entries stored without their own. Default 300 s.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.policy.default_ttl = ttl;
        self
    }

    /// Life of entries that nobody reads. Default: none.
    #[must_use]
    pub fn time_to_idle(mut self, idle: Duration) -> Self {
        self.policy.time_to_idle = Some(idle);
        self
    }

    /// The largest value in bytes. Default 8 MiB.
    #[must_use]
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.policy.max_value_bytes = bytes;
        self
    }

    /// The clock; for tests.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Announces invalidations on a bus, so that memory in front of this service hears of them.
    #[must_use]
    pub fn bus(mut self, bus: Arc<dyn InvalidationBus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Assembles the service.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] that names the option which cannot work.
    pub fn build(self) -> Result<MokaCacheService, CacheError> {
        self.policy.validate()?;
        Ok(MokaCacheService::assemble(self.policy, self.clock, self.bus))
    }
}
