//! The near tier: typed values in memory, and the rule that keeps an old answer out.
//!
//! A value may arrive after the message that made it old: the far tier's answer was already on its way. So
//! whoever is about to ask takes a [`Ticket`] first, and an insert with a ticket that no longer stands is
//! refused. Removing an entry spoils the tickets of its stripe of keys, under the lock in which inserts are
//! checked and made; removing a group counts its [`Generation`] up, which every entry remembers.
//!
//! Why not the cache library's placeholder guards: its `retain` leaves placeholders alone, so a bulk removal
//! would let the old answer in; and a load must be able to outlive any one of its callers.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use cache_core::{CacheError, Tick};
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, UnitWeighter};

use crate::generation::{Chain, Generation};
use crate::key::{CacheKey, NearKey, NearQuery};
use crate::policy::Policy;
use crate::stats::{Counters, EvictionCause};
use crate::sync::Mutex;

const STRIPES: usize = 256;

/// What stood when a lookup began.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    stripe: usize,
    epoch: u64,
    wide: u64,
    /// Whether a tenant's group follows the wide ones in the chain.
    scoped: bool,
    pub(crate) chain: Chain,
}

/// What is remembered of a key.
pub(crate) enum Remembered<V> {
    Value(Arc<V>),
    Absent,
}

/// The near entries of one cache.
pub(crate) struct NearTier<K, V> {
    values: Tier<K, Arc<V>>,
    absent: Tier<K, ()>,
    stripes: Box<[Mutex<u64>]>,
    hasher: RandomState,
    wide: [Arc<Generation>; 2],
    counters: Arc<Counters>,
}

type Tier<K, T> = Cache<NearKey<K>, Slot<T>, UnitWeighter, DefaultHashBuilder, CountEvictions>;

