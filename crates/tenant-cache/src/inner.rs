//! What the clones of a cache share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::key::{KeyParts, Owner, validate};
use cache_core::{CacheError, Codec, Invalidation, LoadError, TenantId};
use quick_cache::sync::Cache;

use crate::answer::{Found, MAX_TAGS, Source};
use crate::background::Background;
use crate::changes::Listeners;
use crate::far::FarTier;
use crate::fetch::Fetch;
use crate::generation::{Generation, MAX_ENTRY_TTL, generation_key, tenant_of};
use crate::hooks::Hooks;
use crate::key::{CacheKey, NearQuery};
use crate::labels::Meters;
use crate::life::Life;
use crate::load::Loader;
use crate::near::{Hit, NearTier, Ticket};
use crate::policy::Policy;
use crate::registry::Shared;
use crate::single_flight::{LookupResult, SingleFlight};
use crate::stats::{Counters, Stats};
use crate::tags;

/// The tags of a key.
pub(crate) struct TagsBy<K>(pub(crate) Box<TagsFn<K>>);

type TagsFn<K> = dyn Fn(&K) -> Vec<String> + Send + Sync;

/// What clones of a cache share.
pub(crate) struct Inner<K, V> {
    pub(crate) domain: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) near: NearTier<K, V>,
    pub(crate) flights: Arc<SingleFlight<Fetch<K, V>, LookupResult<V>>>,
    /// The groups of the tenants that ask most; the same ones that `shared` has.
    pub(crate) tenants: Cache<TenantId, Arc<Generation>>,
    pub(crate) background: Background<K, V>,
    pub(crate) far: Option<FarTier>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) codec: Arc<dyn Codec<V>>,
    pub(crate) loader: Loader<K, V>,
    pub(crate) life_by: Option<LifeBy<K, V>>,
    pub(crate) tags_by: Option<TagsBy<K>>,
    pub(crate) listeners: Listeners<K>,
    pub(crate) hooks: Hooks<K>,
    pub(crate) counters: Arc<Counters>,
    /// Keys that are still to be checked for whether their text is read back.
    pub(crate) texts_to_check: AtomicUsize,
    pub(crate) meters: Option<Meters>,
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

