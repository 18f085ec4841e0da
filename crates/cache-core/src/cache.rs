//! The cache contract: bytes below ([`CacheService`], object safe), types above ([`CacheServiceExt`]).
//!
//! # Leased fill
//! A read-through cache must not store what it loaded before somebody invalidated the key. So a miss does
//! not end in an unconditional `set` but in a *lease*: [`get_or_lease`](CacheService::get_or_lease) grants
//! one caller of the whole fleet the right to fill the key, an invalidation takes it away, and
//! [`fill`](CacheService::fill) stores only while it stands. The mechanism is that of Facebook's memcache
//! leases (Nishtala et al., *Scaling Memcache at Facebook*, NSDI 2013, section 3.2.1), with one token per
//! *load*: a token per client lets the client's second load re-arm the stale fill of its first.
//!
//! The caller chooses the [token](LeaseToken) before it asks. So it can name a lease whose grant it never heard
//! of, because the answer was lost, late or not waited for, and [release](CacheService::release) it. A token that
//! the store made up would be known from the answer alone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{CacheError, InvalidationBus, Json, Ttl};

/// The `max_value_bytes` of a backend unless configured: 8 MiB.
pub const DEFAULT_MAX_VALUE_BYTES: usize = 8 * 1024 * 1024;

/// The life of an entry unless configured: 300 s.
pub const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// A cache of bytes under text keys. Object safe: used as `Arc<dyn CacheService>`.
///
/// For values of your own types import [`CacheServiceExt`]; for a cache that loads what is missing and
/// scopes itself to a tenant use the `tenant-cache` crate on top.
///
/// # For all methods
/// Keys are 1 to 512 bytes of UTF-8 without control characters. Every entry has a life ([`Ttl`]); a value
/// past it is never returned. A cache may forget any entry at any time (eviction).
///
/// **Errors:** [`CacheError::InvalidKey`] before anything is sent; [`CacheError::Backend`] when the store
/// cannot be reached or refuses; [`CacheError::Timeout`] when it does not answer in time, in which case a
/// change may still take effect. In-process backends have only the first.
///
/// **Cancel safety:** dropping a future leaves nothing behind in this process. A change that was already
/// sent may still take effect, as after a time-out.
#[async_trait]
pub trait CacheService: fmt::Debug + Send + Sync {
    /// The value under `key`, or `None` when there is none: absent, expired, or only leased.
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError>;

    /// The values under `keys`, in the order asked; one round trip (one per node on a cluster).
    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError>;

    /// Stores a value, over a value or a lease alike: a fill in flight is refused afterwards.
    ///
    /// Two writers' `set`s can land in either order; only *invalidate after commit* is coherent.
    ///
    /// # Errors
    /// Also [`CacheError::ValueTooLarge`]; the older value then still stands.
    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError>;

    /// Stores several values with one life; one round trip (one per node on a cluster), not atomic.
    ///
    /// # Errors
    /// Also [`CacheError::ValueTooLarge`] for any of them; nothing is stored then.
    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError>;

    /// Removes the entry and any lease on it, and announces that on [`bus`](Self::bus). After `Ok`, no
    /// load that began before can store its value. Idempotent: an absent key is `Ok`.
    async fn invalidate(&self, key: &str) -> Result<(), CacheError>;

    /// [`invalidate`](Self::invalidate) for several keys; one round trip (one per node on a cluster).
    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError>;

    /// Removes exactly the entries whose key starts with `prefix`, leases too, announces that, and says
    /// how many entries there were. `* ? [ ] ^ - \` are ordinary characters. An entry that is stored while
    /// this runs may survive.
    ///
    /// Complexity: linear in the whole key space. For groups prefer a domain or a tag of a tenant cache.
    ///
    /// # Errors
    /// An empty prefix is [`CacheError::InvalidKey`], not "everything".
    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError>;

    /// A hit, or the sole right to fill the key, or word that another holds it.
    ///
    /// The lease ends after `lease_for` unless [renewed](Self::renew), and at once by an invalidation, a `set` or
    /// a [`take_lease`](Self::take_lease). One command on Redis.
    ///
    /// Idempotent: while the token holds the key it is granted again, and the end of its lease stays where it was.
    /// So a call whose answer was lost can be repeated, but not once the load has begun: a grant after an
    /// invalidation would let the load store what it read before.
    ///
    /// # Cancel safety
    /// After an error, a time-out or a dropped future the token may hold the lease, and others wait for its end:
    /// [release](Self::release) it.
    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError>;

    /// As [`get_or_lease`](Self::get_or_lease), and also grants the right when the entry is still the dead
    /// one the caller saw (another generation, undecodable, past its hard expiry): the dead value makes way
    /// for the lease.
    ///
    /// # Cancel safety
    /// As [`get_or_lease`](Self::get_or_lease).
    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError>;

