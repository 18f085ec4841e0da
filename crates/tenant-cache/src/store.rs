//! A bounded map of near entries: which tenant holds how much of it, and why entries leave it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cache_core::{CacheError, TenantId, Tick};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, UnitWeighter};

use crate::generation::Generation;
use crate::key::{CacheKey, NearKey, NearQuery};
use crate::labels::Meter;
use crate::life::Times;
use crate::stats::{Counters, EvictionCause};

/// A group, and its count when the entry was asked for.
pub(crate) type Seen = (Arc<Generation>, u64);

/// A remembered answer, alive while its groups were not invalidated and its life is not over.
#[derive(Debug, Clone)]
pub(crate) struct Slot<T> {
    pub(crate) value: T,
    pub(crate) times: Times,
    /// The sum of the counts of the groups that all entries share. Counts only grow, so equal sums are equal
    /// counts.
    pub(crate) wide: u64,
    pub(crate) tenant: Option<Seen>,
    pub(crate) tags: Option<Arc<[Seen]>>,
    /// Whose hits its hits are, where the metrics name tenants.
    pub(crate) meter: Option<Arc<Meter>>,
    /// Tells the entries apart that a key had one after the other; set by the store.
    pub(crate) id: u64,
}

/// The map. What leaves it is handed to the caller, who drops it when it holds no lock any more: the `drop` of a
/// user's value or key may take long, and may use the cache.
pub(crate) struct Store<K, T> {
    /// Shared, so that a hit takes one count up and not one for each part of a slot.
    entries: Cache<NearKey<K>, Arc<Slot<T>>, UnitWeighter, DefaultHashBuilder, Collect>,
    shares: Option<Shares<K>>,
    next: AtomicU64,
    counters: Arc<Counters>,
}

/// What left the map, to be dropped outside of every lock.
#[must_use = "it is to be dropped outside of the caller's locks"]
pub(crate) struct Leaving<K, T> {
    entries: Vec<(NearKey<K>, Arc<Slot<T>>)>,
    keys: Vec<NearKey<K>>,
}

impl<K, T> Leaving<K, T> {
    pub(crate) fn nothing() -> Self {
        Self { entries: Vec::new(), keys: Vec::new() }
    }
}

impl<K: CacheKey, T: Clone + Send + Sync> Store<K, T> {
    /// A map of so many entries, of which one tenant can hold a share.
    pub(crate) fn new(
        capacity: usize,
        share: Option<f64>,
        counters: Arc<Counters>,
    ) -> Result<Self, CacheError> {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(capacity)
            .weight_capacity(capacity as u64)
            .build()
            .map_err(|error| CacheError::configuration("near tier", error.to_string()))?;
        let entries = Cache::with_options(options, UnitWeighter, DefaultHashBuilder::default(), Collect);
        let shares = share.map(|share| Shares::new(((capacity as f64 * share) as usize).max(1)));
        Ok(Self { entries, shares, next: AtomicU64::new(0), counters })
    }

    #[inline]
    pub(crate) fn get(&self, query: &NearQuery<'_, K>) -> Option<Arc<Slot<T>>> {
        self.entries.get(query)
    }

