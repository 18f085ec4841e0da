//! The cache itself: what callers hold.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Invalidation, Scope, TenantId, UserId};
use futures_util::{FutureExt, Stream};

use crate::answer::Found;
use crate::changes::{Change, HandlerGuard};
use crate::far::{Alive, Held};
use crate::fetch::{FarRead, Fetch};
use crate::inner::Inner;
use crate::key::{CacheKey, NearKey, NearQuery, with_ids};
use crate::life::{Life, Times};
use crate::load::{LoadFn, load_fn};
use crate::load_stack::LoadStack;
use crate::lookup::Answered;
use crate::near::Remembered;
use crate::policy::Policy;
use crate::stats::Stats;
use crate::tasks;

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
            // Boxed, so that a hit is not as large as a miss.
            None => self.lookup_far(key, How::default()).boxed().await,
        }
    }

    /// [`lookup`](Self::lookup) with a loader of the caller's own, for what the key alone does not tell (a
    /// credential that must be in no key, a connection of the request). A lookup that joins a load in flight
    /// gets what that one loads: loaders of one key must agree. Refreshes in the background use the cache's own.
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
            None => {
                let instead = Some(load_fn(move |_| load()));
                self.lookup_far(key, How { instead, ..How::default() }).boxed().await
            }
        }
    }

    /// A read that does not believe memory: asks the far tier, and the loader if need be.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn fresh(&self, key: &K) -> Result<Option<Arc<V>>, CacheError> {
        Ok(self.lookup_far(key, How { anew: true, ..How::default() }).await?.value)
    }

    /// Loads a value now, whatever is cached, and stores it in all tiers. Readers go on with the old value
    /// meanwhile; an invalidation that comes between wins. What a load brings that is not to be stored (a life of zero,
    /// or a negative entry that stays in memory) replaces the old value all the same: that is removed.
    ///
    /// # Errors
    /// As [`get`](Self::get), and those of telling the other instances.
    pub async fn refresh(&self, key: &K) -> Result<Option<Arc<V>>, CacheError> {
        let inner = &self.inner;
        let first = self.fetch(key)?;
        let message = Invalidation::Keys(vec![Arc::clone(&first.text)]);
        if inner.far.is_some() {
            let found = inner.load_anew(first).boxed().await?;
            inner.shared.bus.publish(&message).await?;
            return Ok(found.value);
        }
        // Memory is all there is: the others first, and then a load whose ticket the message cannot spoil.
        inner.shared.bus.publish(&message).await?;
        Ok(inner.load_anew(self.fetch(key)?).boxed().await?.value)
    }

    /// What memory holds of a key, without asking anybody, and without being counted.
    ///
    /// # Errors
    /// Only those of the scope.
    pub fn peek(&self, key: &K) -> Result<Option<Arc<V>>, CacheError> {
        let now = self.inner.shared.clock.coarse();
        let trusted = self.inner.shared.trust.near(now);
        let held = |query: &NearQuery<'_, K>| self.inner.near.value(query, now).map(|hit| hit.value);
        self.with_query(key, |query| trusted.then(|| held(query)).flatten())
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
        tasks::runtime(&self.inner.domain)?;
        let fetch = self.fetch(key)?;
        let (held, _) = far.read(fetch.asked()).await?;
        Ok(matches!(held, Held::Live(Alive { payload: Some(_), left, .. }) if left.is_fresh()))
    }

    /// Stores a value in all tiers, over whatever is there; loads in flight are not stored afterwards.
    ///
    /// The store is fenced: the key's lease is taken first, over a value or another's lease, and the value stored only
    /// while it stands. So an invalidation (or a later insert) that comes between wins, however late the value arrives,
    /// and `Ok` then means that the insert came before it. The price is one more round trip; who reads the key meanwhile
    /// waits for the value. An insert that fails is announced as a removal, in the background if need be: nobody goes on
    /// with what it may or may not have replaced.
    ///
    /// Two writers' inserts can still land in either order: after a change of the origin prefer
    /// [`invalidate`](Self::invalidate).
    ///
    /// # Errors
    /// Also [`CacheError::Serialization`] and [`CacheError::ValueTooLarge`], with nothing changed; and those of the far
    /// tier and of telling the other instances.
    ///
    /// # Cancel safety
    /// A dropped insert may or may not have happened; the key is then removed in the background, as after a failure.
    pub async fn insert(&self, key: &K, value: V) -> Result<(), CacheError> {
        let inner = &self.inner;
        let fetch = self.fetch(key)?;
        let life = inner.guarded(|| inner.life(key, Some(&value), None))?;
        let message = Invalidation::Keys(vec![Arc::clone(&fetch.text)]);
        match &inner.far {
            Some(far) => {
                tasks::runtime(&inner.domain)?;
                fetch.store(far, &value, life).await?;
                inner.shared.bus.publish(&message).await
            }
            None => {
                let told = inner.shared.bus.publish(&message).await;
                self.keep_own(fetch.key, value, life);
                told
            }
        }
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
        let text = |key: &NearKey<K>| self.inner.guarded(|| self.inner.text(key.owner(), &key.key))?;
        let texts = near_keys.iter().map(text).collect::<Result<Vec<_>, _>>()?;
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
    /// A handler that panics keeps no other from being called. It costs this process what it holds in memory; and an
    /// invalidation of this process passes the panic on to its caller, once it is done.
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
    pub(crate) fn near_hit(&self, key: &K) -> Result<Option<Found<V>>, CacheError> {
        let Some(near) = self.with_query(key, |query| self.inner.near_answer(query))? else {
            return Ok(None);
        };
        self.inner.count_near(key, near.found.stale)?;
        if near.due {
            self.refresh_soon(key);
        }
        Ok(Some(near.found))
    }

    /// Out of line: a hit that is not due must not pay for it.
    #[cold]
    fn refresh_soon(&self, key: &K) {
        if let Ok(fetch) = self.fetch(key) {
            fetch.refresh_in_background();
        }
    }

    /// The way past the near tier.
    async fn lookup_far(&self, key: &K, how: How<K, V>) -> Result<Found<V>, CacheError> {
        let How { anew, instead } = how;
        self.fly(Fetch { instead, anew, ..self.fetch(key)? }, None).await
    }

    /// Answers a lookup that memory does not, and counts it; `read` is what the far tier was already found to hold.
    pub(crate) async fn fly(
        &self,
        fetch: Fetch<K, V>,
        read: Option<FarRead<V>>,
    ) -> Result<Found<V>, CacheError> {
        let inner = &self.inner;
        let key = inner.counts_keys().then(|| fetch.key.key.clone());
        let meter = fetch.ticket.meter.clone();
        let began = inner.shared.clock.now();
        inner.shared.attend(inner.shared.trust.near(began));
        let Answered { result, joined } = inner.look_up(fetch, read).await;
        inner.counters.took(&result, inner.shared.clock.now().since(began));
        meter.iter().for_each(|meter| meter.landed(&result));
        inner.count(key.as_ref(), result, joined)
    }

    /// Keeps a value of a cache whose only tier is memory.
    ///
    /// A cache with a far tier does not: an invalidation of another instance could have come between the two
    /// tiers, and would be undone here.
    fn keep_own(&self, key: NearKey<K>, value: V, life: Life) {
        let inner = &self.inner;
        let now = inner.shared.clock.coarse();
        if inner.shared.trust.near(now) && !life.is_zero() {
            let ticket = inner.ticket(&key.query());
            let times = Times::of(life.into(), Duration::MAX, &inner.policy, now);
            inner.near.insert(key, Remembered::Value(Arc::new(value)), times, now, &ticket);
        }
    }

    /// A lookup of the running request.
    pub(crate) fn fetch(&self, key: &K) -> Result<Fetch<K, V>, CacheError> {
        let inner = &self.inner;
        let of = |query: &NearQuery<'_, K>| {
            let (text, ticket) = (inner.text(query.owner(), query.key)?, inner.try_ticket(query)?);
            Ok(Fetch::new(Arc::clone(inner), query.to_key(), text, ticket, LoadStack::current()))
        };
        // The text of a key and its tags are functions of the user's.
        self.with_query(key, |query| inner.guarded(|| of(query))?)?
    }

    #[inline]
    pub(crate) fn with_query<R>(
        &self,
        key: &K,
        look: impl FnOnce(&NearQuery<'_, K>) -> R,
    ) -> Result<R, CacheError> {
        let look = |tenant: Option<&TenantId>, user: Option<&UserId>| look(&NearQuery { tenant, user, key });
        with_ids(self.inner.policy.scope, &self.inner.domain, look)
    }
}

/// How a lookup goes past the near tier.
struct How<K, V> {
    /// Joins no lookup that is already under way.
    anew: bool,
    /// Loads in place of the cache's own loader.
    instead: Option<Arc<LoadFn<K, V>>>,
}

impl<K, V> Default for How<K, V> {
    fn default() -> Self {
        Self { anew: false, instead: None }
    }
}
