//! The definition of a domain's cache.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cache_core::clock::COARSE_LAG;
use cache_core::error::SharedSource;
use cache_core::{CacheError, Codec, Json, LoadError, Scope, Sealer};
use futures_util::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::answer::Source;
use crate::background::Background;
use crate::bulk::BulkFn;
use crate::cache::TenantCache;
use crate::changes::Listeners;
use crate::definition::{Definition, MadeOf, SealerId};
use crate::far::FarTier;
use crate::hooks::Hooks;
use crate::inner::{Inner, LifeBy, TagsBy};
use crate::key::CacheKey;
use crate::labels::Meters;
use crate::load::{FallbackFn, LoadFn, Loader, Resilience, Retry, load_fn};
use crate::loaded::{LoadRequest, Loaded};
use crate::near::NearTier;
use crate::policy::{Mode, NegativeTier, Policy, validate_resilience};
use crate::registry::Caches;
use crate::single_flight::SingleFlight;
use crate::stats::Counters;
use crate::tag_numbers::TagNumbers;
use crate::wrap::Wrapping;

/// Defines a cache; begun by [`Caches::domain`], ended by [`load`](Self::load).
///
/// All options have defaults, see [`Policy`].
#[must_use = "a definition makes no cache until `load` is called"]
pub struct DomainBuilder<K, V> {
    caches: Caches,
    name: Arc<str>,
    policy: Policy,
    codec: Option<Arc<dyn Codec<V>>>,
    sealer: Option<Arc<dyn Sealer>>,
    life_by: Option<LifeBy<K, V>>,
    tags_by: Option<TagsBy<K>>,
    resilience: Resilience,
    fallback: Option<Box<FallbackFn<K, V>>>,
    bulk: Option<Arc<BulkFn<K, V>>>,
    hooks: Hooks<K>,
    version: Option<String>,
    made_of: MadeOf,
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
        let sealer = caches.shared.generations.form.sealer.clone();
        Self {
            caches,
            name: name.into(),
            policy,
            codec: None,
            sealer,
            life_by: None,
            tags_by: None,
            resilience: Resilience::default(),
            fallback: None,
            bulk: None,
            hooks: Hooks::default(),
            version: None,
            made_of: MadeOf::types(&[TypeId::of::<K>(), TypeId::of::<V>()]),
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
        self.made_of.function(&life);
        self.life_by = Some(LifeBy(Box::new(life)));
        self
    }

    /// The tags of a key, at most 8: groups across domains, for
    /// [`invalidate_tag`](TenantCache::invalidate_tag). They follow from the key, because what a load may be
    /// stamped with must be known before it begins. Default: none.
    ///
    /// A key with more tags, or with one that is empty, over 512 bytes or has control characters, is not looked up or
    /// stored: it is a [`CacheError::Configuration`] that names the domain and the limit.
    pub fn tags(mut self, tags: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.made_of.function(&tags);
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

    /// Refreshes an entry in the background at the first hit after this share of its life, between 0 and 1, so
    /// that what is asked for often never expires. Default: not.
    pub fn refresh_ahead(mut self, share: f64) -> Self {
        self.policy.refresh_ahead = Some(share);
        self
    }

    /// Serves an entry for so long after its [`ttl`](Self::ttl), while it is refreshed in the background. Default
    /// 0: not at all.
    pub fn stale_while_revalidate(mut self, stale: Duration) -> Self {
        self.policy.stale_while_revalidate = stale;
        self
    }

    /// Keeps an entry for so long after its [`ttl`](Self::ttl), to serve it when the load fails ("fail-safe"). An
    /// invalidated entry is gone, and is not served. Default 0: a failed load is an error.
    pub fn stale_if_error(mut self, stale: Duration) -> Self {
        self.policy.stale_if_error = stale;
        self
    }

    /// How long after a failed load its stale value is served without another load. Default 5 s.
    pub fn error_throttle(mut self, pause: Duration) -> Self {
        self.policy.error_throttle = pause;
        self
    }

    /// How long a lookup waits for a load while there is a stale value to serve
    /// ([`stale_if_error`](Self::stale_if_error)); the load goes on in the background. Default: to its end.
    pub fn soft_timeout(mut self, limit: Duration) -> Self {
        self.policy.soft_timeout = Some(limit);
        self
    }

    /// How long a lookup waits for a load; then it fails ([`LoadError::TimedOut`]), or is given the stale value if
    /// there is one, and the load goes on in the background. Default: to its end.
    pub fn hard_timeout(mut self, limit: Duration) -> Self {
        self.policy.hard_timeout = Some(limit);
        self
    }

    /// The share of the memory that one tenant can fill, over 0 and up to 1: beyond, its own oldest entries go,
    /// and not the others'. Costs a queue entry per entry. Default: no limit.
    pub fn tenant_share(mut self, share: f64) -> Self {
        self.policy.tenant_share = Some(share);
        self
    }

    /// Called on every hit; it runs in the lookup, so it must be quick. Default: none.
    pub fn on_hit(mut self, hook: impl Fn(&K, Source) + Send + Sync + 'static) -> Self {
        self.made_of.function(&hook);
        self.hooks.on_hit = Some(Box::new(hook));
        self
    }

    /// Called on every lookup that had to load; it runs in the lookup, so it must be quick. Default: none.
    pub fn on_miss(mut self, hook: impl Fn(&K) + Send + Sync + 'static) -> Self {
        self.made_of.function(&hook);
        self.hooks.on_miss = Some(Box::new(hook));
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
        self.made_of.function(&fallback);
        self.fallback = Some(Box::new(fallback));
        self
    }

    /// Loads several keys in one go, for [`get_many`](TenantCache::get_many): at most 500 at a time; a key that is
    /// not in the answer does not exist. A single key is loaded by the loader of [`load`](Self::load). Default:
    /// none, several keys are loaded one by one. What it brings has the tags of its key and the life that the definition
    /// says: a loader that names [tags](Loaded::tag) or lives of its own goes without a bulk loader, or the two disagree.
    pub fn bulk<F, Fut, E>(mut self, loader: F) -> Self
    where
        F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.made_of.function(&loader);
        self.bulk = Some(Arc::new(move |keys| {
            let loaded = loader(keys);
            async move { loaded.await.map_err(|error| SharedSource::from(error.into())) }.boxed()
        }));
        self
    }

