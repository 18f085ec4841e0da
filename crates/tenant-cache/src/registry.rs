//! The caches of a process: one per domain, all on the same far tier and bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use cache_core::key::{Owner, validate, validate_domain};
use cache_core::{
    CacheError, CacheService, Clock, Invalidation, InvalidationBus, Sealer, Subscription, TenantId, Trust,
};
use parking_lot::RwLock;

use crate::builder::DomainBuilder;
use crate::cache::TenantCache;
use crate::changes::for_each_to_the_end;
use crate::coherence::{Coherence, Domain};
use crate::definition::{ANOTHER_WAY, Definition};
use crate::generation::{self, Generations, generation_key, tag_guard_key, tag_key};
use crate::key::CacheKey;
use crate::labels::{Labels, TenantLabels};
use crate::local_bus::Alone;
use crate::number::{GENERATION_TTL, NumberForm};
use crate::once_warning::OnceWarning;
use crate::pending::{self, Pending};
use crate::policy::Policy;
use crate::stats::{Counters, Stats};
use crate::tasks::Tasks;

/// How long an invalidated tag keeps its new number when nothing is stored that carries it. Any time will do: what takes
/// its place is as different from the old one.
const RENUMBERED_TAG: Duration = Duration::from_secs(60 * 60);

/// Makes the caches of a process and keeps them coherent with those of the others.
///
/// One per process: it owns the subscription to the bus. Clones share everything; the subscription ends with
/// the last clone and the last cache.
#[derive(Debug, Clone)]
pub struct Caches {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) far: Option<Arc<dyn CacheService>>,
    pub(crate) bus: Arc<dyn InvalidationBus>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) clock: Clock,
    pub(crate) generations: Arc<Generations>,
    pub(crate) pending: Pending,
    pub(crate) labels: Arc<Labels>,
    pub(crate) tasks: Arc<Tasks>,
    domains: Arc<Domains>,
    defaults: Policy,
    _subscription: Subscription,
}

impl Caches {
    /// Caches in this process's memory alone: near tier and loader, nobody to share with.
    #[must_use]
    pub fn in_memory() -> Self {
        CachesBuilder::default().finish(Arc::new(Alone::default()))
    }

    /// Caches on a far tier, a bus, or both.
    #[must_use]
    pub fn builder() -> CachesBuilder {
        CachesBuilder::default()
    }

