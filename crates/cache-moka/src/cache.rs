//! The service.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::cache::ClaimKind;
use cache_core::key::validate;
use cache_core::{
    CacheError, CacheService, Claim, Clock, Invalidation, InvalidationBus, LeaseToken, Lookup, Stamp, Ttl,
};

use crate::builder::MokaCacheBuilder;
use crate::policy::MokaPolicy;
use crate::stats::{Cause, MokaStats};
use crate::store::{Locked, Store};

/// A [`CacheService`] in this process's memory.
///
/// Values are kept serialised, so that what works here works on a shared backend too. An entry's life is exact
/// to the service's clock. mini-moka may refuse a new entry in favour of what is used more: a value that was
/// just stored may not be there.
///
/// # Memory of expired entries
/// It is given back when somebody asks for them, and with the writes: each looks at a few entries in turn, so
/// after about as many writes as there are entries none is left that had expired before. There is no background
/// task; a service that is hardly written to can be [swept](Self::sweep) now and then.
///
/// # Leases
/// They live beside the values and are never evicted; those that nobody ended go when their time is over. Up to
/// about a million can stand at once. Beyond that the answer to a miss is [`Lookup::Busy`], and a lease that is taken
/// is none: nobody stores, and nothing stale can be stored.
///
/// ```
/// use cache_core::prelude::*;
/// use cache_moka::MokaCacheService;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let cache = MokaCacheService::default();
/// cache.set("greeting", "hello", Some(300)).await?;
/// assert_eq!(cache.get::<String>("greeting").await?.as_deref(), Some("hello"));
/// # Ok::<(), CacheError>(()) }).unwrap();
/// ```
pub struct MokaCacheService {
    store: Store,
    policy: MokaPolicy,
    bus: Option<Arc<dyn InvalidationBus>>,
}

impl MokaCacheService {
    /// A service with options.
    #[must_use]
    pub fn builder() -> MokaCacheBuilder {
        MokaCacheBuilder::default()
    }

    /// What the service has done. Applies mini-moka's pending work first, so that size and counts are exact
    /// when nobody else uses the service meanwhile.
    #[must_use]
    pub fn stats(&self) -> MokaStats {
        self.store.stats()
    }

    /// Drops every expired entry and lease now. Linear in the number of entries: not for a runtime's worker
    /// when there are a million.
    pub fn sweep(&self) {
        self.store.sweep();
    }

    pub(crate) fn assemble(policy: MokaPolicy, clock: Clock, bus: Option<Arc<dyn InvalidationBus>>) -> Self {
        Self { store: Store::new(&policy, clock), policy, bus }
    }

    fn lock<'a>(&'a self, key: &'a str) -> Result<Locked<'a>, CacheError> {
        validate(key)?;
        Ok(self.store.lock(key))
    }

    fn read(&self, key: &str) -> Option<Bytes> {
        let value = self.store.read(key);
        self.store.counters().read(value.is_some());
        value
    }

    /// Counts what a look-up with a view to a lease found, and passes it on.
    fn found(&self, lookup: Lookup) -> Lookup {
        self.store.counters().lookup(&lookup);
        lookup
    }

    fn life(&self, ttl: Ttl) -> Option<Duration> {
        ttl.resolve(self.policy.default_ttl)
    }

    fn check_size(&self, value: &Bytes) -> Result<(), CacheError> {
        let (size, limit) = (value.len(), self.policy.max_value_bytes);
        if size > limit { Err(CacheError::ValueTooLarge { size, limit }) } else { Ok(()) }
    }

    async fn announce(&self, message: impl FnOnce() -> Invalidation + Send) -> Result<(), CacheError> {
        match &self.bus {
            Some(bus) => bus.publish(&message()).await,
            None => Ok(()),
        }
    }
}

/// No lock is held at any `.await`; without a bus every call is done at its first poll.
#[async_trait]
impl CacheService for MokaCacheService {
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        validate(key)?;
        Ok(self.read(key))
    }

    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        keys.iter().try_for_each(|key| validate(key))?;
        Ok(keys.iter().map(|key| self.read(key)).collect())
    }

    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        self.check_size(&value)?;
        self.lock(key)?.insert(value, self.life(ttl));
        Ok(())
    }

    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        for (key, value) in entries {
            validate(key)?;
            self.check_size(value)?;
        }
        let life = self.life(ttl);
        for (key, value) in entries {
            self.store.lock(key).insert(value.clone(), life);
        }
        Ok(())
    }

    async fn invalidate(&self, key: &str) -> Result<(), CacheError> {
        self.invalidate_many(&[key]).await
    }

    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError> {
        keys.iter().try_for_each(|key| validate(key))?;
        if keys.is_empty() {
            return Ok(());
        }
        for key in keys {
            self.store.lock(key).remove(Cause::Invalidated);
        }
        self.announce(|| Invalidation::Keys(keys.iter().map(|key| Arc::from(*key)).collect())).await
    }

    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        validate(prefix)?;
        let removed = self.store.remove_prefix(prefix);
        self.announce(|| Invalidation::Prefix(prefix.into())).await?;
        Ok(removed)
    }

    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        let mut locked = self.lock(key)?;
        Ok(self.found(match locked.read() {
            Some(value) => Lookup::Hit(value),
            None => locked.lease(token, lease_for),
        }))
    }

    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        let mut locked = self.lock(key)?;
        Ok(self.found(match locked.read() {
            Some(value) if !observed.matches(&value) => Lookup::Hit(value),
            _ => locked.lease(token, lease_for),
        }))
    }

    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError> {
        self.lock(key)?.take(token, lease_for);
        Ok(Claim::lease(token))
    }

    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        self.check_size(&value)?;
        let locked = self.lock(key)?;
        let stands = locked.stands(claim);
        if stands {
            locked.insert(value, self.life(ttl));
        }
        Ok(stands)
    }

    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        let mut locked = self.lock(key)?;
        let stands = locked.stands(claim);
        if stands && matches!(claim.kind(), ClaimKind::Lease(_)) {
            locked.renew(lease_for);
        }
        Ok(stands)
    }

    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        let mut locked = self.lock(key)?;
        if matches!(claim.kind(), ClaimKind::Lease(_)) && locked.stands(claim) {
            locked.end_lease();
        }
        Ok(())
    }

    async fn health(&self) -> Result<Duration, CacheError> {
        Ok(Duration::ZERO)
    }

    fn bus(&self) -> Option<Arc<dyn InvalidationBus>> {
        self.bus.clone()
    }
}

impl Default for MokaCacheService {
    /// 10 000 entries, 300 s, on the machine's clock, on no bus.
    fn default() -> Self {
        Self::assemble(MokaPolicy::default(), Clock::default(), None)
    }
}

impl fmt::Debug for MokaCacheService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaCacheService")
            .field("policy", &self.policy)
            .field("entries", &self.store.len())
            .finish_non_exhaustive()
    }
}