/// A remembered answer, alive while its groups were not invalidated and its life is not over.
#[derive(Debug, Clone)]
struct Slot<T> {
    value: T,
    expires: Tick,
    /// The sum of the counts of the groups that all entries share. Counts only grow, so equal sums are equal
    /// counts.
    wide: u64,
    tenant: Option<Seen>,
    tags: Option<Arc<[Seen]>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> NearTier<K, V> {
    /// A tier for entries that all belong to the groups `wide`.
    pub(crate) fn new(
        policy: &Policy,
        wide: [Arc<Generation>; 2],
        counters: Arc<Counters>,
    ) -> Result<Self, CacheError> {
        Ok(Self {
            values: tier(policy.capacity, &counters)?,
            absent: tier(policy.negative_capacity, &counters)?,
            stripes: (0..STRIPES).map(|_| Mutex::new(0)).collect(),
            hasher: RandomState::new(),
            wide,
            counters,
        })
    }

    /// The value in memory, if it is alive. No lock is waited for beyond the shard's, nothing is allocated.
    #[inline]
    pub(crate) fn value(&self, query: &NearQuery<'_, K>, now: Tick) -> Option<Arc<V>> {
        let slot = self.values.get(query)?;
        self.alive(&slot, now).then_some(slot.value)
    }

    /// Whether it is remembered that there is no such thing.
    #[inline]
    pub(crate) fn is_absent(&self, query: &NearQuery<'_, K>, now: Tick) -> bool {
        // The length first: a cache without negative entries pays nothing for them.
        !self.absent.is_empty() && self.absent.get(query).is_some_and(|slot| self.alive(&slot, now))
    }

    /// What stands now. To be taken before the far tier is asked.
    pub(crate) fn ticket(
        &self,
        query: &NearQuery<'_, K>,
        tenant: Option<Arc<Generation>>,
        tags: Vec<Arc<Generation>>,
    ) -> Ticket {
        let stripe = self.stripe(query);
        let (wide, scoped) = (self.wide_now(), tenant.is_some());
        let chain = Chain::of(self.wide.iter().cloned().chain(tenant).chain(tags));
        Ticket { stripe, epoch: *self.stripes[stripe].lock(), wide, scoped, chain }
    }

    /// Whether nothing was invalidated since the ticket was taken.
    pub(crate) fn stands(&self, ticket: &Ticket) -> bool {
        *self.stripes[ticket.stripe].lock() == ticket.epoch && ticket.chain.stands()
    }

    /// Remembers an answer that was asked for under `ticket`; `false` when it has become old meanwhile.
    pub(crate) fn insert(
        &self,
        key: NearKey<K>,
        answer: Remembered<V>,
        expires: Tick,
        ticket: &Ticket,
    ) -> bool {
        let epoch = self.stripes[ticket.stripe].lock();
        if *epoch != ticket.epoch || !ticket.chain.stands() {
            return false;
        }
        let (wide, (tenant, tags)) = (ticket.wide, ticket.groups(self.wide.len()));
        match answer {
            Remembered::Value(value) => {
                self.absent.remove(&key);
                if self.values.peek(&key).is_some() {
                    self.counters.evicted(EvictionCause::Replaced).one();
                }
                self.values.insert(key, Slot { value, expires, wide, tenant, tags });
            }
            Remembered::Absent => {
                self.values.remove(&key);
                self.absent.insert(key, Slot { value: (), expires, wide, tenant, tags });
            }
        }
        true
    }

    /// Forgets a key, and refuses the answers that are on their way.
    pub(crate) fn remove(&self, query: &NearQuery<'_, K>) {
        let mut epoch = self.stripes[self.stripe(query)].lock();
        *epoch += 1;
        let found = self.values.remove(query).is_some() | self.absent.remove(query).is_some();
        self.counters.evicted(EvictionCause::Invalidated).add(u64::from(found));
    }

    /// Forgets every key that `matches`, and refuses all answers that are on their way. Linear in the size of
    /// the tier.
    pub(crate) fn remove_matching(&self, matches: impl Fn(&NearKey<K>) -> bool) {
        self.spoil_tickets();
        let before = self.values.len() + self.absent.len();
        self.values.retain(|key, _| !matches(key));
        self.absent.retain(|key, _| !matches(key));
        let removed = before.saturating_sub(self.values.len() + self.absent.len());
        self.counters.evicted(EvictionCause::Invalidated).add(removed as u64);
    }

    /// Refuses all answers that are on their way.
    pub(crate) fn spoil_tickets(&self) {
        for stripe in &self.stripes {
            *stripe.lock() += 1;
        }
    }

    pub(crate) fn len(&self) -> (u64, u64) {
        (self.values.len() as u64, self.absent.len() as u64)
    }

    #[inline]
    fn alive<T>(&self, slot: &Slot<T>, now: Tick) -> bool {
        if now >= slot.expires {
            self.counters.evicted(EvictionCause::Expired).one();
            return false;
        }
        slot.wide == self.wide_now()
            && slot.tenant.as_ref().is_none_or(|(generation, seen)| generation.local() == *seen)
            && slot.tags.as_ref().is_none_or(|tags| tags.iter().all(|(tag, seen)| tag.local() == *seen))
    }

    #[inline]
    fn wide_now(&self) -> u64 {
        self.wide[0].local() + self.wide[1].local()
    }

    fn stripe(&self, query: &NearQuery<'_, K>) -> usize {
        self.hasher.hash_one(query) as usize % STRIPES
    }
}

impl Ticket {
    /// What an entry has to compare on a hit besides the wide groups: its tenant's, and its tags'.
    fn groups(&self, wide: usize) -> (Option<Seen>, Option<Arc<[Seen]>>) {
        let mut rest = self.chain.iter().skip(wide).cloned();
        let tenant = if self.scoped { rest.next() } else { None };
        let tags: Arc<[Seen]> = rest.collect();
        (tenant, (!tags.is_empty()).then_some(tags))
    }
}

/// A group, and its count when the entry was asked for.
type Seen = (Arc<Generation>, u64);

fn tier<K: CacheKey, T: Clone + Send + Sync>(
    capacity: usize,
    counters: &Arc<Counters>,
) -> Result<Tier<K, T>, CacheError> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(capacity)
        .weight_capacity(capacity as u64)
        .build()
        .map_err(|error| CacheError::configuration("near tier", error.to_string()))?;
    let lifecycle = CountEvictions(Arc::clone(counters));
    Ok(Cache::with_options(options, UnitWeighter, DefaultHashBuilder::default(), lifecycle))
}

#[derive(Debug, Clone)]
struct CountEvictions(Arc<Counters>);

impl<K, T> Lifecycle<K, T> for CountEvictions {
    /// Keeps what is evicted until the shard's lock is released: a value's own `drop` may take long.
    type RequestState = Vec<(K, T)>;

    fn on_evict(&self, state: &mut Self::RequestState, key: K, value: T) {
        self.0.evicted(EvictionCause::Capacity).one();
        state.push((key, value));
    }
}
