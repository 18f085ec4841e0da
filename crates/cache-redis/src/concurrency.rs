//! Locks, rate limits and presence as one object.

use std::sync::Arc;

use async_trait::async_trait;
use cache_core::{
    Decision, LockError, LockGuard, LockOptions, Locks, Member, Presence, PresenceError, Present, Quota,
    RateLimitError, RateLimits, TenantId,
};

use crate::lock::RedisLocks;
use crate::presence::RedisPresence;

/// A [`ConcurrencyService`](cache_core::ConcurrencyService) as the sum of its parts: locks and presence in Redis, and
/// the limits it is given, [`RedisRateLimits`](crate::RedisRateLimits) or what stands around them. Clones share
/// everything.
#[derive(Debug, Clone)]
pub struct RedisConcurrencyService {
    locks: RedisLocks,
    limits: Arc<dyn RateLimits>,
    presence: RedisPresence,
}

impl RedisConcurrencyService {
    /// The sum of these parts.
    #[must_use]
    pub fn new(locks: RedisLocks, limits: Arc<dyn RateLimits>, presence: RedisPresence) -> Self {
        Self { locks, limits, presence }
    }
}

#[async_trait]
impl Locks for RedisConcurrencyService {
    async fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, LockError> {
        self.locks.acquire(key, options).await
    }

    async fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, LockError> {
        self.locks.try_acquire(key, options).await
    }
}

#[async_trait]
impl RateLimits for RedisConcurrencyService {
    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        self.limits.check(quota, key, cost).await
    }
}

#[async_trait]
impl Presence for RedisConcurrencyService {
    async fn join(&self, tenant: &TenantId, connection: &str, member: &Member) -> Result<(), PresenceError> {
        self.presence.join(tenant, connection, member).await
    }

    async fn heartbeat(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        self.presence.heartbeat(tenant, connection).await
    }

    async fn leave(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        self.presence.leave(tenant, connection).await
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Present>, PresenceError> {
        self.presence.list(tenant).await
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64, PresenceError> {
        self.presence.count(tenant).await
    }
}
