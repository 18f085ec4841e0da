//! Single flight: concurrent lookups of one key share a load.
//!
//! A load belongs to all its waiters: whoever leaves just stops waiting, and the load is cancelled when the last one
//! has left. A lookup joins only a load whose ticket still stands and which is young enough: a reader who comes after
//! an invalidation must not be handed what was asked for before it.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::{CacheError, Tick};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::answer::Found;
use crate::near::Ticket;
use crate::shared_load::{SharedLoad, Stage};
use crate::sync::{AtomicU64, Mutex};

const SHARDS: usize = 16;

/// What a lookup ends with.
pub(crate) type LookupResult<V> = Result<Found<V>, CacheError>;

/// What a load is asked for.
pub(crate) trait Question {
    type Key: Eq + Hash;

    fn key(&self) -> &Self::Key;

    /// What stood when it was asked.
    fn ticket(&self) -> &Ticket;
}

/// The loads of one cache that are in flight.
pub(crate) struct SingleFlight<Q, T> {
    shards: Box<[Shard<Q, T>]>,
    hasher: RandomState,
    in_flight: AtomicUsize,
}

type Shard<Q, T> = Mutex<HashTable<Arc<Flight<Q, T>>>>;

/// A load in flight.
pub(crate) struct Flight<Q, T> {
    pub(crate) question: Q,
    hash: u64,
    /// When it began, in nanoseconds of the cache's clock. Earlier than it was asked for when it joined an older load.
    started: AtomicU64,
    pub(crate) load: SharedLoad<T>,
}

/// Which loads a lookup may join.
pub(crate) struct JoinRule<'a> {
    pub(crate) now: Tick,
    pub(crate) join_within: Duration,
    /// Only what runs in a task of its own, and not what another caller does in passing.
    pub(crate) in_task: bool,
    /// Whether a load's ticket still stands.
    pub(crate) stands: &'a dyn Fn(&Ticket) -> bool,
}

/// The part of a lookup in a load: it waits for somebody else's, or does its own.
pub(crate) enum Part<Q, T> {
    Joined(Passenger<Q, T>, Q),
    Started(Passenger<Q, T>, Landing<Q, T>),
}

/// The duty to end a load in flight; dropped without a result, it lapses.
pub(crate) struct Landing<Q, T>(Option<Listed<Q, T>>);

/// A load in flight, and the table that it is on.
type Listed<Q, T> = (Arc<SingleFlight<Q, T>>, Arc<Flight<Q, T>>);

impl<Q: Question, T> SingleFlight<Q, T> {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new(), in_flight: AtomicUsize::new(0) }
    }

    /// Joins the load of the question's key if the rule allows it, else starts one in its place.
    pub(crate) fn join_or_start(self: &Arc<Self>, question: Q, rule: &JoinRule<'_>) -> Part<Q, T> {
        let hash = self.hasher.hash_one(question.key());
        let mut shard = self.shard(hash).lock();
        let listed = shard.find(hash, |flight| flight.question.key() == question.key());
        if let Some(flight) = listed.filter(|flight| flight.joinable(rule)) {
            return Part::Joined(Passenger { table: Arc::clone(self), flight: Arc::clone(flight) }, question);
        }
        let (started, load) = (AtomicU64::new(rule.now.as_nanos()), SharedLoad::new(Stage::InPassing));
        let flight = Arc::new(Flight { question, hash, started, load });
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let same = |other: &Arc<Flight<Q, T>>| other.question.key() == flight.question.key();
        let replaced = match shard.entry(hash, same, |flight| flight.hash) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), Arc::clone(&flight))),
            Entry::Vacant(entry) => {
                entry.insert(Arc::clone(&flight));
                None
            }
        };
        drop(shard);
        // Outside of the lock, for what it holds may do anything when it is dropped.
        drop(replaced);
        let landing = Landing(Some((Arc::clone(self), Arc::clone(&flight))));
        Part::Started(Passenger { table: Arc::clone(self), flight }, landing)
    }

    /// Joins the load of a key if the rule allows it.
    pub(crate) fn join(self: &Arc<Self>, key: &Q::Key, rule: &JoinRule<'_>) -> Option<Passenger<Q, T>> {
        if self.in_flight.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).lock();
        let flight = shard.find(hash, |flight| flight.question.key() == key)?;
        flight.joinable(rule).then(|| Passenger { table: Arc::clone(self), flight: Arc::clone(flight) })
    }
}

impl<Q, T> SingleFlight<Q, T> {
    /// Takes a load that ends off the table; before it ends, so that nobody who comes later is handed its error.
    fn take_off(&self, flight: &Arc<Flight<Q, T>>) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.remove(flight);
    }

    /// Removes a load, unless a newer one took its place.
    fn remove(&self, flight: &Arc<Flight<Q, T>>) {
        let removed = {
            let mut shard = self.shard(flight.hash).lock();
            let entry = shard.find_entry(flight.hash, |other| Arc::ptr_eq(other, flight));
            entry.ok().map(|entry| entry.remove().0)
        };
        drop(removed);
    }

    fn shard(&self, hash: u64) -> &Shard<Q, T> {
        // The table uses the lower and the upper bits itself.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

impl<Q: Question, T> Flight<Q, T> {
    fn joinable(&self, rule: &JoinRule<'_>) -> bool {
        let young = rule.now.since(self.started()) < rule.join_within;
        young && (rule.stands)(self.question.ticket()) && self.load.enter(rule.in_task)
    }
}

impl<Q, T> Flight<Q, T> {
    /// When the load began.
    pub(crate) fn started(&self) -> Tick {
        Tick::from_nanos(self.started.load(Ordering::Relaxed))
    }

    /// It is as old as another load, whose answer it may give.
    pub(crate) fn ages_to(&self, started: Tick) {
        self.started.store(started.as_nanos().min(self.started().as_nanos()), Ordering::Relaxed);
    }
}

/// A waiter of a load in flight; when the last one leaves, the load is off the table and cancelled.
pub(crate) struct Passenger<Q, T> {
    table: Arc<SingleFlight<Q, T>>,
    pub(crate) flight: Arc<Flight<Q, T>>,
}

impl<Q, T> Passenger<Q, T> {
    /// A further waiter of the load, unless it has ended.
    pub(crate) fn another(&self) -> Option<Self> {
        let further = || Self { table: Arc::clone(&self.table), flight: Arc::clone(&self.flight) };
        self.flight.load.enter(false).then(further)
    }
}

impl<Q, T> Drop for Passenger<Q, T> {
    fn drop(&mut self) {
        if self.flight.load.leave() {
            self.table.remove(&self.flight);
        }
    }
}

impl<Q, T> Landing<Q, T> {
    /// Hands the result to everybody who waits.
    pub(crate) fn land(mut self, outcome: T) {
        if let Some((table, flight)) = self.0.take() {
            table.take_off(&flight);
            flight.load.land(outcome);
        }
    }
}

impl<Q, T> Drop for Landing<Q, T> {
    fn drop(&mut self) {
        if let Some((table, flight)) = self.0.take() {
            table.take_off(&flight);
            flight.load.lapse();
        }
    }
}
