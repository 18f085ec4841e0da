//! The service.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::cache::ClaimKind;
use cache_core::key::validate;
use cache_core::{
    CacheError, CacheService, Claim, Clock, Invalidation, InvalidationBus, Lookup, Stamp, Tick, Ttl,
};
use mini_moka::sync::{Cache, ConcurrentCacheExt};
use parking_lot::{Mutex, MutexGuard};

use crate::entry::Entry;
use crate::lease::Leases;
use crate::policy::{Capacity, MokaPolicy};
use crate::stats::{Cause, Counters, MokaStats};

const STRIPES: usize = 64;

/// Below this many writes expired entries are not looked for.
const MIN_WRITES_PER_SWEEP: u64 = 1_024;

/// A [`CacheService`] in this process's memory.
///
/// Values are kept serialised, so that what works here works on a shared backend too. An entry's life is exact
/// to the service's clock. The memory of expired entries is reclaimed when they are met, and by a sweep after
/// every so many writes (at least 1 024, and half the entries: a constant cost per write); there is no
/// background task. mini-moka may refuse a new entry in favour of what is used more: a value that was just
/// stored may not be there.
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
    values: Cache<String, Arc<Entry>>,
    stripes: Box<[Mutex<Leases>]>,
    hasher: RandomState,
    policy: MokaPolicy,
    clock: Clock,
    bus: Option<Arc<dyn InvalidationBus>>,
    counters: Arc<Counters>,
    writes: AtomicU64,
}

impl MokaCacheService {
    /// A service with options.
    #[must_use]
    pub fn builder() -> MokaCacheBuilder {
        MokaCacheBuilder::default()
    }

    /// What the service has done. Applies mini-moka's pending work first, so that the size is exact.
    #[must_use]
    pub fn stats(&self) -> MokaStats {
        self.values.sync();
        self.counters.snapshot(self.values.entry_count())
    }

    /// Drops every expired entry now. Linear in the number of entries.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for stripe in &self.stripes {
            stripe.lock().sweep(now);
        }
        for key in self.keys_where(|_, entry| !entry.alive(now)) {
            let _stripe = self.stripe(&key);
            self.remove_if_expired(&key, now);
        }
        self.values.sync();
    }

    fn stripe(&self, key: &str) -> MutexGuard<'_, Leases> {
        self.stripes[self.hasher.hash_one(key) as usize % STRIPES].lock()
    }

    /// The living value; an expired one is dropped when it is met.
    fn value(&self, key: &str) -> Option<Bytes> {
        let now = self.clock.now();
        let entry = self.values.get(&key.to_owned())?;
        if entry.alive(now) {
            return Some(entry.value.clone());
        }
        let _stripe = self.stripe(key);
        self.remove_if_expired(key, now);
        None
    }

    /// The living value, for those who hold the key's stripe.
    fn value_locked(&self, key: &str, now: Tick) -> Option<Bytes> {
        let entry = self.values.get(&key.to_owned())?;
        entry.alive(now).then(|| entry.value.clone())
    }

    fn remove_if_expired(&self, key: &str, now: Tick) {
        let key = key.to_owned();
        if self.values.get(&key).is_some_and(|entry| !entry.alive(now)) {
            self.remove_locked(&key, Cause::Expired);
        }
    }

    fn remove_locked(&self, key: &str, cause: Cause) -> bool {
        let key = key.to_owned();
        let Some(entry) = self.values.get(&key) else { return false };
        let alive = entry.alive(self.clock.now());
        entry.mark(if alive { cause } else { Cause::Expired });
        self.values.invalidate(&key);
        alive
    }

    /// Stores for those who hold the key's stripe.
    fn store_locked(&self, key: &str, value: Bytes, ttl: Ttl) {
        self.remove_locked(key, Cause::Replaced);
        if let Some(life) = ttl.resolve(self.policy.default_ttl) {
            let entry = Entry::new(value, self.clock.now() + life, &self.counters);
            self.values.insert(key.to_owned(), Arc::new(entry));
        }
    }

    fn set(&self, key: &str, value: Bytes, ttl: Ttl) {
        {
            let mut leases = self.stripe(key);
            leases.end(key);
            self.store_locked(key, value, ttl);
        }
        self.count_write();
    }

    fn remove(&self, key: &str) -> bool {
        let mut leases = self.stripe(key);
        leases.end(key);
        self.remove_locked(key, Cause::Invalidated)
    }

    fn count_write(&self) {
        let every = MIN_WRITES_PER_SWEEP.max(self.values.entry_count() / 2);
        if self.writes.fetch_add(1, Ordering::Relaxed) + 1 >= every {
            self.writes.store(0, Ordering::Relaxed);
            self.sweep();
        }
    }

    /// Collected before anything is removed: the iterator holds a shard's lock.
    fn keys_where(&self, wanted: impl Fn(&str, &Entry) -> bool) -> Vec<String> {
        let entries = self.values.iter().filter(|entry| wanted(entry.key(), entry.value()));
        entries.map(|entry| entry.key().clone()).collect()
    }

    fn check_size(&self, value: &Bytes) -> Result<(), CacheError> {
        let (size, limit) = (value.len(), self.policy.max_value_bytes);
        if size > limit { Err(CacheError::ValueTooLarge { size, limit }) } else { Ok(()) }
    }

    fn grant(&self, leases: &mut Leases, key: &str, now: Tick, lease_for: Duration) -> Lookup {
        // Without room for a lease nobody may fill; the caller loads without storing.
        leases
            .grant(key, now, now + lease_for)
            .map_or(Lookup::Busy, |token| Lookup::Granted(Claim::lease(token)))
    }

    fn stands(&self, leases: &Leases, key: &str, claim: &Claim, now: Tick) -> bool {
        match claim.kind() {
            ClaimKind::Lease(token) => leases.holds(key, token, now),
            ClaimKind::Stamp(stamp) => self.value_locked(key, now).is_some_and(|value| stamp.matches(&value)),
        }
    }

    async fn announce(&self, message: impl FnOnce() -> Invalidation + Send) -> Result<(), CacheError> {
        match &self.bus {
            Some(bus) => bus.publish(&message()).await,
            None => Ok(()),
        }
    }
}

