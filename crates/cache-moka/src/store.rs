//! The values, their leases, and the lock under which a key's state changes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cache_core::cache::ClaimKind;
use cache_core::{Claim, Clock, LeaseToken, Lookup, Tick};
use mini_moka::sync::{Cache, ConcurrentCacheExt};
use parking_lot::{Mutex, MutexGuard};

use crate::entry::Entry;
use crate::expiry::Rounds;
use crate::lease::Leases;
use crate::policy::{Capacity, MokaPolicy};
use crate::stats::{Cause, Counters, MokaStats};

const STRIPES: usize = 64;

/// Values in mini-moka, which may drop any of them; leases beside it, which it may not.
///
/// Reading takes no lock of ours. Every change goes through [`Store::lock`].
#[derive(Debug)]
pub(crate) struct Store {
    values: Cache<Arc<str>, Arc<Entry>>,
    stripes: Box<[Mutex<Stripe>]>,
    hasher: RandomState,
    idle: Option<Duration>,
    clock: Clock,
    counters: Arc<Counters>,
    /// Whose turn it is to be looked at for expired entries.
    turn: AtomicUsize,
}

/// What is known of the keys that share a lock.
#[derive(Debug, Default)]
struct Stripe {
    leases: Leases,
    rounds: Rounds,
}

impl Store {
    pub(crate) fn new(policy: &MokaPolicy, clock: Clock) -> Self {
        let values = match policy.capacity {
            Capacity::Entries(entries) => Cache::builder().max_capacity(entries),
            Capacity::Bytes(bytes) => {
                let weigh = |key: &Arc<str>, entry: &Arc<Entry>| {
                    u32::try_from(key.len() + entry.value.len()).unwrap_or(u32::MAX)
                };
                Cache::builder().weigher(weigh).max_capacity(bytes)
            }
        };
        Self {
            values: values.build(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            idle: policy.time_to_idle,
            clock,
            counters: Arc::default(),
            turn: AtomicUsize::new(0),
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// mini-moka's pending work is applied first, so that the size is exact and the dropped are counted.
    pub(crate) fn stats(&self) -> MokaStats {
        self.values.sync();
        self.counters.snapshot(self.values.entry_count())
    }

    /// About how many entries there are; some changes may be pending.
    pub(crate) fn len(&self) -> u64 {
        self.values.entry_count()
    }

    /// The living value; an expired one is dropped when it is met.
    pub(crate) fn read(&self, key: &str) -> Option<Bytes> {
        let entry = self.values.get::<Arc<str>>(&key.into())?;
        let now = self.clock.now();
        if entry.alive(now) {
            self.touch(&entry, now);
            return Some(entry.value.clone());
        }
        self.lock(key).remove_expired();
        None
    }

    /// The key's state, for as long as nobody else may change it.
    pub(crate) fn lock<'a>(&'a self, key: &'a str) -> Locked<'a> {
        let stripe = self.stripe(key).lock();
        // After the lock: who had to wait for it must not act on an older time.
        Locked { store: self, key, now: self.clock.now(), stripe }
    }

    /// Removes what starts with `prefix` and says how many living entries there were.
    pub(crate) fn remove_prefix(&self, prefix: &str) -> u64 {
        // The leases first. A fill by a lease either comes before this and is found below, or is refused. A
        // refresh needs no lease, but it stores in place: whenever the walk passes, something is there.
        for stripe in &self.stripes {
            stripe.lock().leases.end_prefix(prefix);
        }
        let keys = self.keys_where(|entry| entry.key.starts_with(prefix));
        let removed = keys.iter().filter(|key| self.lock(key).remove(Cause::Invalidated)).count() as u64;
        // Else the removed stay in mini-moka's log, and in memory, until somebody uses the cache.
        self.values.sync();
        removed
    }

    /// Drops all that has ended by now.
    pub(crate) fn sweep(&self) {
        let now = self.clock.now();
        for stripe in &self.stripes {
            stripe.lock().leases.sweep(now);
        }
        for key in self.keys_where(|entry| !entry.alive(now)) {
            self.lock(&key).remove_expired();
        }
        self.values.sync();
    }

    /// Drops what has ended among the next few entries of the next stripe; a fixed cost.
    fn tend(&self) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % STRIPES;
        // Whoever holds it tends it.
        let Some(mut stripe) = self.stripes[turn].try_lock() else { return };
        self.look(&mut stripe, self.clock.now());
    }

    fn look(&self, stripe: &mut Stripe, now: Tick) {
        for entry in stripe.rounds.look(now).into_iter().flatten() {
            self.remove_if_expired(&entry, now);
        }
    }

    /// Drops an entry that has ended, if it is still what its key holds. For those who hold the key's lock.
    fn remove_if_expired(&self, entry: &Arc<Entry>, now: Tick) {
        let current = self.values.get(&entry.key);
        if !entry.alive(now) && current.is_some_and(|current| Arc::ptr_eq(&current, entry)) {
            entry.mark(Cause::Expired);
            self.values.invalidate(&entry.key);
        }
    }

    /// Collected before anything is removed: the iterator holds a shard's lock.
    fn keys_where(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Arc<str>> {
        let entries = self.values.iter().filter(|entry| wanted(entry.value()));
        entries.map(|entry| Arc::clone(&entry.value().key)).collect()
    }

    fn stripe(&self, key: &str) -> &Mutex<Stripe> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }

    fn touch(&self, entry: &Entry, now: Tick) {
        if let Some(idle) = self.idle {
            entry.idle_until(now + idle);
        }
    }

    /// When an entry that is stored at `now` ends: by its life, and by being idle.
    fn ends(&self, now: Tick, life: Duration) -> (Tick, Tick) {
        (now + life, self.idle.map_or(Tick::NEVER, |idle| now + idle))
    }
}

/// One key, while nobody else may change it.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    store: &'a Store,
    key: &'a str,
    now: Tick,
    stripe: MutexGuard<'a, Stripe>,
}

impl Locked<'_> {
    /// The living value.
    pub(crate) fn value(&self) -> Option<Bytes> {
        self.entry().filter(|entry| entry.alive(self.now)).map(|entry| entry.value.clone())
    }

