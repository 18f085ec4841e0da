//! What is kept by quota and key: bounded, and forgotten when it has ended. A quota that changes its algorithm begins
//! anew.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};

use cache_core::{Algorithm, Quota};
use hashbrown::HashTable;
use metrics::counter;
use parking_lot::Mutex;

const SHARDS: usize = 64;

/// Below this many entries a shard is not swept.
const MIN_SWEEP: usize = 64;

/// Something that is worth nothing from a point in time on.
pub(super) trait Ends: Copy {
    /// That point, in microseconds.
    fn ends(&self) -> u64;
}

/// A table by quota and key. Looking something up builds no key.
#[derive(Debug)]
pub(super) struct Counts<V> {
    shards: Box<[Mutex<Shard<V>>]>,
    hasher: RandomState,
    max_per_shard: usize,
}

#[derive(Debug)]
struct Shard<V> {
    entries: HashTable<Entry<V>>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Entry<V> {
    hash: u64,
    algorithm: Algorithm,
    quota: Cow<'static, str>,
    key: Box<str>,
    value: V,
}

impl<V: Ends> Counts<V> {
    pub(super) fn new(max: usize) -> Self {
        let shard = || Mutex::new(Shard { entries: HashTable::new(), sweep_at: MIN_SWEEP });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            max_per_shard: max.div_ceil(SHARDS).max(1),
        }
    }

    /// What there is.
    pub(super) fn get(&self, quota: &Quota, key: &str) -> Option<V> {
        let hash = self.hash(quota, key);
        let shard = self.shard(hash).lock();
        shard.entries.find(hash, |entry| entry.is(quota, key)).map(|entry| entry.value)
    }

    /// Decides on what there is, and keeps what that gives, in one step.
    pub(super) fn update<T>(
        &self,
        quota: &Quota,
        key: &str,
        now: u64,
        decide: impl FnOnce(Option<V>) -> (T, Option<V>),
    ) -> T {
        let hash = self.hash(quota, key);
        let mut shard = self.shard(hash).lock();
        if let Some(entry) = shard.entries.find_mut(hash, |entry| entry.is(quota, key)) {
            let (answer, new) = decide(Some(entry.value));
            entry.value = new.unwrap_or(entry.value);
            return answer;
        }
        let (answer, new) = decide(None);
        if let Some(value) = new {
            shard.make_room(now, self.max_per_shard);
            let entry =
                Entry { hash, algorithm: quota.algorithm, quota: quota.name.clone(), key: key.into(), value };
            shard.entries.insert_unique(hash, entry, |entry| entry.hash);
        }
        answer
    }

    /// How many have not ended.
    pub(super) fn kept(&self, now: u64) -> usize {
        let kept = |shard: &Mutex<Shard<V>>| {
            let mut shard = shard.lock();
            shard.sweep(now);
            shard.entries.len()
        };
        self.shards.iter().map(kept).sum()
    }

    fn hash(&self, quota: &Quota, key: &str) -> u64 {
        self.hasher.hash_one((quota.algorithm, &*quota.name, key))
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard<V>> {
        // The table itself goes by the highest and the lowest bits.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

impl<V: Ends> Shard<V> {
    /// Sweeps each time the number of entries has doubled (a constant cost per entry), and when it is full.
    fn make_room(&mut self, now: u64, max: usize) {
        if self.entries.len() >= max.min(self.sweep_at) {
            self.sweep(now);
        }
        if self.entries.len() >= max {
            self.drop_soonest();
        }
    }

    fn sweep(&mut self, now: u64) {
        self.entries.retain(|entry| entry.value.ends() > now);
        self.sweep_at = (self.entries.len() * 2).max(MIN_SWEEP);
        self.entries.shrink_to(self.sweep_at, |entry| entry.hash);
    }

    /// The quarter that ends soonest makes way, so that the next ones need not look again.
    fn drop_soonest(&mut self) {
        let mut ends: Vec<u64> = self.entries.iter().map(|entry| entry.value.ends()).collect();
        let (mut leaving, most) = (0, ends.len() / 4 + 1);
        let (_, border, _) = ends.select_nth_unstable(most - 1);
        let border = *border;
        counter!("rate_limit_evictions_total").increment(1);
        self.entries.retain(|entry| {
            let leaves = entry.value.ends() <= border && leaving < most;
            leaving += usize::from(leaves);
            !leaves
        });
    }
}

impl<V> Entry<V> {
    fn is(&self, quota: &Quota, key: &str) -> bool {
        *self.key == *key && self.quota == quota.name && self.algorithm == quota.algorithm
    }
}