impl<K: CacheKey, V: Send + Sync + 'static> Inner<K, V> {
    /// What memory knows. The hot path: no lock beyond the shard's, no allocation, no await.
    #[inline]
    pub(crate) fn near_answer(&self, query: &NearQuery<'_, K>) -> Option<NearAnswer<V>> {
        let now = self.shared.clock.coarse();
        if !self.shared.trust.near(now) {
            return None;
        }
        let (value, stale, due) = match self.near.value(query, now) {
            Some(Hit { value, stale, due }) => (Some(value), stale, due),
            None if self.near.is_absent(query, now) => (None, false, false),
            None => return None,
        };
        Some(NearAnswer { found: Found { value, source: Source::Near, stale }, due })
    }

    /// The far key of an entry.
    pub(crate) fn text(&self, owner: Owner, key: &K) -> Result<Arc<str>, CacheError> {
        let parts = KeyParts { owner, domain: (&*self.domain).into(), key: key.to_text().into() };
        let text = parts.to_text();
        validate(&text)?;
        Ok(text.into())
    }

    /// Counts a key whose text is not read back. The first keys tell of what type they are; all would cost a parsing
    /// each.
    #[cold]
    fn check_text(&self, key: &K) {
        let left = |left: usize| left.checked_sub(1);
        // One that panics is not read back either, and no error of the lookup.
        let read_back = || K::from_text(&key.to_text()).as_ref() == Some(key);
        if self.texts_to_check.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
            && !self.guarded(read_back).unwrap_or(false)
        {
            self.counters.lost_key();
        }
    }

    /// What stands now for a key; to be taken before anybody is asked.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] when an entry cannot carry the key's tags.
    pub(crate) fn try_ticket(&self, query: &NearQuery<'_, K>) -> Result<Ticket, CacheError> {
        let (owner, generations) = (query.owner(), &self.shared.generations);
        let tenant = tenant_of(&owner);
        let domain = query.tenant.map(|tenant| self.group_of(tenant));
        let tags = match &self.tags_by {
            None => Vec::new(),
            Some(TagsBy(tags)) => {
                let tags = tags(query.key);
                tags::check(tenant, &tags, MAX_TAGS).map_err(|error| error.of_key(&self.domain))?;
                tags.iter().map(|tag| generations.tag(tenant, tag)).collect()
            }
        };
        let meter = self.meters.as_ref().map(|meters| meters.of(query.tenant));
        let ticket = self.near.ticket(query, domain, tags, meter);
        if self.loader.may_tag {
            return Ok(ticket.with_late_tags(generations.tag_guard(tenant)));
        }
        Ok(ticket)
    }

    /// [`try_ticket`](Self::try_ticket) for a key that had one before. Should its tags be others now, and unusable, it
    /// is a ticket that never stands: nothing is kept under it.
    pub(crate) fn ticket(&self, query: &NearQuery<'_, K>) -> Ticket {
        self.try_ticket(query).unwrap_or_else(|_| self.near.ticket(query, None, Vec::new(), None).void())
    }

    /// The group of a tenant's entries here, without asking all groups of the process as long as it is remembered.
    fn group_of(&self, tenant: &TenantId) -> Arc<Generation> {
        if let Some(group) = self.tenants.get(tenant) {
            return group;
        }
        let group = self.shared.generations.domain(Some(tenant.as_str()), &self.domain);
        self.tenants.insert(tenant.clone(), Arc::clone(&group));
        group
    }

    /// How long an answer lives; `own` is what the loader says. Nothing is kept of "there is no such thing"
    /// after its life: what does not exist cannot be served when the load fails.
    pub(crate) fn life(&self, key: &K, value: Option<&V>, own: Option<Duration>) -> Life {
        let (fresh, grace) = match value {
            Some(_) => (self.policy.ttl, self.policy.grace()),
            None => (self.policy.negative_ttl, Duration::ZERO),
        };
        let by_key = || self.life_by.as_ref().map(|LifeBy(life)| life(key, value));
        let fresh = own.or_else(by_key).unwrap_or(fresh);
        if fresh.is_zero() {
            return Life::new(fresh, fresh);
        }
        Life::new(self.policy.jittered(fresh.min(MAX_ENTRY_TTL)), grace)
    }

    pub(crate) fn stats(&self) -> Stats {
        let (size, negative_size) = self.near.len();
        Stats { size, negative_size, ..self.counters.snapshot() }
    }

    /// Removes keys from the far tier and tells the others, in one step where the far tier can.
    pub(crate) async fn announce_keys(&self, texts: Vec<Arc<str>>) -> Result<(), CacheError> {
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

    /// Calls a function that the user gave; its panic is an error of the cache's.
    #[inline]
    pub(crate) fn guarded<R>(&self, call: impl FnOnce() -> R) -> Result<R, CacheError> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).map_err(|_| self.panicked())
    }

    #[cold]
    pub(crate) fn panicked(&self) -> CacheError {
        LoadError::Panicked { domain: Arc::clone(&self.domain) }.into()
    }

    /// Counts a lookup that memory answered.
    ///
    /// # Errors
    /// [`LoadError::Panicked`], of the user's hook.
    #[inline]
    pub(crate) fn count_near(&self, key: &K, stale: bool) -> Result<(), CacheError> {
        self.counters.near_hits.one();
        if stale {
            self.counters.stale_served.one();
        }
        if self.hooks.on_hit.is_some() { self.guarded(|| self.hooks.hit(key, Source::Near)) } else { Ok(()) }
    }

    /// Whether [`count`](Self::count) has a use for the key.
    pub(crate) fn counts_keys(&self) -> bool {
        self.hooks.are_set() || self.texts_to_check.load(Ordering::Relaxed) > 0
    }

    /// Counts a lookup that went past memory; the key is for hooks and checks. The answer, unless one of them panics.
    pub(crate) fn count(&self, key: Option<&K>, landing: LookupResult<V>, joined: bool) -> LookupResult<V> {
        if joined {
            self.counters.coalesced.one();
        }
        let hit = match &landing {
            Ok(Found { source: Source::Near, .. }) => {
                self.counters.near_hits.one();
                Some(Source::Near)
            }
            Ok(Found { source: Source::Far, .. }) => {
                self.counters.far_hits.one();
                Some(Source::Far)
            }
            _ => {
                self.counters.misses.one();
                None
            }
        };
        if landing.as_ref().is_ok_and(|found| found.stale) {
            self.counters.stale_served.one();
        }
        if let Some(key) = key {
            self.guarded(|| {
                if self.texts_to_check.load(Ordering::Relaxed) > 0 {
                    self.check_text(key);
                }
                match hit {
                    Some(source) => self.hooks.hit(key, source),
                    None => self.hooks.miss(key),
                }
            })?;
        }
        landing
    }
}

/// What memory knows of a key.
pub(crate) struct NearAnswer<V> {
    pub(crate) found: Found<V>,
    /// It is time to refresh it.
    pub(crate) due: bool,
}