    /// Puts an entry in, in place of the key's former one.
    pub(crate) fn insert(&self, key: NearKey<K>, slot: Slot<T>, now: Tick) -> Leaving<K, T> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut leaving = Leaving::nothing();
        let mut fresh = true;
        let slot = Arc::new(Slot { id, ..slot });
        self.entries.insert_with_lifecycle(key.clone(), slot, &mut leaving.entries);
        for (gone, slot) in &leaving.entries {
            let cause = match *gone == key {
                false => EvictionCause::Capacity,
                true if now >= slot.times.serve_until => EvictionCause::Expired,
                true => EvictionCause::Replaced,
            };
            fresh &= *gone != key;
            self.counters.evicted(cause).one();
        }
        match (&self.shares, key.tenant.clone()) {
            (Some(shares), tenant) => {
                let others = leaving.entries.iter().map(|(gone, _)| gone).filter(|gone| **gone != key);
                others.for_each(|gone| shares.left(gone, &mut leaving.keys));
                match tenant {
                    Some(tenant) => {
                        shares.entered(&tenant, key, id, fresh);
                        self.keep_to_share(shares, &tenant, &mut leaving);
                    }
                    None => leaving.keys.push(key),
                }
            }
            (None, _) => leaving.keys.push(key),
        }
        leaving
    }

    /// Changes an entry that is there. Whoever calls sees to it that nobody replaces it meanwhile.
    pub(crate) fn update(
        &self,
        query: &NearQuery<'_, K>,
        change: impl FnOnce(&mut Slot<T>),
    ) -> Leaving<K, T> {
        let mut leaving = Leaving::nothing();
        let Some(old) = self.entries.peek(query) else { return leaving };
        let mut new = (*old).clone();
        change(&mut new);
        let (key, new) = (query.to_key(), Arc::new(new));
        if let Err(gone) = self.entries.replace_with_lifecycle(key, new, true, &mut leaving.entries) {
            // Gone again by now: then there is nothing to change.
            leaving.entries.push(gone);
        }
        leaving.entries.push((query.to_key(), old));
        leaving
    }

    /// Takes an entry out.
    pub(crate) fn remove(&self, query: &NearQuery<'_, K>, cause: EvictionCause) -> Leaving<K, T> {
        let mut leaving = Leaving::nothing();
        if let Some(gone) = self.entries.remove(query) {
            self.leave(gone, cause, &mut leaving);
        }
        leaving
    }

    /// Takes out every entry that matches. Linear in the size of the map.
    pub(crate) fn remove_matching(&self, matches: impl Fn(&NearKey<K>) -> bool) -> Leaving<K, T> {
        // Only looked through here: what the map itself removes it drops under its lock.
        let found = Mutex::new(Vec::new());
        self.entries.retain(|key, slot| {
            if matches(key) {
                found.lock().push((key.clone(), slot.id));
            }
            true
        });
        let mut leaving = Leaving::nothing();
        for (key, id) in found.into_inner() {
            // What took the place of what was found was put in later, and stays.
            if let Some(gone) = self.entries.remove_if(&key, |slot| slot.id == id) {
                self.leave(gone, EvictionCause::Invalidated, &mut leaving);
            }
            leaving.keys.push(key);
        }
        leaving
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Counts an entry out that was taken out of the map.
    fn leave(&self, gone: (NearKey<K>, Arc<Slot<T>>), cause: EvictionCause, leaving: &mut Leaving<K, T>) {
        self.counters.evicted(cause).one();
        self.shares.iter().for_each(|shares| shares.left(&gone.0, &mut leaving.keys));
        leaving.entries.push(gone);
    }

    /// Evicts a tenant's oldest entries until it is within its share. The map's locks and the shares' are never
    /// held at once.
    fn keep_to_share(&self, shares: &Shares<K>, tenant: &TenantId, leaving: &mut Leaving<K, T>) {
        while let Some((id, key)) = shares.over(tenant) {
            if let Some(gone) = self.entries.remove_if(&key, |slot| slot.id == id) {
                self.leave(gone, EvictionCause::Capacity, leaving);
            }
            leaving.keys.push(key);
        }
        if let Some(order) = shares.overgrown(tenant) {
            let current =
                |(id, key): &(u64, NearKey<K>)| self.entries.peek(key).is_some_and(|slot| slot.id == *id);
            let (order, gone): (Order<K>, Order<K>) = order.into_iter().partition(current);
            leaving.keys.extend(gone.into_iter().map(|(_, key)| key));
            shares.restore(tenant, order, &mut leaving.keys);
        }
    }
}

/// How much each tenant holds, in the order in which it came.
struct Shares<K> {
    limit: usize,
    tenants: Mutex<HashMap<TenantId, Holding<K>>>,
}

struct Holding<K> {
    live: usize,
    /// Oldest first; also of entries that are gone, which are told by their id and dropped when met.
    order: Order<K>,
}

type Order<K> = VecDeque<(u64, NearKey<K>)>;

impl<K: CacheKey> Shares<K> {
    fn new(limit: usize) -> Self {
        Self { limit, tenants: Mutex::default() }
    }

    /// Counts an entry in; `fresh` when its key was not there before.
    fn entered(&self, tenant: &TenantId, key: NearKey<K>, id: u64, fresh: bool) {
        let mut tenants = self.tenants.lock();
        let empty = || Holding { live: 0, order: VecDeque::new() };
        let holding = tenants.entry(tenant.clone()).or_insert_with(empty);
        holding.live += usize::from(fresh);
        holding.order.push_back((id, key));
    }

    /// Counts an entry out. A tenant without entries is forgotten, and its keys are handed out.
    fn left(&self, key: &NearKey<K>, leaving: &mut Vec<NearKey<K>>) {
        let Some(tenant) = &key.tenant else { return };
        let mut tenants = self.tenants.lock();
        if let Some(holding) = tenants.get_mut(tenant) {
            holding.live = holding.live.saturating_sub(1);
            if holding.live == 0 {
                let order = tenants.remove(tenant).map(|holding| holding.order).unwrap_or_default();
                leaving.extend(order.into_iter().map(|(_, key)| key));
            }
        }
    }

    /// The oldest entry of a tenant that holds too many; it may be gone already.
    fn over(&self, tenant: &TenantId) -> Option<(u64, NearKey<K>)> {
        let mut tenants = self.tenants.lock();
        let holding = tenants.get_mut(tenant).filter(|holding| holding.live > self.limit)?;
        holding.order.pop_front()
    }

    /// The order of a tenant, when most of it are entries that are gone.
    fn overgrown(&self, tenant: &TenantId) -> Option<Order<K>> {
        let mut tenants = self.tenants.lock();
        let holding = tenants.get_mut(tenant)?;
        (holding.order.len() > 2 * holding.live + 64).then(|| std::mem::take(&mut holding.order))
    }