    /// The living value, for a reader.
    pub(crate) fn read(&self) -> Option<Bytes> {
        let entry = self.entry().filter(|entry| entry.alive(self.now))?;
        self.store.touch(&entry, self.now);
        Some(entry.value.clone())
    }

    /// Whether what the claim saw still stands.
    pub(crate) fn stands(&self, claim: &Claim) -> bool {
        match claim.kind() {
            ClaimKind::Lease(token) => self.holder() == Some(*token),
            ClaimKind::Stamp(stamp) => self.value().is_some_and(|value| stamp.matches(&value)),
        }
    }

    /// Grants a lease over nothing or over a value that does not count, which makes way; again to the token that
    /// holds it. Without room for one more lease nobody may fill, and the caller loads without storing.
    pub(crate) fn lease(&mut self, token: LeaseToken, lease_for: Duration) -> Lookup {
        let granted = match self.holder() {
            Some(holder) => holder == token,
            None => self.stripe.leases.grant(self.key, token, self.now, self.now + lease_for),
        };
        if !granted {
            return Lookup::Busy;
        }
        self.remove_value(Cause::Replaced);
        Lookup::Granted(Claim::lease(token))
    }

    /// Puts a lease in the place of whatever is there. Without room for it nothing is there afterwards.
    pub(crate) fn take(&mut self, token: LeaseToken, lease_for: Duration) {
        self.remove(Cause::Replaced);
        self.stripe.leases.grant(self.key, token, self.now, self.now + lease_for);
    }

    /// Gives a lease that stands another `lease_for` from now.
    pub(crate) fn renew(&mut self, lease_for: Duration) {
        let until = self.now + lease_for;
        self.stripe.leases.extend(self.key, until);
    }

    /// Ends any lease.
    pub(crate) fn end_lease(&mut self) {
        self.stripe.leases.end(self.key);
    }

    /// Ends any lease and removes the value; whether a living one was there.
    pub(crate) fn remove(&mut self, cause: Cause) -> bool {
        self.end_lease();
        self.remove_value(cause)
    }

    /// Ends any lease and stores a value, or nothing when it has no life.
    pub(crate) fn insert(mut self, value: Bytes, life: Option<Duration>) {
        self.end_lease();
        let Some(life) = life else {
            self.remove_value(Cause::Replaced);
            return;
        };
        if let Some(old) = self.entry() {
            self.mark(&old, Cause::Replaced);
        }
        let (key, ends) = (Arc::<str>::from(self.key), self.store.ends(self.now, life));
        let entry = Arc::new(Entry::new(Arc::clone(&key), value, ends, &self.store.counters));
        self.stripe.rounds.add(&entry);
        // In place of the old one: removing that first would show readers, and a walk over the keys, nothing.
        self.store.values.insert(key, entry);
        self.store.look(&mut self.stripe, self.now);
        drop(self.stripe);
        self.store.tend();
    }

    /// Drops the value if it has ended.
    pub(crate) fn remove_expired(&mut self) {
        if let Some(entry) = self.entry() {
            self.store.remove_if_expired(&entry, self.now);
        }
    }

    /// The token that holds the key.
    fn holder(&self) -> Option<LeaseToken> {
        self.stripe.leases.holder(self.key, self.now)
    }

    fn remove_value(&self, cause: Cause) -> bool {
        let Some(entry) = self.entry() else { return false };
        self.mark(&entry, cause);
        self.store.values.invalidate(&entry.key);
        entry.alive(self.now)
    }

    fn mark(&self, entry: &Entry, cause: Cause) {
        entry.mark(if entry.alive(self.now) { cause } else { Cause::Expired });
    }

    fn entry(&self) -> Option<Arc<Entry>> {
        self.store.values.get::<Arc<str>>(&self.key.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    /// A12: a lease that finds no room is not granted, and one that is taken does not stand; what it was to take the
    /// place of is gone all the same.
    #[test]
    fn a_lease_without_room_is_none() {
        let store = Store::new(&MokaPolicy::default(), Clock::default());
        let (token, other) = (LeaseToken::random(), LeaseToken::random());
        store.lock("k").lease(other, LIFE);
        store.lock("k").insert(Bytes::from_static(b"v"), Some(LIFE));
        let (mut stripe, now) = (store.stripe("k").lock(), store.clock.now());
        for n in 0_u32.. {
            if !stripe.leases.grant(&n.to_string(), other, now, now + LIFE) {
                break;
            }
        }
        drop(stripe);
        store.lock("k").take(token, LIFE);
        assert_eq!(store.read("k"), None);
        assert!(!store.lock("k").stands(&Claim::lease(token)));
        assert_eq!(store.lock("k").lease(token, LIFE), Lookup::Busy);
    }
}
