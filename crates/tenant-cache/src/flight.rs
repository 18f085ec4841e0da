//! One flight per key: concurrent lookups share a load.
//!
//! A flight belongs to all its callers. Each polls the same future; whoever leaves just stops polling, and
//! the load is cancelled when the last one has left. A lookup joins only a flight whose ticket still stands
//! and which is young enough: a reader who comes after an invalidation must not be handed what was asked for
//! before it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::{CacheError, Tick};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::answer::Found;
use crate::key::{CacheKey, NearKey};
use crate::near::Ticket;
use crate::sync::{AtomicU64, Mutex};

const SHARDS: usize = 16;

/// The end of a flight, for all its callers.
pub(crate) type Landing<V> = Result<Found<V>, CacheError>;

/// A flight in progress; every clone may poll it.
pub(crate) type Flight<V> = Shared<BoxFuture<'static, Landing<V>>>;

/// The flights of one cache.
pub(crate) struct Flights<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: RandomState,
    next: AtomicU64,
    aloft: AtomicUsize,
}

type Shard<K, V> = Mutex<HashMap<NearKey<K>, Entry<V>>>;

struct Entry<V> {
    id: u64,
    started: Tick,
    ticket: Ticket,
    /// Weak, so that the table does not keep a load alive that nobody waits for.
    flight: WeakShared<BoxFuture<'static, Landing<V>>>,
}

/// Which flights a lookup may join.
pub(crate) struct Boarding<'a> {
    pub(crate) now: Tick,
    pub(crate) join_within: Duration,
    /// Whether a flight's ticket still stands.
    pub(crate) stands: &'a dyn Fn(&Ticket) -> bool,
}

impl<K: CacheKey, V: Send + Sync + 'static> Flights<K, V> {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new(), next: AtomicU64::new(0), aloft: AtomicUsize::new(0) }
    }

    /// The flight of a key that the lookup may join (`true`), or a new one that takes `course` (`false`).
    pub(crate) fn board<C: Future<Output = Landing<V>> + Send + 'static>(
        self: &Arc<Self>,
        key: NearKey<K>,
        ticket: Ticket,
        boarding: &Boarding<'_>,
        course: impl FnOnce() -> C,
    ) -> (Flight<V>, bool) {
        let mut shard = self.shard(&key).lock();
        if let Some(flight) = shard.get(&key).and_then(|entry| entry.joinable(boarding)) {
            return (flight, true);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let landed = Landed { flights: Arc::clone(self), key: key.clone(), id };
        self.aloft.fetch_add(1, Ordering::Relaxed);
        // Not in an async block, which would hold the course twice: where it was captured, and where it is awaited.
        let flight = course().map(move |landing| {
            drop(landed);
            landing
        });
        let new = flight.boxed().shared();
        if let Some(flight) = new.downgrade() {
            shard.insert(key, Entry { id, started: boarding.now, ticket, flight });
        }
        (new, false)
    }

    /// The flight of a key that the lookup may join.
    pub(crate) fn find(&self, key: &NearKey<K>, boarding: &Boarding<'_>) -> Option<Flight<V>> {
        self.shard(key).lock().get(key).and_then(|entry| entry.joinable(boarding))
    }

    /// Whether nothing is under way. Not exact: a flight that begins or ends now may be counted either way.
    pub(crate) fn is_empty(&self) -> bool {
        self.aloft.load(Ordering::Relaxed) == 0
    }

    /// A new flight that later lookups may join, in place of whichever there is.
    pub(crate) fn board_anew<C: Future<Output = Landing<V>> + Send + 'static>(
        self: &Arc<Self>,
        key: NearKey<K>,
        ticket: Ticket,
        now: Tick,
        course: impl FnOnce() -> C,
    ) -> Flight<V> {
        let nobody = |_: &Ticket| false;
        let boarding = Boarding { now, join_within: Duration::ZERO, stands: &nobody };
        self.board(key, ticket, &boarding, course).0
    }

    fn shard(&self, key: &NearKey<K>) -> &Shard<K, V> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

impl<V> Entry<V> {
    fn joinable(&self, boarding: &Boarding<'_>) -> Option<Flight<V>> {
        let young = boarding.now.since(self.started) < boarding.join_within;
        (young && (boarding.stands)(&self.ticket)).then(|| self.flight.upgrade()).flatten()
    }
}

/// Takes the flight off the table when it ends or is cancelled, unless a newer one took its place.
struct Landed<K: CacheKey, V: Send + Sync + 'static> {
    flights: Arc<Flights<K, V>>,
    key: NearKey<K>,
    id: u64,
}

impl<K: CacheKey, V: Send + Sync + 'static> Drop for Landed<K, V> {
    fn drop(&mut self) {
        self.flights.aloft.fetch_sub(1, Ordering::Relaxed);
        let mut shard = self.flights.shard(&self.key).lock();
        if shard.get(&self.key).is_some_and(|entry| entry.id == self.id) {
            shard.remove(&self.key);
        }
    }
}
