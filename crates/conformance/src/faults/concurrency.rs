//! The twin of locks, limits and presence.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cache_core::{
    BackendError, ConcurrencyService, Decision, LockError, LockGuard, LockOptions, Locks, Member, Presence,
    PresenceError, Present, Quota, RateLimitError, RateLimits, TenantId,
};

use super::gate::{Gated, Gates};

/// The methods of [`ConcurrencyService`] that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the methods are")]
pub enum ConcurrencyMethod {
    Acquire,
    TryAcquire,
    Check,
    Join,
    Heartbeat,
    Leave,
    List,
    Count,
}

impl Gated for ConcurrencyMethod {
    const ALL: &'static [Self] = &[
        Self::Acquire,
        Self::TryAcquire,
        Self::Check,
        Self::Join,
        Self::Heartbeat,
        Self::Leave,
        Self::List,
        Self::Count,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::TryAcquire => "try_acquire",
            Self::Check => "check",
            Self::Join => "join",
            Self::Heartbeat => "heartbeat",
            Self::Leave => "leave",
            Self::List => "list",
            Self::Count => "count",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Locks, limits and presence with a [gate](Gates) before every method. A lock that was taken behind a gate which
/// loses answers is given up. A limit that fails is [`RateLimitError::Unavailable`], to be asked again after a second.
#[derive(Debug)]
pub struct ChaosConcurrency {
    inner: Arc<dyn ConcurrencyService>,
    gates: Gates<ConcurrencyMethod>,
}

impl ChaosConcurrency {
    /// A twin of a service.
    #[must_use]
    pub fn new(inner: Arc<dyn ConcurrencyService>) -> Self {
        Self { inner, gates: Gates::default() }
    }
}

impl Deref for ChaosConcurrency {
    type Target = Gates<ConcurrencyMethod>;

    fn deref(&self) -> &Gates<ConcurrencyMethod> {
        &self.gates
    }
}

/// How a limit fails whose store does.
struct Unavailable(RateLimitError);

impl From<BackendError> for Unavailable {
    fn from(source: BackendError) -> Self {
        Self(RateLimitError::Unavailable { retry_after: Duration::from_secs(1), source })
    }
}

#[async_trait]
impl Locks for ChaosConcurrency {
    async fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, LockError> {
        self.pass(ConcurrencyMethod::Acquire, self.inner.acquire(key, options)).await
    }

    async fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, LockError> {
        self.pass(ConcurrencyMethod::TryAcquire, self.inner.try_acquire(key, options)).await
    }
}

#[async_trait]
impl RateLimits for ChaosConcurrency {
    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        let check = async { self.inner.check(quota, key, cost).await.map_err(Unavailable) };
        self.pass(ConcurrencyMethod::Check, check).await.map_err(|Unavailable(error)| error)
    }
}

#[async_trait]
impl Presence for ChaosConcurrency {
    async fn join(&self, tenant: &TenantId, connection: &str, member: &Member) -> Result<(), PresenceError> {
        self.pass(ConcurrencyMethod::Join, self.inner.join(tenant, connection, member)).await
    }

    async fn heartbeat(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        self.pass(ConcurrencyMethod::Heartbeat, self.inner.heartbeat(tenant, connection)).await
    }

    async fn leave(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        self.pass(ConcurrencyMethod::Leave, self.inner.leave(tenant, connection)).await
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Present>, PresenceError> {
        self.pass(ConcurrencyMethod::List, self.inner.list(tenant)).await
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64, PresenceError> {
        self.pass(ConcurrencyMethod::Count, self.inner.count(tenant)).await
    }
}