    /// Begins the definition of a domain's cache. The types are those the result is assigned to.
    ///
    /// The registry does not keep the cache: it lives, with all that it remembers, as long as somebody holds a handle.
    /// Define a cache once and keep it; one that is defined for each request and dropped with it remembers nothing in
    /// memory (and is warned of).
    pub fn domain<K: CacheKey, V: Send + Sync + 'static>(&self, name: &str) -> DomainBuilder<K, V> {
        DomainBuilder::new(self.clone(), name, self.shared.defaults.clone())
    }

    /// The cache of a domain that was defined before, if its types are these.
    #[must_use]
    pub fn get<K: CacheKey, V: Send + Sync + 'static>(&self, name: &str) -> Option<TenantCache<K, V>> {
        let inner = self.shared.domains.find(name)?.into_any().downcast().ok()?;
        Some(TenantCache { inner })
    }

    /// What each domain's cache has done, by name.
    #[must_use]
    pub fn stats(&self) -> Vec<(Arc<str>, Stats)> {
        let mut all = Vec::new();
        self.shared.domains.for_each_named(|name, domain| all.push((Arc::clone(name), domain.stats())));
        all
    }

    /// Removes entries by their full key text from every tier of every instance; for operators, who have no
    /// types at hand.
    ///
    /// # Errors
    /// [`CacheError::InvalidKey`], and those of the far tier and of telling the others.
    pub async fn invalidate_keys(&self, keys: &[&str]) -> Result<(), CacheError> {
        for key in keys {
            validate(key)?;
        }
        if let Some(far) = &self.shared.far {
            far.invalidate_many(keys).await?;
            if far.bus().is_some() {
                return Ok(());
            }
        }
        let keys = keys.iter().map(|key| Arc::from(*key)).collect();
        self.shared.bus.publish(&Invalidation::Keys(keys)).await
    }

    /// Removes all entries whose full key text starts with a prefix, and says how many the far tier held.
    /// Linear in the whole key space.
    ///
    /// # Errors
    /// As [`invalidate_keys`](Self::invalidate_keys); an empty prefix is refused.
    pub async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        validate(prefix)?;
        let mut removed = 0;
        if let Some(far) = &self.shared.far {
            removed = far.invalidate_prefix(prefix).await?;
            if far.bus().is_some() {
                return Ok(removed);
            }
        }
        self.shared.bus.publish(&Invalidation::Prefix(prefix.into())).await?;
        Ok(removed)
    }

    /// Removes a tenant's entries of a domain, its users' included, or every tenant's; one step.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] for a name that can be no domain, and those of the far tier and of
    /// telling the others.
    pub async fn invalidate_domain(&self, tenant: Option<&TenantId>, domain: &str) -> Result<(), CacheError> {
        validate_domain(domain, tenant.is_none())?;
        let text = generation_key(tenant.map(TenantId::as_str), domain);
        let message = Invalidation::Domain { tenant: tenant.cloned(), domain: domain.into() };
        self.shared.renumber(&text, &message).await
    }

    /// Removes everything that carries a tag, of a tenant or of no tenant, from every cache of every instance;
    /// one step.
    ///
    /// # Errors
    /// [`CacheError::InvalidKey`], and those of the far tier and of telling the others.
    pub async fn invalidate_tag(&self, tenant: Option<&TenantId>, tag: &str) -> Result<(), CacheError> {
        self.shared.invalidate_tag(tenant, tag).await
    }

    /// Group invalidations that failed and are being repeated, now.
    #[must_use]
    pub fn pending(&self) -> usize {
        pending::attend(&self.shared);
        self.shared.pending.len()
    }

    /// Removes everything from every cache of every instance; one step.
    ///
    /// # Errors
    /// Those of the far tier and of telling the others.
    pub async fn invalidate_everything(&self) -> Result<(), CacheError> {
        let text = self.shared.generations.all().text().to_owned();
        self.shared.renumber(&text, &Invalidation::All).await
    }

    /// The full key text of an entry, for [`invalidate_keys`](Self::invalidate_keys).
    #[must_use]
    pub fn key_text(owner: Owner, domain: &str, key: &str) -> String {
        cache_core::key::KeyParts { owner, domain: domain.into(), key: key.into() }.to_text()
    }

    /// Ends all loads, so that they give up their leases and nobody in the fleet waits for them, and waits until that is
    /// done, for no longer than `limit`; `false` when that did not suffice. For the end of the process, once nobody asks
    /// any more: what a tier holds is still found afterwards, but nothing is loaded
    /// ([`LoadError::ShutDown`](cache_core::LoadError::ShutDown)).
    ///
    /// # Cancel safety
    /// Loads are ended at the first poll; a future that is dropped later only stops waiting.
    pub async fn shut_down(&self, limit: Duration) -> bool {
        self.shared.tasks.shut_down(limit).await
    }

    /// The bus these caches listen to.
    #[must_use]
    pub fn bus(&self) -> Arc<dyn InvalidationBus> {
        Arc::clone(&self.shared.bus)
    }
}

impl Shared {
    /// Lets the bus know that it is in use, and sees to it that what failed is repeated: either may have ended with the
    /// runtime it ran on. For lookups that memory does not answer.
    pub(crate) fn attend(self: &Arc<Self>, trusted: bool) {
        if !trusted {
            drop(self.bus.trust());
        }
        pending::attend(self);
    }

    /// Gives a group a new number, then tells everybody; the second also when the first failed. What fails is
    /// repeated in the background.
    pub(crate) async fn renumber(
        self: &Arc<Self>,
        text: &str,
        message: &Invalidation,
    ) -> Result<(), CacheError> {
        let done = self.try_renumber(text, message).await;
        if done.is_err() && self.pending.add(text, message, self.generations.all().text()) {
            pending::begin(self);
        }
        done
    }

    pub(crate) async fn invalidate_tag(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        tag: &str,
    ) -> Result<(), CacheError> {
        validate(tag)?;
        let text = tag_key(tenant.map(TenantId::as_str), tag);
        validate(&text)?;
        self.renumber(&text, &Invalidation::Tag { tenant: tenant.cloned(), tag: tag.into() }).await
    }