    /// How values are written in the far tier. Default JSON. Codecs of one type are told apart by their `Debug`.
    pub fn codec(mut self, codec: impl Codec<V> + 'static) -> Self {
        self.made_of.value(&codec);
        self.codec = Some(Arc::new(codec));
        self
    }

    /// Compresses (LZ4) what is longer than so many bytes in the far tier, where that makes it shorter. Default:
    /// not. Instances with and without it read each other's entries.
    pub fn compress_over(mut self, bytes: usize) -> Self {
        self.policy.compress_over = Some(bytes);
        self
    }

    /// Seals entries in the far tier: whoever reads the store sees no value, and whoever writes to it can neither
    /// change nor move one, nor prolong its life. Entries that are not sealed, or do not open, are counted misses
    /// (`damaged`) and replaced. Keys, tags, times and lengths stay readable. Default: the sealer of
    /// [the caches](crate::CachesBuilder::sealer), if they have one.
    ///
    /// All definitions of a domain must use the same `Arc`.
    pub fn seal(mut self, sealer: Arc<dyn Sealer>) -> Self {
        self.sealer = Some(sealer);
        self
    }

    /// Leaves the entries as they are in the far tier, whatever the other domains do: for what anybody may read, and
    /// nobody is harmed by when somebody else writes it.
    pub fn unsealed(mut self) -> Self {
        self.sealer = None;
        self
    }

    /// Says which definition this is, where that cannot be seen: the functions of two definitions are of one type and may
    /// hold different things (another database). With one version in both they are the same, and the second gets the
    /// cache of the first; whoever gives it answers for that. Needed only to define a domain again while its cache is
    /// there. Default: none.
    pub fn version(mut self, version: impl std::fmt::Display) -> Self {
        self.version = Some(version.to_string());
        self
    }

    /// Ends the definition with the loader: what asks the origin for a key. `Ok(None)` is "there is no such
    /// thing"; errors are not cached. It runs in a task of its own, in the scope of the entry and nothing more of the
    /// request that happened to come first: for [`Scope::Global`] in none, for [`Scope::Tenant`] as the tenant without a
    /// user, and never with the caller's address or request id. Another cache that it asks for needs the same scope or a
    /// wider one; a narrower one fails with [`CacheError::NoTenant`] or [`CacheError::NoUser`].
    ///
    /// Asking for a domain again in the same way gives the same cache, as long as somebody holds it: the registry does
    /// not. Define it once and keep it; a cache that is defined for each request remembers nothing in memory.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] when an option cannot work, or the domain was defined before in another
    /// way: other types, options, loader; or with functions that capture something, which cannot be compared, and
    /// without a [`version`](Self::version) that says that it is the same.
    pub fn load<F, Fut, E>(mut self, loader: F) -> Result<TenantCache<K, V>, CacheError>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        V: Serialize + DeserializeOwned,
    {
        self.made_of.function(&loader);
        let codec = self.codec.clone().unwrap_or_else(|| Arc::new(Json));
        let load = move |request: LoadRequest<K, V>| loader(request.key);
        self.finish(load_fn(load), false, codec)
    }

