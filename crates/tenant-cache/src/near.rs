//! The near tier: typed values in memory, and the rule that keeps an old answer out.
//!
//! A value may arrive after the message that made it old: the far tier's answer was already on its way. So
//! whoever is about to ask takes a [`Ticket`] first, and an insert with a ticket that no longer stands is
//! refused. Removing an entry spoils the tickets of its stripe of keys, under the lock in which inserts are
//! checked and made; removing a group counts its [`Generation`] up, which every entry remembers.
//!
//! What leaves is dropped after the locks are given back: a user's `drop` may use the cache.
//!
//! Why not the cache library's placeholder guards: its `retain` leaves placeholders alone, so a bulk removal
//! would let the old answer in; and a load must be able to outlive any one of its callers.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use cache_core::{CacheError, Tick};

use crate::generation::{Chain, Generation};
use crate::key::{CacheKey, NearKey, NearQuery};
use crate::labels::Meter;
use crate::life::{Left, Times};
use crate::policy::Policy;
use crate::stats::{Counters, EvictionCause};
use crate::store::{Leaving, Seen, Slot, Store};
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
    /// What is invalidated with any tag, where the loader may name some: who comes after an invalidation of one joins no
    /// load from before it. Whether the answer is stored is told by the tags themselves, once they are known.
    late: Chain,
    /// Whose lookup it is, where the metrics name tenants.
    pub(crate) meter: Option<Arc<Meter>>,
}

/// What is remembered of a key.
pub(crate) enum Remembered<V> {
    Value(Arc<V>),
    Absent,
}

/// A value in memory that may be served.
pub(crate) struct Hit<V> {
    pub(crate) value: Arc<V>,
    /// Past its fresh life.
    pub(crate) stale: bool,
    /// It is time to refresh it.
    pub(crate) due: bool,
}

/// The near entries of one cache.
pub(crate) struct NearTier<K, V> {
    values: Store<K, Arc<V>>,
    absent: Store<K, ()>,
    stripes: Box<[Mutex<u64>]>,
    hasher: RandomState,
    wide: [Arc<Generation>; 2],
}