    pub(crate) async fn try_renumber(&self, text: &str, message: &Invalidation) -> Result<(), CacheError> {
        let renumbered = match &self.far {
            Some(far) => self.renumber_in(&**far, text, message).await,
            None => Ok(()),
        };
        let told = self.bus.publish(message).await;
        renumbered.and(told)
    }

    async fn renumber_in(
        &self,
        far: &dyn CacheService,
        text: &str,
        message: &Invalidation,
    ) -> Result<(), CacheError> {
        let now_ms = self.clock.unix_ms().saturating_add_signed(self.trust.server_offset_ms());
        let (mut life, far) = (GENERATION_TTL, (far, &self.generations.form));
        if let Invalidation::Tag { tenant, .. } = message {
            // First, or a load that began before could read the tag's new number and miss that it is new.
            let guard = tag_guard_key(tenant.as_ref().map(TenantId::as_str));
            generation::renumber(far, &guard, now_ms, life).await?;
            life = RENUMBERED_TAG;
        }
        generation::renumber(far, text, now_ms, life).await
    }

    /// The cache of a domain: the one that is there, or the one that `make` makes.
    pub(crate) fn define<C: Domain + 'static>(
        &self,
        name: &Arc<str>,
        definition: Definition,
        make: impl FnOnce() -> Result<C, CacheError>,
    ) -> Result<Arc<C>, CacheError> {
        self.domains.define(name, definition, make)
    }
}

/// Assembles [`Caches`].
#[derive(Debug, Default)]
pub struct CachesBuilder {
    far: Option<Arc<dyn CacheService>>,
    bus: Option<Arc<dyn InvalidationBus>>,
    clock: Clock,
    defaults: Policy,
    labels: TenantLabels,
    form: NumberForm,
}

impl CachesBuilder {
    /// The tier behind memory, shared by all instances that use the same store.
    ///
    /// One that is [on no bus](CacheService::bus), without a [`bus`](Self::bus) given, is fine for a single process
    /// (and warned of): nothing tells this one of what another invalidates, so it goes on serving from memory for up to
    /// `near_ttl`, and its bus says that all is well, because there is nobody to listen to.
    #[must_use]
    pub fn far(mut self, far: Arc<dyn CacheService>) -> Self {
        self.far = Some(far);
        self
    }

    /// The bus to the other instances. Not needed when the far tier [is on one](CacheService::bus).
    #[must_use]
    pub fn bus(mut self, bus: Arc<dyn InvalidationBus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// The clock; for tests.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What domains start from. Default [`Policy::default`].
    #[must_use]
    pub fn defaults(mut self, defaults: Policy) -> Self {
        self.defaults = defaults;
        self
    }

    /// Seals the entries of all domains in the far tier, but for those that [opt out](DomainBuilder::unsealed) or have
    /// [a sealer of their own](DomainBuilder::seal), and proves the numbers of groups: whoever reads the store sees no
    /// value, and whoever writes to it can neither make, change nor move an entry, nor revive a dead one by a number that
    /// he made up. Default: none.
    ///
    /// All instances that share a far tier must do alike, with keys that open each other's entries. While a fleet changes
    /// over, each kind loads what the other stored.
    #[must_use]
    pub fn sealer(mut self, sealer: Arc<dyn Sealer>) -> Self {
        self.form.sealer = Some(sealer);
        self
    }

    /// The name of the deployment, to which sealed entries are bound: those of another one on the same store, with the
    /// same keys, do not open here. Default empty.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.form.namespace = namespace.into();
        self
    }

    /// Which tenants the hit and miss counters name. Default [`TenantLabels::Off`].
    #[must_use]
    pub fn tenant_labels(mut self, labels: TenantLabels) -> Self {
        self.labels = labels;
        self
    }

    /// Assembles the caches and subscribes to the bus.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] when the far tier announces on one bus and another was given: this
    /// process would not hear of the others' changes.
    pub fn build(mut self) -> Result<Caches, CacheError> {
        let announced = self.far.as_ref().and_then(CacheService::bus);
        let bus = match (self.bus.take(), announced) {
            (None, None) => {
                if self.far.is_some() {
                    tracing::warn!(
                        "the far tier is on no bus, and none was given: what other processes on it invalidate is heard \
                         of after `near_ttl` only"
                    );
                }
                Arc::new(Alone::default())
            }
            (Some(bus), None) | (None, Some(bus)) => bus,
            (Some(given), Some(announced)) if Arc::ptr_eq(&given, &announced) => given,
            _ => {
                return Err(CacheError::configuration(
                    "caches",
                    "the far tier is on another bus than the one given",
                ));
            }
        };
        Ok(self.finish(bus))
    }