    /// Puts a lease in the key's place over whatever is there, a value or another's lease: readers find the key
    /// leased, and a fill or refresh in flight is refused. The first half of a fenced write, of which the second is
    /// a [`fill`](Self::fill) by the claim.
    ///
    /// Of two calls the later one wins. The claim is as good as any other: an invalidation, a `set` or another
    /// call may have taken the lease away by the time it is used, and the fill is refused then; so it is where a
    /// store has no room for the lease. Nothing is announced on [`bus`](Self::bus): the near tiers of other
    /// instances keep what they have. One command on Redis.
    ///
    /// # Cancel safety
    /// After an error, a time-out or a dropped future the value may be gone and the token may hold the lease:
    /// [release](Self::release) it.
    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError>;

    /// Stores only while what the claim saw still stands: its lease, or the value being refreshed.
    /// `false` when an invalidation, a `set` or another load came between; nothing is stored then. A life of
    /// zero stores nothing, gives the claim up and answers `true`.
    ///
    /// # Errors
    /// Also [`CacheError::ValueTooLarge`]; the lease then still stands.
    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError>;

    /// Gives a lease another `lease_for` from now; `false` when it no longer stands. A claim that is a
    /// stamp has nothing to renew: `true` while the value stands.
    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError>;

    /// Gives a lease up without filling, so that the next caller need not wait for its end. Leaves a value
    /// and the lease of another alone, so the token of a lease that was never granted can be released too:
    /// `Claim::lease(token)`. Idempotent.
    ///
    /// A request that reaches the store only after its release still gets the lease, which then ends by itself.
    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError>;

    /// Asks the store for a sign of life and says how long the answer took.
    async fn health(&self) -> Result<Duration, CacheError>;

    /// The bus on which this service announces its own invalidations, if it is on one.
    ///
    /// Whoever composes tiers asks this, so that an invalidation is announced once: by the service in the
    /// same step when it can, by the composition otherwise.
    fn bus(&self) -> Option<Arc<dyn InvalidationBus>>;
}

/// What [`CacheService::get_or_lease`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// A value.
    Hit(Bytes),
    /// Nothing, and the caller alone may now [fill](CacheService::fill) the key.
    Granted(Claim),
    /// Nothing, and another load holds the lease.
    Busy,
}

/// The name of one lease, chosen by its caller before it asks for the lease.
///
/// One token per load, never used for another one: a fill by the token of an earlier load would store what that load
/// had read before an invalidation. Backends compare tokens and nothing else, so a token must not be guessed or
/// repeated by chance: take [`random`](Self::random) ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseToken([u8; Self::BYTES]);

impl LeaseToken {
    /// The length of a token.
    pub const BYTES: usize = 16;

    /// A token of 128 random bits, for one load.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The token with these bytes, as read from a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes, as written to a store.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

/// A right to fill one key, and what must still stand for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim(ClaimKind);

/// What a [`Claim`] saw.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClaimKind {
    /// The lease of this token.
    Lease(LeaseToken),
    /// The value it refreshes.
    Stamp(Stamp),
}

impl Claim {
    /// A claim by the lease of this token. It stands while the token holds the key, whether or not the answer
    /// that granted it was read.
    #[must_use]
    pub fn lease(token: LeaseToken) -> Self {
        Self(ClaimKind::Lease(token))
    }

    /// A claim to replace the value that was observed *before* the load began: how a refresh stores while
    /// readers go on with the old value. No lease is taken.
    #[must_use]
    pub fn replacing(observed: Stamp) -> Self {
        Self(ClaimKind::Stamp(observed))
    }

    /// What must still stand.
    #[must_use]
    pub fn kind(&self) -> &ClaimKind {
        &self.0
    }
}

/// The beginning of a value that was read: its first [`Stamp::BYTES`] bytes.
///
/// It stands while the stored value begins with the same bytes. It is as unique as they are: writers who
/// refresh or take over put a random id at the front of each value they store, as the tenant cache does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamp(Bytes);

impl Stamp {
    /// How many bytes are compared.
    pub const BYTES: usize = 33;

    /// The stamp of a value.
    #[must_use]
    pub fn of(value: &Bytes) -> Self {
        // A copy, so that a stamp does not keep a large value in memory.
        Self(Bytes::copy_from_slice(&value[..value.len().min(Self::BYTES)]))
    }

    /// The bytes compared.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether `value` is (still) the one this stamp was taken of. A value shorter than
    /// [`Stamp::BYTES`] must be equal as a whole.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        match self.0.len() {
            Self::BYTES => value.starts_with(&self.0),
            _ => *value == *self.0,
        }
    }
}

