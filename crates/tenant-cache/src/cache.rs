//! The cache itself: what callers hold.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cache_core::key::{KeyParts, Owner, validate};
use cache_core::{CacheError, Codec, Invalidation, LoadError, Scope, TenantId, UserId};
use futures_util::{FutureExt, Stream, StreamExt};

use crate::ambient::carry;
use crate::changes::{Change, HandlerGuard, Listeners};
use crate::far::FarTier;
use crate::fetch::Fetch;
use crate::flight::{Boarding, Flights, Landing};
use crate::generation::{self, generation_key, tenant_of};
use crate::key::{CacheKey, NearKey, NearQuery, with_ids};
use crate::load::{LoadFn, Loader, Loading, load_fn};
use crate::near::{NearTier, Remembered, Ticket};
use crate::policy::Policy;
use crate::registry::Shared;
use crate::stats::{Counters, Stats};

/// Lookups of one [`TenantCache::get_many`] that may load at the same time.
const PARALLEL_LOADS: usize = 16;

/// A typed read-through cache of one domain, scoped to the tenant of the running request.
///
/// Lookups go near tier (memory) → far tier (shared) → loader, and what is found is kept on the way back.
/// Made by [`Caches::domain`](crate::Caches::domain); clones share everything.
///
/// # For all methods
/// **Errors:** [`CacheError::NoTenant`] and [`CacheError::NoUser`] when the running request does not say whose
/// entry is meant; [`CacheError::InvalidKey`] when the key's text, with its scope, is over 512 bytes.
///
/// **Cancel safety:** dropping a future leaves nothing behind: no lease, no waiter, no half-made entry.
///
/// ```
/// use std::time::Duration;
/// use cache_core::{RequestContext, Scope, TenantId};
/// use tenant_cache::{Caches, RequestScope, TenantCache};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let caches = Caches::in_memory();
/// let plans: TenantCache<u64, String> = caches
///     .domain("plans")
///     .scope(Scope::Tenant)
///     .ttl(Duration::from_secs(60))
///     .load(|id: u64| async move { Ok::<_, std::io::Error>(Some(format!("plan {id}"))) })?;
///
/// let acme = RequestContext::new(TenantId::new("acme").expect("an id"));
/// let plan = acme.scope(async { plans.get(&7).await }).await?;
/// assert_eq!(plan.as_deref().map(String::as_str), Some("plan 7"));
/// # Ok::<(), cache_core::CacheError>(()) }).unwrap();
/// ```
pub struct TenantCache<K, V> {
    pub(crate) inner: Arc<Inner<K, V>>,
}

impl<K, V> Clone for TenantCache<K, V> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K, V> fmt::Debug for TenantCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// An answer, and where it came from.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found<V> {
    /// The value; `None` when there is no such thing.
    pub value: Option<Arc<V>>,
    /// Who knew.
    pub source: Source,
}

impl<V> Clone for Found<V> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), source: self.source }
    }
}

/// Who knew an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The memory of this process.
    Near,
    /// The shared tier.
    Far,
    /// The loader.
    Origin,
    /// The fallback of a loader that failed.
    Fallback,
}

/// The most tags of an entry; further ones are not looked at.
pub const MAX_TAGS: usize = 8;

/// The tags of a key.
pub(crate) struct TagsBy<K>(pub(crate) Box<TagsFn<K>>);

type TagsFn<K> = dyn Fn(&K) -> Vec<String> + Send + Sync;

/// What clones of a cache share.
pub(crate) struct Inner<K, V> {
    pub(crate) domain: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) near: NearTier<K, V>,
    pub(crate) flights: Arc<Flights<K, V>>,
    pub(crate) far: Option<FarTier>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) codec: Arc<dyn Codec<V>>,
    pub(crate) loader: Loader<K, V>,
    pub(crate) life_by: Option<LifeBy<K, V>>,
    pub(crate) tags_by: Option<TagsBy<K>>,
    pub(crate) listeners: Listeners<K>,
    pub(crate) counters: Arc<Counters>,
}