    fn finish(self, bus: Arc<dyn InvalidationBus>) -> Caches {
        let domains = Arc::new(Domains::default());
        let generations = Arc::new(Generations::new(self.form.clone()));
        let sink = Coherence { domains: Arc::clone(&domains), generations: Arc::clone(&generations) };
        let subscription = bus.subscribe(Arc::new(sink));
        let Self { far, clock, defaults, labels, .. } = self;
        let trust = bus.trust();
        let pending = Pending::default();
        let shared = Shared {
            far,
            bus,
            trust,
            clock,
            generations,
            pending,
            labels: Arc::new(Labels::new(labels)),
            tasks: Arc::default(),
            domains,
            defaults,
            _subscription: subscription,
        };
        Caches { shared: Arc::new(shared) }
    }
}

/// The caches by domain. Weak: a cache keeps the registry's parts alive, and must not keep itself.
#[derive(Debug, Default)]
pub(crate) struct Domains(RwLock<BTreeMap<Arc<str>, Defined>>);

/// A definition, and the cache that was made of it.
#[derive(Debug)]
struct Defined {
    definition: Definition,
    cache: Weak<dyn Domain>,
    /// What the cache has done, also when it is gone.
    counters: Arc<Counters>,
    /// That it was dropped and is made again.
    dropped: Arc<OnceWarning>,
}

impl Domains {
    pub(crate) fn find(&self, name: &str) -> Option<Arc<dyn Domain>> {
        self.0.read().get(name).and_then(|defined| defined.cache.upgrade())
    }

    /// Acts on each domain, also after one whose handlers panic. Without the lock: a handler may define a domain, which
    /// then begins after what `act` is about.
    pub(crate) fn for_each(&self, act: impl Fn(&dyn Domain)) {
        let all: Vec<_> = self.0.read().values().filter_map(|defined| defined.cache.upgrade()).collect();
        for_each_to_the_end(all, |domain| act(&*domain));
    }

    /// Without the lock: what is called may define a cache, and a cache whose last owner leaves meanwhile is dropped
    /// here.
    fn for_each_named(&self, mut act: impl FnMut(&Arc<str>, &dyn Domain)) {
        let living =
            |(name, defined): (&Arc<str>, &Defined)| Some((Arc::clone(name), defined.cache.upgrade()?));
        let all: Vec<(Arc<str>, Arc<dyn Domain>)> = self.0.read().iter().filter_map(living).collect();
        all.iter().for_each(|(name, domain)| act(name, &**domain));
    }

    fn define<C: Domain + 'static>(
        &self,
        name: &Arc<str>,
        definition: Definition,
        make: impl FnOnce() -> Result<C, CacheError>,
    ) -> Result<Arc<C>, CacheError> {
        let mut domains = self.0.write();
        let known = domains.get(name);
        if let Some((defined, cache)) = known.and_then(|defined| Some((defined, defined.cache.upgrade()?))) {
            let checked = defined.definition.check(&definition);
            // Before the cache: its last owner may have left, and it is dropped here.
            drop(domains);
            let refuse = |reason| CacheError::configuration(format!("cache domain `{name}`"), reason);
            checked.map_err(refuse)?;
            return cache.into_any().downcast().map_err(|_| refuse(ANOTHER_WAY));
        }
        let dropped = known.map(|defined| Arc::clone(&defined.dropped)).unwrap_or_default();
        if known.is_some_and(|defined| defined.counters.loads.get() > 0) {
            dropped.give(|| {
                tracing::warn!(
                    domain = &**name,
                    "a cache is defined again after its last handle was dropped, and what it remembered with it: define \
                     it once and keep it; told once"
                );
            });
        }
        let cache = Arc::new(make()?);
        let (counters, weak) = (cache.counters(), Arc::downgrade(&cache));
        domains.insert(Arc::clone(name), Defined { definition, cache: weak, counters, dropped });
        Ok(cache)
    }
}