/// The typed calls, on every [`CacheService`] and on `dyn CacheService`; JSON.
///
/// ```
/// # use std::sync::Arc;
/// # use cache_core::prelude::*;
/// async fn greet(cache: Arc<dyn CacheService>) -> Result<Option<String>, CacheError> {
///     cache.set("greeting", "hello", Some(300)).await?;
///     cache.get("greeting").await
/// }
/// ```
pub trait CacheServiceExt: CacheService {
    /// The value under `key` as a `T`.
    ///
    /// # Errors
    /// As [`CacheService::get_bytes`], and [`CacheError::Serialization`] when the stored bytes are not a `T`.
    fn get<T: DeserializeOwned + Send>(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Option<T>, CacheError>> + Send {
        async move { self.get_bytes(key).await?.map(|bytes| decode(&bytes)).transpose() }
    }

    /// The values under `keys`, in the order asked.
    ///
    /// # Errors
    /// As [`get`](Self::get); one value that does not decode fails the call.
    fn get_many<T: DeserializeOwned + Send>(
        &self,
        keys: &[&str],
    ) -> impl Future<Output = Result<Vec<Option<T>>, CacheError>> + Send {
        async move {
            let found = self.get_many_bytes(keys).await?;
            found.into_iter().map(|bytes| bytes.map(|bytes| decode(&bytes)).transpose()).collect()
        }
    }

    /// Stores a value. `ttl` is `None` (the service's default), `Some(300)` (whole seconds) or a `Duration`.
    ///
    /// # Errors
    /// As [`CacheService::set_bytes`], and [`CacheError::Serialization`] when the value has no JSON form.
    fn set<T: Serialize + Sync + ?Sized>(
        &self,
        key: &str,
        value: &T,
        ttl: impl Into<Ttl> + Send,
    ) -> impl Future<Output = Result<(), CacheError>> + Send {
        async move { self.set_bytes(key, Json::to_bytes(value)?, ttl.into()).await }
    }

    /// Stores several values with one life.
    ///
    /// # Errors
    /// As [`set`](Self::set); nothing is stored when one value has no JSON form.
    fn set_many<T: Serialize + Sync>(
        &self,
        entries: &[(&str, T)],
        ttl: impl Into<Ttl> + Send,
    ) -> impl Future<Output = Result<(), CacheError>> + Send {
        async move {
            let encoded = entries.iter().map(|(key, value)| Ok((*key, Json::to_bytes(value)?)));
            let encoded = encoded.collect::<Result<Vec<_>, CacheError>>()?;
            self.set_many_bytes(&encoded, ttl.into()).await
        }
    }
}

impl<S: CacheService + ?Sized> CacheServiceExt for S {}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CacheError> {
    Ok(Json::from_bytes(bytes)?)
}

/// A shared service is a service. The lint keeps it from forgetting a method that is added later.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: CacheService + ?Sized> CacheService for Arc<S> {
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        (**self).get_bytes(key).await
    }

    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        (**self).get_many_bytes(keys).await
    }

    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        (**self).set_bytes(key, value, ttl).await
    }

    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        (**self).set_many_bytes(entries, ttl).await
    }

    async fn invalidate(&self, key: &str) -> Result<(), CacheError> {
        (**self).invalidate(key).await
    }

    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError> {
        (**self).invalidate_many(keys).await
    }

    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        (**self).invalidate_prefix(prefix).await
    }

    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        (**self).get_or_lease(key, token, lease_for).await
    }

    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        (**self).lease_over(key, observed, token, lease_for).await
    }

    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError> {
        (**self).take_lease(key, token, lease_for).await
    }

    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        (**self).fill(key, claim, value, ttl).await
    }

    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        (**self).renew(key, claim, lease_for).await
    }

    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        (**self).release(key, claim).await
    }

    async fn health(&self) -> Result<Duration, CacheError> {
        (**self).health().await
    }

    fn bus(&self) -> Option<Arc<dyn InvalidationBus>> {
        (**self).bus()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A1: object safe, shareable, and the typed calls exist on the trait object.
    #[test]
    fn is_object_safe_with_typed_calls() {
        fn assert_shareable<T: Send + Sync + fmt::Debug + ?Sized>() {}
        assert_shareable::<dyn CacheService>();
        fn typed(cache: &dyn CacheService) -> impl Future<Output = Result<Option<u32>, CacheError>> + Send {
            cache.get::<u32>("k")
        }
        let _ = typed;
        async fn through_arc(cache: Arc<dyn CacheService>) -> Result<(), CacheError> {
            cache.set("a", &1, None).await?;
            cache.set("a", &1, Some(300)).await?;
            cache.set("a", "text", Duration::from_millis(1)).await?;
            cache.set_many(&[("a", 1), ("b", 2)], None).await?;
            let _: Vec<Option<u32>> = cache.get_many(&["a", "b"]).await?;
            Ok(())
        }
        let _ = through_arc;
    }

    #[test]
    fn a_short_stamp_must_match_as_a_whole() {
        let short = Stamp::of(&Bytes::from_static(b"ab"));
        assert!(short.matches(b"ab") && !short.matches(b"abc"));
        let long = Stamp::of(&Bytes::from(vec![7; 40]));
        assert!(long.matches(&[7; 33]) && !long.matches(&[7; 32]));
    }
}