    /// Puts an order back in front of what came meanwhile, or hands its keys out when the tenant is gone.
    fn restore(&self, tenant: &TenantId, mut order: Order<K>, leaving: &mut Vec<NearKey<K>>) {
        match self.tenants.lock().get_mut(tenant) {
            Some(holding) => {
                order.append(&mut holding.order);
                holding.order = order;
            }
            None => leaving.extend(order.into_iter().map(|(_, key)| key)),
        }
    }
}

/// Hands what is evicted to whoever inserts.
#[derive(Debug, Clone)]
struct Collect;

impl<K, T> Lifecycle<K, T> for Collect {
    type RequestState = Vec<(K, T)>;

    fn on_evict(&self, left: &mut Self::RequestState, key: K, value: T) {
        left.push((key, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        attend: Tick::NEVER,
        stale: Tick::NEVER,
        serve_until: Tick::from_nanos(100),
        expires: Tick::from_nanos(100),
    };

    fn slot(value: u64) -> Slot<u64> {
        Slot { value, times: TIMES, wide: 0, tenant: None, tags: None, meter: None, id: 0 }
    }

    fn key(tenant: &str, key: u64) -> NearKey<u64> {
        NearKey { tenant: Some(TenantId::new(tenant).unwrap()), user: None, key }
    }

    fn store(share: Option<f64>) -> Store<u64, u64> {
        Store::new(1_000, share, Arc::new(Counters::new("d", false))).unwrap()
    }

    /// Fills a store with what a quiet tenant uses, and then lets a noisy one write a million keys, each of which
    /// it reads again, so that they look worth keeping. How many each tenant holds then.
    fn after_the_noise(store: &Store<u64, u64>) -> (usize, usize) {
        (0..200).for_each(|n| drop(store.insert(key("quiet", n), slot(n), Tick::ZERO)));
        for n in 0..1_000_000 {
            let noisy = key("noisy", n);
            drop(store.insert(noisy.clone(), slot(n), Tick::ZERO));
            (0..3).for_each(|_| drop(store.get(&noisy.query())));
        }
        let held = |tenant: &str, upto: u64| {
            (0..upto).filter(|n| store.get(&key(tenant, *n).query()).is_some()).count()
        };
        (held("quiet", 200), held("noisy", 1_000_000))
    }

    /// E13, SG7: a tenant that writes a million keys holds its share, and the others keep what they had.
    #[test]
    fn a_noisy_tenant_keeps_to_its_share() {
        let store = store(Some(0.25));
        assert_eq!(after_the_noise(&store), (200, 250));
        let shares = store.shares.as_ref().unwrap().tenants.lock();
        let noisy = &shares[&TenantId::new("noisy").unwrap()];
        assert_eq!(noisy.live, 250);
        assert!(noisy.order.len() <= 2 * 250 + 64, "{}", noisy.order.len());
    }

    /// E13: without a share the same tenant evicts the others.
    #[test]
    fn without_a_share_one_tenant_evicts_the_others() {
        let (quiet, noisy) = after_the_noise(&store(None));
        assert!(quiet < 100 && noisy > 500, "{quiet} {noisy}");
    }

    /// E13: what is removed, replaced or invalidated is counted out, so that a tenant can fill its share again;
    /// and nothing is kept of a tenant without entries.
    #[test]
    fn what_leaves_is_counted_out() {
        let store = store(Some(0.01));
        for round in 0..1_000 {
            drop(store.insert(key("a", round % 3), slot(round), Tick::ZERO));
            drop(store.remove(&key("a", (round + 1) % 3).query(), EvictionCause::Invalidated));
        }
        let held = (0..3).filter(|n| store.get(&key("a", *n).query()).is_some()).count();
        {
            let tenants = store.shares.as_ref().unwrap().tenants.lock();
            let holding = &tenants[&TenantId::new("a").unwrap()];
            assert_eq!(holding.live, held);
            assert!(holding.order.len() <= 2 * held + 64 + 1, "{}", holding.order.len());
        }
        drop(store.remove_matching(|_| true));
        assert_eq!((store.len(), store.shares.as_ref().unwrap().tenants.lock().len()), (0, 0));
    }

    /// M1, SH4: each entry that leaves is counted once, under its cause.
    #[test]
    fn evictions_are_counted_once_by_cause() {
        let store = store(None);
        let counted = || {
            let stats = store.counters.snapshot();
            (stats.evicted_capacity, stats.evicted_expired, stats.evicted_invalidated, stats.evicted_replaced)
        };
        drop(store.insert(key("a", 1), slot(1), Tick::ZERO));
        drop(store.insert(key("a", 1), slot(2), Tick::ZERO));
        assert_eq!(counted(), (0, 0, 0, 1));
        drop(store.insert(key("a", 1), slot(3), Tick::from_nanos(100)));
        assert_eq!(counted(), (0, 1, 0, 1));
        drop(store.remove(&key("a", 1).query(), EvictionCause::Invalidated));
        drop(store.remove(&key("a", 1).query(), EvictionCause::Invalidated));
        assert_eq!(counted(), (0, 1, 1, 1));
        (0..3_000).for_each(|n| drop(store.insert(key("a", n), slot(n), Tick::ZERO)));
        assert_eq!(counted().0 as usize, 3_000 - store.len());
    }
}
