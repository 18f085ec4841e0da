//! The contract of [`CacheService`] in its plainest form, to compare backends with.
//!
//! [`ModelCache`] is one map under one lock: slow, unbounded, and easy to believe. It passes the suite itself.
//! [`agree`] runs random operations on it and on a backend and compares every answer.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

mod compare;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::cache::{ClaimKind, DEFAULT_TTL};
use cache_core::key::validate;
use cache_core::{
    CacheError, CacheService, Claim, Clock, InvalidationBus, LeaseToken, Lookup, Stamp, Tick, Ttl,
};
use parking_lot::{Mutex, MutexGuard};

pub use compare::agree;

/// A cache that forgets nothing before its time, is bounded by nothing, and announces nothing.
#[derive(Debug)]
pub struct ModelCache {
    clock: Clock,
    max_value_bytes: usize,
    slots: Mutex<BTreeMap<String, Slot>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    until: Tick,
    holds: Holds,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Holds {
    Value(Bytes),
    Lease(LeaseToken),
}

impl ModelCache {
    /// An empty cache; 300 s by default.
    #[must_use]
    pub fn new(clock: Clock, max_value_bytes: usize) -> Self {
        Self { clock, max_value_bytes, slots: Mutex::default() }
    }

    /// What there is now: what has ended goes first.
    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        let mut slots = self.slots.lock();
        let now = self.clock.now();
        slots.retain(|_, slot| now < slot.until);
        slots
    }

    fn value(&self, key: &str) -> Option<Bytes> {
        match self.slots().get(key)?.holds {
            Holds::Value(ref value) => Some(value.clone()),
            Holds::Lease(_) => None,
        }
    }

    fn put(&self, slots: &mut BTreeMap<String, Slot>, key: &str, holds: Holds, life: Option<Duration>) {
        match life {
            None => slots.remove(key),
            Some(life) => slots.insert(key.to_owned(), Slot { until: self.clock.now() + life, holds }),
        };
    }

    fn lease(&self, key: &str, dead: Option<&Stamp>, token: LeaseToken, lease_for: Duration) -> Lookup {
        let mut slots = self.slots();
        match slots.get(key).map(|slot| &slot.holds) {
            Some(Holds::Value(value)) if !dead.is_some_and(|stamp| stamp.matches(value)) => {
                return Lookup::Hit(value.clone());
            }
            Some(Holds::Lease(held)) if *held != token => return Lookup::Busy,
            // Asked for again: its end stays where it was.
            Some(Holds::Lease(_)) => {}
            Some(Holds::Value(_)) | None => {
                self.put(&mut slots, key, Holds::Lease(token), Some(lease_for));
            }
        }
        Lookup::Granted(Claim::lease(token))
    }

    fn check_size(&self, value: &Bytes) -> Result<(), CacheError> {
        let (size, limit) = (value.len(), self.max_value_bytes);
        if size > limit { Err(CacheError::ValueTooLarge { size, limit }) } else { Ok(()) }
    }
}

fn stands(slots: &BTreeMap<String, Slot>, key: &str, claim: &Claim) -> bool {
    match (slots.get(key).map(|slot| &slot.holds), claim.kind()) {
        (Some(Holds::Lease(held)), ClaimKind::Lease(token)) => held == token,
        (Some(Holds::Value(value)), ClaimKind::Stamp(stamp)) => stamp.matches(value),
        _ => false,
    }
}

#[async_trait]
impl CacheService for ModelCache {
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        validate(key)?;
        Ok(self.value(key))
    }

    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        keys.iter().try_for_each(|key| validate(key))?;
        Ok(keys.iter().map(|key| self.value(key)).collect())
    }

    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        self.set_many_bytes(&[(key, value)], ttl).await
    }

    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        for (key, value) in entries {
            validate(key)?;
            self.check_size(value)?;
        }
        let mut slots = self.slots();
        for (key, value) in entries {
            self.put(&mut slots, key, Holds::Value(value.clone()), ttl.resolve(DEFAULT_TTL));
        }
        Ok(())
    }

    async fn invalidate(&self, key: &str) -> Result<(), CacheError> {
        self.invalidate_many(&[key]).await
    }

    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError> {
        keys.iter().try_for_each(|key| validate(key))?;
        self.slots().retain(|key, _| !keys.contains(&key.as_str()));
        Ok(())
    }

    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        validate(prefix)?;
        let gone = self.slots().extract_if(.., |key, _| key.starts_with(prefix)).collect::<Vec<_>>();
        Ok(gone.iter().filter(|(_, slot)| matches!(slot.holds, Holds::Value(_))).count() as u64)
    }

    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        validate(key)?;
        Ok(self.lease(key, None, token, lease_for))
    }

    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        validate(key)?;
        Ok(self.lease(key, Some(observed), token, lease_for))
    }

    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError> {
        validate(key)?;
        self.put(&mut self.slots(), key, Holds::Lease(token), Some(lease_for));
        Ok(Claim::lease(token))
    }

    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        validate(key)?;
        self.check_size(&value)?;
        let mut slots = self.slots();
        let stands = stands(&slots, key, claim);
        if stands {
            self.put(&mut slots, key, Holds::Value(value), ttl.resolve(DEFAULT_TTL));
        }
        Ok(stands)
    }

    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        validate(key)?;
        let mut slots = self.slots();
        let stands = stands(&slots, key, claim);
        if stands && let ClaimKind::Lease(token) = claim.kind() {
            self.put(&mut slots, key, Holds::Lease(*token), Some(lease_for));
        }
        Ok(stands)
    }

    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        validate(key)?;
        let mut slots = self.slots();
        if matches!(claim.kind(), ClaimKind::Lease(_)) && stands(&slots, key, claim) {
            slots.remove(key);
        }
        Ok(())
    }

    async fn health(&self) -> Result<Duration, CacheError> {
        Ok(Duration::ZERO)
    }

    fn bus(&self) -> Option<Arc<dyn InvalidationBus>> {
        None
    }
}
