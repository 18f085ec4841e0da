//! Twins of the contracts that fail when they are told to, for tests of what is built on them: [`ChaosCache`] of a
//! [`CacheService`], [`ChaosConcurrency`] of locks, limits and presence.
//!
//! ```
//! use std::sync::Arc;
//! use cache_core::prelude::*;
//! use cache_core::{BackendErrorKind, Clock};
//! use conformance::faults::{ChaosCache, Gate, Method};
//! use conformance::model::ModelCache;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let cache = ChaosCache::new(Arc::new(ModelCache::new(Clock::system(), 1024)));
//! cache.set_gate(Method::GetBytes, Gate::Error(BackendErrorKind::Unavailable));
//! assert!(cache.get::<u32>("k").await.is_err());
//! assert_eq!(cache.calls(Method::GetBytes), 1);
//! # });
//! ```

mod concurrency;
mod gate;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{CacheError, CacheService, Claim, InvalidationBus, LeaseToken, Lookup, Stamp, Ttl};

pub use concurrency::{ChaosConcurrency, ConcurrencyMethod};
pub use gate::{Gate, Gated, Gates};

/// The methods of [`CacheService`] that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the methods are")]
pub enum Method {
    GetBytes,
    GetManyBytes,
    SetBytes,
    SetManyBytes,
    Invalidate,
    InvalidateMany,
    InvalidatePrefix,
    GetOrLease,
    LeaseOver,
    TakeLease,
    Fill,
    Renew,
    Release,
    Health,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::GetBytes,
        Self::GetManyBytes,
        Self::SetBytes,
        Self::SetManyBytes,
        Self::Invalidate,
        Self::InvalidateMany,
        Self::InvalidatePrefix,
        Self::GetOrLease,
        Self::LeaseOver,
        Self::TakeLease,
        Self::Fill,
        Self::Renew,
        Self::Release,
        Self::Health,
    ];

    /// The methods that only look.
    pub const READS: [Self; 2] = [Self::GetBytes, Self::GetManyBytes];
}

impl Gated for Method {
    const ALL: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        match self {
            Self::GetBytes => "get",
            Self::GetManyBytes => "get_many",
            Self::SetBytes => "set",
            Self::SetManyBytes => "set_many",
            Self::Invalidate => "invalidate",
            Self::InvalidateMany => "invalidate_many",
            Self::InvalidatePrefix => "invalidate_prefix",
            Self::GetOrLease => "get_or_lease",
            Self::LeaseOver => "lease_over",
            Self::TakeLease => "take_lease",
            Self::Fill => "fill",
            Self::Renew => "renew",
            Self::Release => "release",
            Self::Health => "health",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// A cache with a [gate](Gates) before every method.
#[derive(Debug)]
pub struct ChaosCache {
    inner: Arc<dyn CacheService>,
    gates: Gates<Method>,
}

impl ChaosCache {
    /// A twin of a service.
    #[must_use]
    pub fn new(inner: Arc<dyn CacheService>) -> Self {
        Self { inner, gates: Gates::default() }
    }
}

impl Deref for ChaosCache {
    type Target = Gates<Method>;

    fn deref(&self) -> &Gates<Method> {
        &self.gates
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl CacheService for ChaosCache {
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        self.pass(Method::GetBytes, self.inner.get_bytes(key)).await
    }

    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        self.pass(Method::GetManyBytes, self.inner.get_many_bytes(keys)).await
    }

    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        self.pass(Method::SetBytes, self.inner.set_bytes(key, value, ttl)).await
    }

    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        self.pass(Method::SetManyBytes, self.inner.set_many_bytes(entries, ttl)).await
    }

    async fn invalidate(&self, key: &str) -> Result<(), CacheError> {
        self.pass(Method::Invalidate, self.inner.invalidate(key)).await
    }

    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError> {
        self.pass(Method::InvalidateMany, self.inner.invalidate_many(keys)).await
    }

    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        self.pass(Method::InvalidatePrefix, self.inner.invalidate_prefix(prefix)).await
    }

    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        self.pass(Method::GetOrLease, self.inner.get_or_lease(key, token, lease_for)).await
    }

    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        self.pass(Method::LeaseOver, self.inner.lease_over(key, observed, token, lease_for)).await
    }

    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError> {
        self.pass(Method::TakeLease, self.inner.take_lease(key, token, lease_for)).await
    }

    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        self.pass(Method::Fill, self.inner.fill(key, claim, value, ttl)).await
    }

    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        self.pass(Method::Renew, self.inner.renew(key, claim, lease_for)).await
    }

    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        self.pass(Method::Release, self.inner.release(key, claim)).await
    }

    async fn health(&self) -> Result<Duration, CacheError> {
        self.pass(Method::Health, self.inner.health()).await
    }

    fn bus(&self) -> Option<Arc<dyn InvalidationBus>> {
        self.inner.bus()
    }
}
