//! The cache service as an application hands it out: without the keys under which the services keep their own state.
//!
//! The caches of an application stand on the service itself: they keep the numbers of groups (`gen:`) and the leases of
//! refreshes (`refresh:`) there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::key::check_plain;
use cache_core::{CacheError, CacheService, Claim, InvalidationBus, LeaseToken, Lookup, Stamp, Ttl};

/// A cache service that takes no key of another service's.
#[derive(Debug)]
pub(crate) struct PlainCache(pub(crate) Arc<dyn CacheService>);

fn check_all(keys: &[&str]) -> Result<(), CacheError> {
    Ok(keys.iter().try_for_each(|key| check_plain(key))?)
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl CacheService for PlainCache {
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        check_plain(key)?;
        self.0.get_bytes(key).await
    }

    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        check_all(keys)?;
        self.0.get_many_bytes(keys).await
    }

    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        check_plain(key)?;
        self.0.set_bytes(key, value, ttl).await
    }

    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        entries.iter().try_for_each(|(key, _)| check_plain(key))?;
        self.0.set_many_bytes(entries, ttl).await
    }

    async fn invalidate(&self, key: &str) -> Result<(), CacheError> {
        check_plain(key)?;
        self.0.invalidate(key).await
    }

    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError> {
        check_all(keys)?;
        self.0.invalidate_many(keys).await
    }

    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        check_plain(prefix)?;
        self.0.invalidate_prefix(prefix).await
    }

    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        check_plain(key)?;
        self.0.get_or_lease(key, token, lease_for).await
    }

    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        check_plain(key)?;
        self.0.lease_over(key, observed, token, lease_for).await
    }

    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError> {
        check_plain(key)?;
        self.0.take_lease(key, token, lease_for).await
    }

    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        check_plain(key)?;
        self.0.fill(key, claim, value, ttl).await
    }

    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        check_plain(key)?;
        self.0.renew(key, claim, lease_for).await
    }

    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        check_plain(key)?;
        self.0.release(key, claim).await
    }

    async fn health(&self) -> Result<Duration, CacheError> {
        self.0.health().await
    }

    fn bus(&self) -> Option<Arc<dyn InvalidationBus>> {
        self.0.bus()
    }
}