impl<K: CacheKey, V: Send + Sync + 'static> NearTier<K, V> {
    /// A tier for entries that all belong to the groups `wide`.
    pub(crate) fn new(
        policy: &Policy,
        wide: [Arc<Generation>; 2],
        counters: Arc<Counters>,
    ) -> Result<Self, CacheError> {
        let share = policy.tenant_share;
        Ok(Self {
            values: Store::new(policy.capacity, share, Arc::clone(&counters))?,
            absent: Store::new(policy.negative_capacity, share, counters)?,
            stripes: (0..STRIPES).map(|_| Mutex::new(0)).collect(),
            hasher: RandomState::new(),
            wide,
        })
    }

    /// The value in memory, if it may be served. No lock is waited for beyond the shard's, nothing is allocated.
    #[inline]
    pub(crate) fn value(&self, query: &NearQuery<'_, K>, now: Tick) -> Option<Hit<V>> {
        let slot = self.values.get(query)?;
        let (stale, due) = (now >= slot.times.stale, now >= slot.times.attend);
        if due && now >= slot.times.serve_until || !self.stands_still(&slot) {
            return None;
        }
        if let Some(meter) = &slot.meter {
            meter.near_hit();
        }
        Some(Hit { value: Arc::clone(&slot.value), stale, due })
    }

    /// A value that is kept for when the load fails, and how long it has to live.
    pub(crate) fn kept(&self, query: &NearQuery<'_, K>, now: Tick) -> Option<(Arc<V>, Left)> {
        let slot = self.values.get(query)?;
        let left = Left {
            lived: std::time::Duration::ZERO,
            fresh: slot.times.stale.since(now),
            stale: now.since(slot.times.stale),
            whole: slot.times.expires.since(now),
        };
        (!left.whole.is_zero() && self.stands_still(&slot)).then(|| (Arc::clone(&slot.value), left))
    }

    /// Whether it is remembered that there is no such thing.
    #[inline]
    pub(crate) fn is_absent(&self, query: &NearQuery<'_, K>, now: Tick) -> bool {
        // The length first: a cache without negative entries pays nothing for them.
        !self.absent.is_empty()
            && self
                .absent
                .get(query)
                .filter(|slot| now < slot.times.serve_until && self.stands_still(slot))
                .inspect(|slot| slot.meter.iter().for_each(|meter| meter.near_hit()))
                .is_some()
    }

    /// Lets an entry be for a while that is due, because it is being seen to.
    pub(crate) fn defer(&self, query: &NearQuery<'_, K>, until: Tick) {
        let changing = self.stripes[self.stripe(query)].lock();
        let leaving = self.values.update(query, |slot| slot.times.attend = until.min(slot.times.serve_until));
        drop(changing);
        drop(leaving);
    }

    /// What stands now. To be taken before the far tier is asked.
    pub(crate) fn ticket(
        &self,
        query: &NearQuery<'_, K>,
        tenant: Option<Arc<Generation>>,
        tags: Vec<Arc<Generation>>,
        meter: Option<Arc<Meter>>,
    ) -> Ticket {
        let stripe = self.stripe(query);
        let (wide, scoped) = (self.wide_now(), tenant.is_some());
        let chain = Chain::of(self.wide.iter().cloned().chain(tenant).chain(tags));
        let (epoch, late) = (*self.stripes[stripe].lock(), Chain::default());
        Ticket { stripe, epoch, wide, scoped, chain, late, meter }
    }

    /// Whether nothing was invalidated since the ticket was taken.
    pub(crate) fn stands(&self, ticket: &Ticket) -> bool {
        *self.stripes[ticket.stripe].lock() == ticket.epoch && ticket.chain.stands() && ticket.late.stands()
    }

    /// Remembers an answer that was asked for under `ticket`; `false` when it has become old meanwhile.
    pub(crate) fn insert(
        &self,
        key: NearKey<K>,
        answer: Remembered<V>,
        times: Times,
        now: Tick,
        ticket: &Ticket,
    ) -> bool {
        let epoch = self.stripes[ticket.stripe].lock();
        if *epoch != ticket.epoch || !ticket.chain.stands() {
            return false;
        }
        let (wide, (tenant, tags)) = (ticket.wide, ticket.groups(self.wide.len()));
        let meter = ticket.meter.clone();
        let leaving: (Leaving<_, _>, Leaving<_, _>) = match answer {
            Remembered::Value(value) => {
                let absent = self.absent.remove(&key.query(), EvictionCause::Replaced);
                let slot = Slot { value, times, wide, tenant, tags, meter, id: 0 };
                (self.values.insert(key, slot, now), absent)
            }
            Remembered::Absent => {
                let value = self.values.remove(&key.query(), EvictionCause::Replaced);
                let slot = Slot { value: (), times, wide, tenant, tags, meter, id: 0 };
                (value, self.absent.insert(key, slot, now))
            }
        };
        drop(epoch);
        drop(leaving);
        true
    }

    /// Forgets a key, and refuses the answers that are on their way.
    pub(crate) fn remove(&self, query: &NearQuery<'_, K>) {
        let mut epoch = self.stripes[self.stripe(query)].lock();
        *epoch += 1;
        let value = self.values.remove(query, EvictionCause::Invalidated);
        let absent = self.absent.remove(query, EvictionCause::Invalidated);
        drop(epoch);
        drop((value, absent));
    }

    /// Forgets every key that `matches`, and refuses all answers that are on their way. Linear in the size of
    /// the tier.
    pub(crate) fn remove_matching(&self, matches: impl Fn(&NearKey<K>) -> bool) {
        self.spoil_tickets();
        let values = self.values.remove_matching(&matches);
        let absent = self.absent.remove_matching(&matches);
        drop((values, absent));
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

    /// Whether none of its groups was invalidated.
    #[inline]
    fn stands_still<T>(&self, slot: &Slot<T>) -> bool {
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
    /// One under which nothing is kept.
    pub(crate) fn void(self) -> Self {
        Self { epoch: u64::MAX, ..self }
    }

    /// For a load after which further tags may be named.
    pub(crate) fn with_late_tags(self, guard: Arc<Generation>) -> Self {
        Self { late: Chain::of([guard]), ..self }
    }

    /// For an entry that belongs to further groups.
    pub(crate) fn with_tags(&self, tags: &Chain) -> Self {
        Self { chain: self.chain.and(tags), ..self.clone() }
    }

    /// How many tags follow from the key.
    pub(crate) fn tags(&self) -> usize {
        self.chain.len().saturating_sub(2 + usize::from(self.scoped))
    }

    /// What an entry has to compare on a hit besides the wide groups: its tenant's, and its tags'.
    fn groups(&self, wide: usize) -> (Option<Seen>, Option<Arc<[Seen]>>) {
        let mut rest = self.chain.iter().skip(wide).cloned();
        let tenant = if self.scoped { rest.next() } else { None };
        let tags: Arc<[Seen]> = rest.collect();
        (tenant, (!tags.is_empty()).then_some(tags))
    }
}
