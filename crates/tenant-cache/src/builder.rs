//! The definition of a domain's cache.

use std::any::TypeId;
use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Codec, Json, LoadError, Scope};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::{Inner, LifeBy, TagsBy, TenantCache};
use crate::changes::Listeners;
use crate::far::FarTier;
use crate::flight::Flights;
use crate::key::CacheKey;
use crate::load::{FallbackFn, LoadFn, Loader, Resilience, Retry, load_fn};
use crate::near::NearTier;
use crate::policy::{Mode, NegativeTier, Policy};
use crate::registry::{Caches, Definition};
use crate::stats::Counters;

/// Defines a cache; begun by [`Caches::domain`], ended by [`load`](Self::load).
///
/// All options have defaults, see [`Policy`].
#[must_use = "a definition makes no cache until `load` is called"]
pub struct DomainBuilder<K, V> {
    caches: Caches,
    name: Arc<str>,
    policy: Policy,
    codec: Option<Arc<dyn Codec<V>>>,
    life_by: Option<LifeBy<K, V>>,
    tags_by: Option<TagsBy<K>>,
    resilience: Resilience,
    fallback: Option<Box<FallbackFn<K, V>>>,
    made_of: Vec<TypeId>,
}

impl<K, V> std::fmt::Debug for DomainBuilder<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DomainBuilder")
            .field("name", &self.name)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> DomainBuilder<K, V> {
    pub(crate) fn new(caches: Caches, name: &str, policy: Policy) -> Self {
        Self {
            caches,
            name: name.into(),
            policy,
            codec: None,
            life_by: None,
            tags_by: None,
            resilience: Resilience::default(),
            fallback: None,
            made_of: vec![TypeId::of::<K>(), TypeId::of::<V>()],
        }
    }

    /// All options at once.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Whose entries they are. Default [`Scope::Request`].
    pub fn scope(mut self, scope: Scope) -> Self {
        self.policy.scope = scope;
        self
    }

    /// Leaves the far tier out: for values that are cheap or have no serialised form.
    pub fn local(mut self) -> Self {
        self.policy.mode = Mode::Local;
        self
    }

    /// Life of an entry. Default 5 min, at most 30 days.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.policy.ttl = ttl;
        self
    }

    /// Life by key and outcome (`None`: there is no such thing), in place of [`ttl`](Self::ttl) and
    /// [`negative_ttl`](Self::negative_ttl). Zero: not cached.
    pub fn ttl_by(mut self, life: impl Fn(&K, Option<&V>) -> Duration + Send + Sync + 'static) -> Self {
        self.made_of.push(type_of(&life));
        self.life_by = Some(LifeBy(Box::new(life)));
        self
    }

    /// The tags of a key, at most 8: groups across domains, for
    /// [`invalidate_tag`](TenantCache::invalidate_tag). They follow from the key, because what a load may be
    /// stamped with must be known before it begins. Default: none.
    pub fn tags(mut self, tags: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.made_of.push(type_of(&tags));
        self.tags_by = Some(TagsBy(Box::new(tags)));
        self
    }

    /// Life in memory, in front of the far tier. Default 10 s.
    pub fn near_ttl(mut self, ttl: Duration) -> Self {
        self.policy.near_ttl = ttl;
        self
    }

    /// Life of "there is no such thing". Default 30 s.
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.policy.negative_ttl = ttl;
        self
    }

    /// Where "there is no such thing" is remembered. Default [`NegativeTier::Both`].
    pub fn negative_tier(mut self, tier: NegativeTier) -> Self {
        self.policy.negative_tier = tier;
        self
    }

    /// Entries in memory. Default 1 000.
    pub fn capacity(mut self, entries: usize) -> Self {
        self.policy.capacity = entries;
        self
    }

    /// "There is no such thing" in memory, kept apart. Default 1 000.
    pub fn negative_capacity(mut self, entries: usize) -> Self {
        self.policy.negative_capacity = entries;
        self
    }

    /// How much of a life is cut off at random, 0 to 1. Default 0.1.
    pub fn jitter(mut self, share: f64) -> Self {
        self.policy.jitter = share;
        self
    }

    /// How long a lease outlives a crashed loader. Default 3 s.
    pub fn lease_for(mut self, lease: Duration) -> Self {
        self.policy.lease_for = lease;
        self
    }

    /// How long to wait for another instance's load. Default 1 s.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.policy.lease_wait = wait;
        self
    }

    /// Tries a failed load again. Default: not.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.resilience.retry = Some(retry);
        self
    }

    /// The longest a single try may take. Default: no limit.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.resilience.attempt_timeout = Some(limit);
        self
    }

    /// The longest a load may take with all its tries. Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.resilience.timeout = Some(limit);
        self
    }

    /// Answers in place of a load that failed for good. What it says is never cached; `None` passes the error
    /// on. Default: none.
    pub fn fallback(
        mut self,
        fallback: impl Fn(&K, &LoadError) -> Option<V> + Send + Sync + 'static,
    ) -> Self {
        self.made_of.push(type_of(&fallback));
        self.fallback = Some(Box::new(fallback));
        self
    }

    /// How values are written in the far tier. Default JSON.
    pub fn codec(mut self, codec: impl Codec<V> + 'static) -> Self {
        self.made_of.push(type_of(&codec));
        self.codec = Some(Arc::new(codec));
        self
    }

    /// Ends the definition with the loader: what asks the origin for a key. `Ok(None)` is "there is no such
    /// thing"; errors are not cached. It runs in the request context of the caller that started it.
    ///
    /// Asking for a domain again in the same way gives the same cache.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] when an option cannot work, or the domain was defined before in another
    /// way: other types, options, loader.
    pub fn load<F, Fut, E>(self, loader: F) -> Result<TenantCache<K, V>, CacheError>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        V: Serialize + DeserializeOwned,
    {
        let codec = self.codec.clone().unwrap_or_else(|| Arc::new(Json));
        self.finish(loader, codec)
    }

    /// [`load`](Self::load) for a [`local`](Self::local) cache, whose values need no serialised form.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_local<F, Fut, E>(self, loader: F) -> Result<TenantCache<K, V>, CacheError>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.local().finish(loader, Arc::new(Unwritten))
    }

    fn finish<F, Fut, E>(
        mut self,
        loader: F,
        codec: Arc<dyn Codec<V>>,
    ) -> Result<TenantCache<K, V>, CacheError>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.policy.validate(&self.name)?;
        self.made_of.push(type_of(&loader));
        let definition =
            Definition { policy: self.policy.clone(), made_of: std::mem::take(&mut self.made_of) };
        let (shared, name) = (Arc::clone(&self.caches.shared), Arc::clone(&self.name));
        let inner = shared.define(&name, definition, || self.make(load_fn(loader), codec))?;
        Ok(TenantCache { inner })
    }

    fn make(self, load: Box<LoadFn<K, V>>, codec: Arc<dyn Codec<V>>) -> Result<Inner<K, V>, CacheError> {
        let shared = &self.caches.shared;
        let counters = Arc::new(Counters::new(&self.name));
        let wide = [shared.generations.all(), shared.generations.domain(None, &self.name)];
        let tiered = self.policy.mode == Mode::Tiered;
        let far = shared.far.as_ref().filter(|_| tiered).map(|service| FarTier {
            service: Arc::clone(service),
            trust: Arc::clone(&shared.trust),
            clock: shared.clock.clone(),
            counters: Arc::clone(&counters),
        });
        let (resilience, fallback) = (self.resilience, self.fallback);
        Ok(Inner {
            near: NearTier::new(&self.policy, wide, Arc::clone(&counters))?,
            flights: Arc::new(Flights::new()),
            loader: Loader { domain: Arc::clone(&self.name), load, fallback, resilience },
            shared: Arc::clone(shared),
            domain: self.name,
            policy: self.policy,
            life_by: self.life_by,
            tags_by: self.tags_by,
            listeners: Listeners::new(),
            far,
            codec,
            counters,
        })
    }
}

fn type_of<T: 'static>(_: &T) -> TypeId {
    TypeId::of::<T>()
}

/// The codec of a cache that writes nothing.
#[derive(Debug)]
struct Unwritten;

impl<V> Codec<V> for Unwritten {
    fn encode(&self, _: &V) -> Result<bytes::Bytes, cache_core::CodecError> {
        Err(cache_core::CodecError::new::<V>("encode", "the cache is local"))
    }

    fn decode(&self, _: &[u8]) -> Result<V, cache_core::CodecError> {
        Err(cache_core::CodecError::new::<V>("decode", "the cache is local"))
    }
}
