//! A [`CacheService`] that fails when it is told to: for tests of what is built on one.
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

mod gate;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{BackendError, CacheError, CacheService, Claim, InvalidationBus, Lookup, Stamp, Ttl};

pub use gate::Gate;
use gate::{Door, Standing};

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
    Fill,
    Renew,
    Release,
    Health,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::GetBytes,
        Self::GetManyBytes,
        Self::SetBytes,
        Self::SetManyBytes,
        Self::Invalidate,
        Self::InvalidateMany,
        Self::InvalidatePrefix,
        Self::GetOrLease,
        Self::LeaseOver,
        Self::Fill,
        Self::Renew,
        Self::Release,
        Self::Health,
    ];

    /// The methods that only look.
    pub const READS: [Self; 2] = [Self::GetBytes, Self::GetManyBytes];

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
            Self::Fill => "fill",
            Self::Renew => "renew",
            Self::Release => "release",
            Self::Health => "health",
        }
    }
}

/// A service with a gate before every method, which counts its calls. All gates are open at first.
#[derive(Debug)]
pub struct ChaosCache {
    inner: Arc<dyn CacheService>,
    doors: [Door; Method::ALL.len()],
}

impl ChaosCache {
    /// A twin of a service.
    #[must_use]
    pub fn new(inner: Arc<dyn CacheService>) -> Self {
        Self { inner, doors: Default::default() }
    }

    /// Says what happens to a method's calls from now on. Those which stand at the gate see it too.
    pub fn set_gate(&self, method: Method, gate: Gate) {
        self.door(method).gate.send_replace(gate);
    }

    /// Says what happens to several methods' calls.
    pub fn set_gates(&self, methods: &[Method], gate: Gate) {
        for method in methods {
            self.set_gate(*method, gate);
        }
    }

    /// Says what happens to all calls.
    pub fn set_all(&self, gate: Gate) {
        self.set_gates(&Method::ALL, gate);
    }

    /// How often a method was called since the counts were last [taken](Self::take_calls).
    #[must_use]
    pub fn calls(&self, method: Method) -> u64 {
        self.door(method).calls.load(Ordering::SeqCst)
    }

    /// The calls of all methods.
    #[must_use]
    pub fn total_calls(&self) -> u64 {
        Method::ALL.iter().map(|method| self.calls(*method)).sum()
    }

    /// Every method that was called, with how often, and begins to count anew.
    pub fn take_calls(&self) -> Vec<(Method, u64)> {
        let taken = Method::ALL.map(|method| (method, self.door(method).calls.swap(0, Ordering::SeqCst)));
        taken.into_iter().filter(|(_, calls)| *calls > 0).collect()
    }

    /// How many calls stand at a method's gate now.
    #[must_use]
    pub fn stopped(&self, method: Method) -> usize {
        *self.door(method).stopped.borrow()
    }

    /// Waits until at least so many calls stand at a method's gate.
    pub async fn at_gate(&self, method: Method, calls: usize) {
        let mut stopped = self.door(method).stopped.subscribe();
        // The sender is in `self`, so it is not closed.
        let _ = stopped.wait_for(|stopped| *stopped >= calls).await;
    }

    fn door(&self, method: Method) -> &Door {
        &self.doors[method as usize]
    }

    async fn pass<T>(
        &self,
        method: Method,
        call: impl Future<Output = Result<T, CacheError>> + Send,
    ) -> Result<T, CacheError> {
        let door = self.door(method);
        door.calls.fetch_add(1, Ordering::SeqCst);
        let gate = door.leave(Gate::Hold).await;
        let failed = |kind| Err(BackendError::new(kind, method.name(), "as the test wants it").into());
        match gate {
            Gate::Error(kind) => return failed(kind),
            Gate::Never => {
                let _standing = Standing::at(door);
                return std::future::pending().await;
            }
            Gate::Slow(time) => tokio::time::sleep(time).await,
            Gate::Open | Gate::LostAnswer(_) | Gate::Hold | Gate::HoldAnswer => {}
        }
        let answer = call.await;
        match gate {
            Gate::LostAnswer(kind) => failed(kind),
            Gate::HoldAnswer => {
                door.leave(Gate::HoldAnswer).await;
                answer
            }
            _ => answer,
        }
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

    async fn get_or_lease(&self, key: &str, lease_for: Duration) -> Result<Lookup, CacheError> {
        self.pass(Method::GetOrLease, self.inner.get_or_lease(key, lease_for)).await
    }

    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        self.pass(Method::LeaseOver, self.inner.lease_over(key, observed, lease_for)).await
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