#[async_trait]
impl CacheService for MokaCacheService {
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        validate(key)?;
        let value = self.value(key);
        self.counters.read(value.is_some());
        Ok(value)
    }

    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        keys.iter().try_for_each(|key| validate(key))?;
        let found = keys.iter().map(|key| {
            let value = self.value(key);
            self.counters.read(value.is_some());
            value
        });
        Ok(found.collect())
    }

    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        validate(key)?;
        self.check_size(&value)?;
        self.set(key, value, ttl);
        Ok(())
    }

    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        for (key, value) in entries {
            validate(key)?;
            self.check_size(value)?;
        }
        for (key, value) in entries {
            self.set(key, value.clone(), ttl);
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
            self.remove(key);
        }
        self.announce(|| Invalidation::Keys(keys.iter().map(|key| Arc::from(*key)).collect())).await
    }

    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        validate(prefix)?;
        // The leases first: a fill that comes before this is found below, one that comes after is refused.
        for stripe in &self.stripes {
            stripe.lock().end_prefix(prefix);
        }
        let keys = self.keys_where(|key, _| key.starts_with(prefix));
        let removed = keys.iter().filter(|key| self.remove(key)).count() as u64;
        self.announce(|| Invalidation::Prefix(prefix.into())).await?;
        Ok(removed)
    }

    async fn get_or_lease(&self, key: &str, lease_for: Duration) -> Result<Lookup, CacheError> {
        validate(key)?;
        let mut leases = self.stripe(key);
        let now = self.clock.now();
        if let Some(value) = self.value_locked(key, now) {
            return Ok(Lookup::Hit(value));
        }
        if leases.held(key, now) {
            return Ok(Lookup::Busy);
        }
        Ok(self.grant(&mut leases, key, now, lease_for))
    }

    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        validate(key)?;
        let mut leases = self.stripe(key);
        let now = self.clock.now();
        match self.value_locked(key, now) {
            Some(value) if !observed.matches(&value) => return Ok(Lookup::Hit(value)),
            None if leases.held(key, now) => return Ok(Lookup::Busy),
            _ => {}
        }
        let lookup = self.grant(&mut leases, key, now, lease_for);
        if matches!(lookup, Lookup::Granted(_)) {
            self.remove_locked(key, Cause::Replaced);
        }
        Ok(lookup)
    }

    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        validate(key)?;
        self.check_size(&value)?;
        {
            let mut leases = self.stripe(key);
            if !self.stands(&leases, key, claim, self.clock.now()) {
                return Ok(false);
            }
            leases.end(key);
            self.store_locked(key, value, ttl);
        }
        self.count_write();
        Ok(true)
    }

    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        validate(key)?;
        let mut leases = self.stripe(key);
        let now = self.clock.now();
        let stands = self.stands(&leases, key, claim, now);
        if stands && matches!(claim.kind(), ClaimKind::Lease(_)) {
            leases.extend(key, now + lease_for);
        }
        Ok(stands)
    }

    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        validate(key)?;
        let mut leases = self.stripe(key);
        if let ClaimKind::Lease(token) = claim.kind()
            && leases.holds(key, token, self.clock.now())
        {
            leases.end(key);
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
        MokaCacheBuilder::default().finish()
    }
}

impl fmt::Debug for MokaCacheService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaCacheService")
            .field("policy", &self.policy)
            .field("entries", &self.values.entry_count())
            .finish_non_exhaustive()
    }
}

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
        Ok(self.finish())
    }

    fn finish(self) -> MokaCacheService {
        let Self { policy, clock, bus } = self;
        let values = match policy.capacity {
            Capacity::Entries(entries) => Cache::builder().max_capacity(entries),
            Capacity::Bytes(bytes) => {
                let weigh = |key: &String, entry: &Arc<Entry>| {
                    u32::try_from(key.len() + entry.value.len()).unwrap_or(u32::MAX)
                };
                Cache::builder().weigher(weigh).max_capacity(bytes)
            }
        };
        let values = match policy.time_to_idle {
            Some(idle) => values.time_to_idle(idle),
            None => values,
        };
        MokaCacheService {
            values: values.build(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            policy,
            clock,
            bus,
            counters: Arc::default(),
            writes: AtomicU64::new(0),
        }
    }
}