impl<K, V> fmt::Debug for Inner<K, V> {
    /// Names the cache and nothing that is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantCache")
            .field("domain", &self.domain)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// A life by key and outcome.
pub(crate) struct LifeBy<K, V>(pub(crate) Box<LifeFn<K, V>>);

type LifeFn<K, V> = dyn Fn(&K, Option<&V>) -> Duration + Send + Sync;

impl<K, V> fmt::Debug for LifeBy<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LifeBy")
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> TenantCache<K, V> {
    /// The value of `key` for the running request, loaded if nobody knows it; `None` when there is no such
    /// thing. Concurrent lookups of one key share one load, in this process and in the fleet.
    ///
    /// # Errors
    /// Also [`CacheError::Load`] when the loader failed; all who wait for the load get it, nobody after them.
    /// A far tier that fails is no error: the loader is asked.
    pub async fn get(&self, key: &K) -> Result<Option<Arc<V>>, CacheError> {
        Ok(self.lookup(key).await?.value)
    }

    /// [`get`](Self::get), and where the answer came from.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn lookup(&self, key: &K) -> Result<Found<V>, CacheError> {
        match self.near_hit(key)? {
            Some(found) => Ok(found),
            None => self.lookup_far(key, false, None).await,
        }
    }

    /// [`lookup`](Self::lookup) with a loader of the caller's own, for what the key alone does not tell (a
    /// credential that must be in no key, a connection of the request). A lookup that joins a load in flight
    /// gets what that one loads: loaders of one key must agree.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn lookup_with<F, Fut, E>(&self, key: &K, load: F) -> Result<Found<V>, CacheError>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.near_hit(key)? {
            Some(found) => Ok(found),
            None => self.lookup_far(key, false, Some(load_fn(move |_| load()))).await,
        }
    }

    /// A read that does not believe memory: asks the far tier, and the loader if need be.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn fresh(&self, key: &K) -> Result<Option<Arc<V>>, CacheError> {
        Ok(self.lookup_far(key, true, None).await?.value)
    }

    /// The values of several keys, in the order asked; each as [`get`](Self::get) would find it, several at
    /// the same time.
    ///
    /// # Errors
    /// As [`get`](Self::get); one failing key fails the call, and what was found is kept for the next.
    pub async fn get_many(&self, keys: &[K]) -> Result<Vec<Option<Arc<V>>>, CacheError> {
        let mut found = Vec::with_capacity(keys.len());
        let mut lookups = futures_util::stream::iter(keys).map(|key| self.get(key)).buffered(PARALLEL_LOADS);
        while let Some(value) = lookups.next().await {
            found.push(value?);
        }
        Ok(found)
    }

    /// Loads a value now, whatever is cached, and stores it in all tiers. Readers go on with the old value
    /// meanwhile; an invalidation that comes between wins.
    ///
    /// # Errors
    /// As [`get`](Self::get), and those of telling the other instances.
    pub async fn refresh(&self, key: &K) -> Result<Option<Arc<V>>, CacheError> {
        let bus = &self.inner.shared.bus;
        let fetch = || self.with_query(key, |query| self.fetch(query))?;
        let first = fetch()?;
        let message = Invalidation::Keys(vec![Arc::clone(&first.text)]);
        if self.inner.far.is_some() {
            let found = first.refresh().boxed().await?;
            bus.publish(&message).await?;
            return Ok(found.value);
        }
        // Memory is all there is: the others first, and then a load whose ticket the message cannot spoil.
        bus.publish(&message).await?;
        Ok(fetch()?.refresh().boxed().await?.value)
    }

    /// What memory holds of a key, without asking anybody, and without being counted.
    ///
    /// # Errors
    /// Only those of the scope.
    pub fn peek(&self, key: &K) -> Result<Option<Arc<V>>, CacheError> {
        let now = self.inner.shared.clock.coarse();
        let trusted = self.inner.shared.trust.near(now);
        self.with_query(key, |query| trusted.then(|| self.inner.near.value(query, now)).flatten())
    }

    /// Whether a value is cached in any tier, without loading it, and without being counted. "Known not to
    /// exist" is not a value.
    ///
    /// # Errors
    /// Also those of the far tier.
    pub async fn contains(&self, key: &K) -> Result<bool, CacheError> {
        if self.peek(key)?.is_some() {
            return Ok(true);
        }
        let Some(far) = self.inner.far.as_ref().filter(|far| far.trusted()) else { return Ok(false) };
        let fetch = self.with_query(key, |query| self.fetch(query))??;
        let (held, _) = far.read(&fetch.text, &fetch.ticket.chain).await?;
        Ok(matches!(held, crate::far::Held::Live { payload: Some(_), .. }))
    }

    /// Stores a value in all tiers, over whatever is there; loads in flight are not stored afterwards.
    ///
    /// Two writers' inserts can land in either order: after a change of the origin prefer
    /// [`invalidate`](Self::invalidate).
    ///
    /// # Errors
    /// Also [`CacheError::Serialization`], and those of the far tier and of telling the other instances.
    pub async fn insert(&self, key: &K, value: V) -> Result<(), CacheError> {
        let inner = &self.inner;
        let fetch = self.with_query(key, |query| self.fetch(query))??;
        let life = inner.life(key, Some(&value));
        let stored = match &inner.far {
            Some(far) => fetch.store(far, &value, life).await,
            None => Ok(()),
        };
        // Also when it was not stored: it is not known that it was not.
        let told = inner.shared.bus.publish(&Invalidation::Keys(vec![Arc::clone(&fetch.text)])).await;
        if inner.far.is_none() {
            self.keep_own(fetch.key, value, life);
        }
        stored.and(told)
    }

    /// Removes an entry from every tier of every instance. Call it *after* the change was committed. After
    /// `Ok` no read that starts later on this instance returns an older value, and none elsewhere does once
    /// the bus has told it; no load that began before can leave its value anywhere.
    ///
    /// # Errors
    /// Also those of the far tier and of telling the others. This instance's memory is cleared of the key
    /// also then.
    ///
    /// # Cancel safety
    /// A dropped invalidation may or may not have happened, as after a time-out.
    pub async fn invalidate(&self, key: &K) -> Result<(), CacheError> {
        self.invalidate_many(std::slice::from_ref(key)).await
    }

    /// [`invalidate`](Self::invalidate) for several keys, in one step.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_many(&self, keys: &[K]) -> Result<(), CacheError> {
        let near_key = |key| self.with_query(key, |query| query.to_key());
        let near_keys = keys.iter().map(near_key).collect::<Result<Vec<_>, _>>()?;
        let texts = near_keys.iter().map(|key| self.inner.text(key.owner(), &key.key));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let done = self.inner.announce_keys(texts).await;
        // After the far tier, or a reader could fetch the old far value back in between; and also when that
        // failed, so that at least this instance does not go on serving it.
        for key in &near_keys {
            self.inner.near.remove(&key.query());
        }
        done
    }

    /// Removes everything the running request's tenant has in this domain, its users' entries included. One
    /// step, however many entries there are. For a [`Global`](cache_core::Scope::Global) cache: everything.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_all(&self) -> Result<(), CacheError> {
        let tenant = self.tenant()?;
        self.inner.invalidate_domain(tenant).await
    }

    /// Removes every tenant's entries of this domain, in one step.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub async fn clear(&self) -> Result<(), CacheError> {
        self.inner.invalidate_domain(None).await
    }

    /// Removes everything of the running request's tenant that carries a tag, in this and in every other domain
    /// with tags. One step, however many entries there are. For a [`Global`](cache_core::Scope::Global) cache:
    /// what carries the tag and belongs to no tenant.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_tag(&self, tag: &str) -> Result<(), CacheError> {
        let tenant = self.tenant()?;
        self.inner.shared.invalidate_tag(tenant.as_ref(), tag).await
    }

    /// What is invalidated from now on, here or by a message of another instance; of all tenants. A listener that
    /// is more than 1 024 changes behind is told [`Change::Many`] instead of what it missed. Ends with the cache.
    pub fn changes(&self) -> impl Stream<Item = Change<K>> + Send + use<K, V> {
        self.inner.listeners.changes()
    }

    /// Calls `handler` whenever the entry may have changed, until the guard is dropped. It is called where the
    /// invalidation is applied, so it must be quick: wake somebody up.
    ///
    /// # Errors
    /// Only those of the scope.
    pub fn on_change(
        &self,
        key: &K,
        handler: impl Fn() + Send + Sync + 'static,
    ) -> Result<HandlerGuard, CacheError> {
        let key = self.with_query(key, |query| query.to_key())?;
        Ok(self.inner.listeners.on_change(key, Arc::new(handler)))
    }

    /// What this cache has done since it was made, in this process.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// The domain's name.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.inner.domain
    }

    /// The options it was defined with.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.inner.policy
    }

    /// Whose group is meant. A cache of users' entries is emptied for the whole tenant: the user is not asked
    /// for.
    fn tenant(&self) -> Result<Option<TenantId>, CacheError> {
        let scope = match self.inner.policy.scope {
            Scope::Global => Scope::Global,
            _ => Scope::Tenant,
        };
        with_ids(scope, &self.inner.domain, |tenant, _| tenant.cloned())
    }

    #[inline]
    fn near_hit(&self, key: &K) -> Result<Option<Found<V>>, CacheError> {
        let found = self.with_query(key, |query| self.inner.near_answer(query))?;
        if found.is_some() {
            self.inner.counters.near_hits.one();
        }
        Ok(found)
    }

    /// The way past the near tier. `anew` joins no lookup that is already under way.
    async fn lookup_far(
        &self,
        key: &K,
        anew: bool,
        instead: Option<Box<LoadFn<K, V>>>,
    ) -> Result<Found<V>, CacheError> {
        let inner = &self.inner;
        let fetch = Fetch { instead, ..self.with_query(key, |query| self.fetch(query))?? };
        if fetch.above.contains(&inner.domain, &fetch.text) {
            return Err(LoadError::Reentrant { domain: Arc::clone(&inner.domain) }.into());
        }
        let (near_key, ticket) = (fetch.key.clone(), fetch.ticket.clone());
        let now = inner.shared.clock.coarse();
        let (flight, joined) = if anew {
            let course = || carry(fetch.run()).boxed();
            (inner.flights.board_anew(near_key, ticket, now, course), false)
        } else {
            let course = || carry(fetch.run_unless_known()).boxed();
            let stands = |ticket: &Ticket| inner.near.stands(ticket);
            let boarding = Boarding { now, join_within: inner.policy.join_within, stands: &stands };
            inner.flights.board(near_key, ticket, &boarding, course)
        };
        let landing = flight.await;
        inner.count(&landing, joined);
        landing
    }

    /// Keeps a value of a cache whose only tier is memory.
    ///
    /// A cache with a far tier does not: an invalidation of another instance could have come between the two
    /// tiers, and would be undone here.
    fn keep_own(&self, key: NearKey<K>, value: V, life: Duration) {
        let inner = &self.inner;
        let now = inner.shared.clock.coarse();
        if inner.shared.trust.near(now) && !life.is_zero() {
            let ticket = inner.ticket(&key.query());
            inner.near.insert(key, Remembered::Value(Arc::new(value)), now + life, &ticket);
        }
    }

    fn fetch(&self, query: &NearQuery<'_, K>) -> Result<Fetch<K, V>, CacheError> {
        let inner = &self.inner;
        Ok(Fetch {
            cache: Arc::clone(inner),
            text: inner.text(query.owner(), query.key)?,
            key: query.to_key(),
            ticket: inner.ticket(query),
            above: Loading::current(),
            instead: None,
        })
    }

    #[inline]
    fn with_query<R>(&self, key: &K, look: impl FnOnce(&NearQuery<'_, K>) -> R) -> Result<R, CacheError> {
        let look = |tenant: Option<&TenantId>, user: Option<&UserId>| look(&NearQuery { tenant, user, key });
        with_ids(self.inner.policy.scope, &self.inner.domain, look)
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Inner<K, V> {
    /// What memory knows. The hot path: no lock beyond the shard's, no allocation, no await.
    #[inline]
    pub(crate) fn near_answer(&self, query: &NearQuery<'_, K>) -> Option<Found<V>> {
        let now = self.shared.clock.coarse();
        if !self.shared.trust.near(now) {
            return None;
        }
        let value = match self.near.value(query, now) {
            Some(value) => Some(value),
            None if self.near.is_absent(query, now) => None,
            None => return None,
        };
        Some(Found { value, source: Source::Near })
    }

    /// The far key of an entry.
    pub(crate) fn text(&self, owner: Owner, key: &K) -> Result<Arc<str>, CacheError> {
        let parts = KeyParts { owner, domain: (&*self.domain).into(), key: key.to_text().into() };
        let text = parts.to_text();
        validate(&text)?;
        Ok(text.into())
    }

    /// What stands now for a key; to be taken before anybody is asked.
    pub(crate) fn ticket(&self, query: &NearQuery<'_, K>) -> Ticket {
        let (owner, generations) = (query.owner(), &self.shared.generations);
        let tenant = tenant_of(&owner);
        let domain = tenant.map(|tenant| generations.domain(Some(tenant), &self.domain));
        let tags = match &self.tags_by {
            None => Vec::new(),
            Some(TagsBy(tags)) => {
                let mut tags = tags(query.key);
                tags.truncate(MAX_TAGS);
                tags.iter().map(|tag| generations.tag(tenant, tag)).collect()
            }
        };
        self.near.ticket(query, domain, tags)
    }

    /// How long an answer lives.
    pub(crate) fn life(&self, key: &K, value: Option<&V>) -> Duration {
        let life = match (&self.life_by, value) {
            (Some(life_by), value) => (life_by.0)(key, value),
            (None, Some(_)) => self.policy.ttl,
            (None, None) => self.policy.negative_ttl,
        };
        self.policy.jittered(life.min(generation::MAX_ENTRY_TTL))
    }

    pub(crate) fn stats(&self) -> Stats {
        let (size, negative_size) = self.near.len();
        Stats { size, negative_size, ..self.counters.snapshot() }
    }

    /// Removes keys from the far tier and tells the others, in one step where the far tier can.
    async fn announce_keys(&self, texts: Vec<Arc<str>>) -> Result<(), CacheError> {
        if let Some(far) = &self.far {
            let keys: Vec<&str> = texts.iter().map(|text| &**text).collect();
            match &keys[..] {
                [] => return Ok(()),
                [key] => far.service.invalidate(key).await?,
                keys => far.service.invalidate_many(keys).await?,
            }
            if far.service.bus().is_some() {
                return Ok(());
            }
        }
        self.shared.bus.publish(&Invalidation::Keys(texts)).await
    }

    /// Gives a group a new number, then tells the others.
    pub(crate) async fn invalidate_domain(&self, tenant: Option<TenantId>) -> Result<(), CacheError> {
        let text = generation_key(tenant.as_ref().map(TenantId::as_str), &self.domain);
        self.shared.renumber(&text, &Invalidation::Domain { tenant, domain: Arc::clone(&self.domain) }).await
    }

    fn count(&self, landing: &Landing<V>, joined: bool) {
        if joined {
            self.counters.coalesced.one();
        }
        match landing {
            Ok(Found { source: Source::Near, .. }) => self.counters.near_hits.one(),
            Ok(Found { source: Source::Far, .. }) => self.counters.far_hits.one(),
            _ => self.counters.misses.one(),
        }
    }
}
