//! A far tier that is watched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{
    BackendError, BackendErrorKind, CacheError, CacheService, Claim, Clock, InvalidationBus, LeaseToken,
    Lookup, Stamp, Ttl,
};
use cache_moka::MokaCacheService;
use tokio::sync::Semaphore;

/// A far tier that counts what is asked of it, and can be made to fail.
#[derive(Debug)]
pub struct Watched {
    inner: MokaCacheService,
    reads: AtomicUsize,
    writes: AtomicUsize,
    broken: AtomicBool,
    /// Holds answers of plain reads on their way back, after the store has given them.
    slow: Semaphore,
    held: AtomicUsize,
}

impl Watched {
    pub fn on(clock: Clock) -> Arc<Self> {
        let inner = MokaCacheService::builder().clock(clock).build().unwrap();
        let slow = Semaphore::new(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            inner,
            reads: 0.into(),
            writes: 0.into(),
            broken: false.into(),
            slow,
            held: 0.into(),
        })
    }

    /// Reads and writes since the last time.
    pub fn taken(&self) -> (usize, usize) {
        (self.reads.swap(0, Ordering::SeqCst), self.writes.swap(0, Ordering::SeqCst))
    }

    /// From now on answers of plain reads wait for a [`let_answer`](Self::let_answer).
    pub fn hold_answers(&self) {
        self.slow.forget_permits(usize::MAX);
        self.held.store(0, Ordering::SeqCst);
    }

    pub async fn answer_is_held(&self) {
        while self.held.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }

    pub fn let_answer(&self) {
        self.slow.add_permits(1_000);
    }

    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    fn count(&self, counter: &AtomicUsize) -> Result<(), CacheError> {
        counter.fetch_add(1, Ordering::SeqCst);
        match self.broken.load(Ordering::SeqCst) {
            true => Err(BackendError::new(BackendErrorKind::Unavailable, "test", "made to fail").into()),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl CacheService for Watched {
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        self.count(&self.reads)?;
        let answer = self.inner.get_bytes(key).await;
        self.held.fetch_add(1, Ordering::SeqCst);
        self.slow.acquire().await.unwrap().forget();
        answer
    }

    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        self.count(&self.reads)?;
        self.inner.get_many_bytes(keys).await
    }

    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        self.count(&self.writes)?;
        self.inner.set_bytes(key, value, ttl).await
    }

    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        self.count(&self.writes)?;
        self.inner.set_many_bytes(entries, ttl).await
    }

    async fn invalidate(&self, key: &str) -> Result<(), CacheError> {
        self.count(&self.writes)?;
        self.inner.invalidate(key).await
    }

    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError> {
        self.count(&self.writes)?;
        self.inner.invalidate_many(keys).await
    }

    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        self.count(&self.writes)?;
        self.inner.invalidate_prefix(prefix).await
    }

    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        self.count(&self.reads)?;
        self.inner.get_or_lease(key, token, lease_for).await
    }

    async fn lease_over(
        &self,
        key: &str,
        seen: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        self.count(&self.reads)?;
        self.inner.lease_over(key, seen, token, lease_for).await
    }

    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError> {
        self.count(&self.writes)?;
        self.inner.take_lease(key, token, lease_for).await
    }

    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        self.count(&self.writes)?;
        self.inner.fill(key, claim, value, ttl).await
    }

    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        self.inner.renew(key, claim, lease_for).await
    }

    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        self.inner.release(key, claim).await
    }

    async fn health(&self) -> Result<Duration, CacheError> {
        self.inner.health().await
    }

    fn bus(&self) -> Option<Arc<dyn InvalidationBus>> {
        None
    }
}
