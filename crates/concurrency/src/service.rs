//! Locks, rate limits and presence of this process as one object.

use async_trait::async_trait;
use cache_core::{
    Clock, Decision, LockError, LockGuard, LockOptions, Locks, Member, Presence, PresenceError,
    PresenceOptions, Present, Quota, RateLimitError, RateLimits, TenantId,
};

use crate::lock::LocalLocks;
use crate::presence::LocalPresence;
use crate::rate_limit::LocalRateLimits;

/// A [`ConcurrencyService`](cache_core::ConcurrencyService) within this process. Clones share everything.
///
/// Nothing is kept for keys that are not in use: a million different locks, limits and members leave no memory
/// behind. A lock cannot be lost here: its guard's [`lost`](LockGuard::lost) never completes.
///
/// ```
/// use cache_core::prelude::*;
/// use concurrency::LocalConcurrencyService;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let service = LocalConcurrencyService::default();
/// let sum = service.with_lock("ledger/7", async { 1 + 1 }).await?;
/// assert_eq!(sum, 2);
/// # Ok::<(), cache_core::LockError>(()) }).unwrap();
/// ```
#[derive(Debug, Clone, Default)]
pub struct LocalConcurrencyService {
    locks: LocalLocks,
    limits: LocalRateLimits,
    presence: LocalPresence,
}

impl LocalConcurrencyService {
    /// A service on the machine's clock with default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A service with options.
    #[must_use]
    pub fn builder() -> LocalConcurrencyBuilder {
        LocalConcurrencyBuilder::default()
    }

    /// [`RateLimits::check`] without a future: within this process there is nothing to wait for.
    ///
    /// # Errors
    /// As [`RateLimits::check`], but never [`RateLimitError::Unavailable`].
    pub fn check_now(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        self.limits.check(quota, key, cost)
    }

    /// Keys, counts and members kept in memory now; for tests and diagnostics.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.locks.kept() + self.limits.kept() + self.presence.kept()
    }
}

/// Assembles a [`LocalConcurrencyService`].
#[derive(Debug, Clone)]
pub struct LocalConcurrencyBuilder {
    clock: Clock,
    presence: PresenceOptions,
    max_limit_keys: usize,
    max_members: usize,
}

impl Default for LocalConcurrencyBuilder {
    fn default() -> Self {
        Self {
            clock: Clock::system(),
            presence: PresenceOptions::default(),
            max_limit_keys: 100_000,
            max_members: 100_000,
        }
    }
}

impl LocalConcurrencyBuilder {
    /// The clock of limits and presence; for tests. Lock waits follow the runtime's time.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How long members live.
    #[must_use]
    pub fn presence(mut self, options: PresenceOptions) -> Self {
        self.presence = options;
        self
    }

    /// Keys whose rate is counted at the same time. Beyond, the counts that end soonest are forgotten. Default
    /// 100 000.
    #[must_use]
    pub fn max_limit_keys(mut self, keys: usize) -> Self {
        self.max_limit_keys = keys;
        self
    }

    /// Members of all tenants. Beyond, nobody can join: [`PresenceError::Full`]. Default 100 000.
    #[must_use]
    pub fn max_members(mut self, members: usize) -> Self {
        self.max_members = members;
        self
    }

    /// Assembles the service.
    #[must_use]
    pub fn build(self) -> LocalConcurrencyService {
        LocalConcurrencyService {
            locks: LocalLocks::default(),
            limits: LocalRateLimits::new(self.clock.clone(), self.max_limit_keys),
            presence: LocalPresence::new(self.clock, self.presence, self.max_members),
        }
    }
}

#[async_trait]
impl Locks for LocalConcurrencyService {
    async fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, LockError> {
        self.locks.acquire(key, options).await
    }

    async fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, LockError> {
        self.locks.try_acquire(key, options)
    }
}

#[async_trait]
impl RateLimits for LocalConcurrencyService {
    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        self.check_now(quota, key, cost)
    }
}

#[async_trait]
impl Presence for LocalConcurrencyService {
    async fn join(&self, tenant: &TenantId, connection: &str, member: &Member) -> Result<(), PresenceError> {
        self.presence.join(tenant, connection, member)
    }

    async fn heartbeat(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        self.presence.heartbeat(tenant, connection)
    }

    async fn leave(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        self.presence.leave(tenant, connection)
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Present>, PresenceError> {
        Ok(self.presence.list(tenant))
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64, PresenceError> {
        Ok(self.presence.count(tenant))
    }
}