    /// [`load`](Self::load) with a loader that sees the value it would replace, may answer that it has not
    /// changed, and may decide how long its answer lives and which groups it belongs to.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tenant_cache::{Caches, LoadRequest, Loaded, TenantCache};
    ///
    /// # struct Row { etag: u64 }
    /// # async fn ask(id: u64, etag: Option<u64>) -> Result<Option<String>, std::io::Error> { Ok(None) }
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Page { etag: u64, text: String }
    /// let pages: TenantCache<u64, Page> = Caches::in_memory()
    ///     .domain("pages")
    ///     .stale_if_error(Duration::from_secs(600))
    ///     .load_with(|request: LoadRequest<u64, Page>| async move {
    ///         let known = request.stale.as_ref().map(|page| page.etag);
    ///         Ok::<_, std::io::Error>(match ask(request.key, known).await? {
    ///             None => Loaded::not_modified(),
    ///             Some(text) => Loaded::value(Page { etag: 1, text }).tag("pages"),
    ///         })
    ///     })?;
    /// # Ok::<(), cache_core::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with<F, Fut, E>(mut self, loader: F) -> Result<TenantCache<K, V>, CacheError>
    where
        F: Fn(LoadRequest<K, V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Loaded<V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        V: Serialize + DeserializeOwned,
    {
        self.made_of.function(&loader);
        let codec = self.codec.clone().unwrap_or_else(|| Arc::new(Json));
        self.finish(load_fn(loader), true, codec)
    }

    /// [`load`](Self::load) for a [`local`](Self::local) cache, whose values need no serialised form.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_local<F, Fut, E>(mut self, loader: F) -> Result<TenantCache<K, V>, CacheError>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.made_of.function(&loader);
        let load = move |request: LoadRequest<K, V>| loader(request.key);
        self.local().finish(load_fn(load), false, Arc::new(Unwritten))
    }

    /// Makes the cache, or finds the one that was made in the same way.
    fn finish(
        mut self,
        load: Arc<LoadFn<K, V>>,
        may_tag: bool,
        codec: Arc<dyn Codec<V>>,
    ) -> Result<TenantCache<K, V>, CacheError> {
        self.policy.validate(&self.name)?;
        if self.policy.mode == Mode::Local {
            // It stores nothing that could be sealed.
            self.sealer = None;
        }
        validate_resilience(&self.name, &self.resilience)?;
        let definition = Definition {
            policy: self.policy.clone(),
            resilience: self.resilience,
            version: self.version.take(),
            codec: format!("{codec:?}"),
            sealer: SealerId::of(self.sealer.as_ref()),
            made_of: std::mem::take(&mut self.made_of),
        };
        let (shared, name) = (Arc::clone(&self.caches.shared), Arc::clone(&self.name));
        let inner = shared.define(&name, definition, || self.make(load, may_tag, codec))?;
        Ok(TenantCache { inner })
    }

    fn make(
        mut self,
        load: Arc<LoadFn<K, V>>,
        may_tag: bool,
        codec: Arc<dyn Codec<V>>,
    ) -> Result<Inner<K, V>, CacheError> {
        let shared = &self.caches.shared;
        if let Some(bound) = shared.bus.staleness_bound() {
            // A flight's age is read from the coarse clock.
            self.policy.join_within = self.policy.join_within.min(bound.saturating_sub(COARSE_LAG));
        }
        let meters = Meters::new(&self.name, &shared.labels);
        let counters = Arc::new(Counters::new(&self.name, meters.is_some()));
        let wide = [shared.generations.all(), shared.generations.domain(None, &self.name)];
        let tiered = self.policy.mode == Mode::Tiered;
        let far = shared.far.as_ref().filter(|_| tiered).map(|service| FarTier {
            service: Arc::clone(service),
            trust: Arc::clone(&shared.trust),
            clock: shared.clock.clone(),
            generations: Arc::clone(&shared.generations),
            counters: Arc::clone(&counters),
            tag_numbers: TagNumbers::of(&self.policy),
            wrapping: Wrapping {
                compress_over: self.policy.compress_over,
                max_bytes: self.policy.max_value_bytes,
                sealer: self.sealer.clone(),
                namespace: Arc::clone(&shared.generations.form.namespace),
            },
            tasks: Arc::clone(&shared.tasks),
        });
        let (resilience, fallback, bulk) = (self.resilience, self.fallback, self.bulk);
        Ok(Inner {
            near: NearTier::new(&self.policy, wide, Arc::clone(&counters))?,
            flights: Arc::new(SingleFlight::new()),
            tenants: quick_cache::sync::Cache::new(REMEMBERED_TENANTS),
            background: Background::new(),
            loader: Loader { domain: Arc::clone(&self.name), load, bulk, fallback, resilience, may_tag },
            shared: Arc::clone(shared),
            domain: self.name,
            policy: self.policy,
            life_by: self.life_by,
            tags_by: self.tags_by,
            listeners: Listeners::new(),
            far,
            codec,
            hooks: self.hooks,
            counters,
            texts_to_check: CHECKED_TEXTS.into(),
            meters,
        })
    }
}

/// Keys of a cache whose text is checked.
const CHECKED_TEXTS: usize = 32;

/// Tenants whose group a cache finds without asking all groups of the process.
const REMEMBERED_TENANTS: usize = 256;

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
