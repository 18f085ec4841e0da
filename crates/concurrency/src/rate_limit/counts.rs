//! What is kept by quota and key: bounded, and forgotten when it has ended. A quota that changes its algorithm begins
//! anew.

use std::hash::BuildHasher;

use cache_core::{Algorithm, Quota};
use hashbrown::{DefaultHashBuilder, HashTable};
use metrics::counter;
use parking_lot::Mutex;

const SHARDS: usize = 64;

/// Below this many entries a shard is swept by time only.
const MIN_SWEEP: usize = 256;

/// After this long a shard is swept when something is added, however few there are; in microseconds.
const SWEEP_EVERY: u64 = 60_000_000;

/// Something that is worth nothing from a point in time on.
pub(super) trait Ends: Copy {
    /// That point, in microseconds.
    fn ends(&self) -> u64;
}

/// A table by quota and key. Looking something up builds no key.
///
/// Its hash is quick rather than proof against those who choose their keys: what they could slow down is one shard,
/// and that has a bound.
#[derive(Debug)]
pub(super) struct Counts<V> {
    shards: Box<[Mutex<Shard<V>>]>,
    hasher: DefaultHashBuilder,
    max_per_shard: usize,
}

#[derive(Debug)]
struct Shard<V> {
    entries: HashTable<Entry<V>>,
    sweep_at: usize,
    swept: u64,
}

#[derive(Debug)]
struct Entry<V> {
    hash: u64,
    /// The quota's algorithm and name and the key, in one place: small entries are found sooner.
    text: Box<str>,
    value: V,
}

impl<V: Ends> Counts<V> {
    pub(super) fn new(max: usize) -> Self {
        let shard = || Mutex::new(Shard { entries: HashTable::new(), sweep_at: MIN_SWEEP, swept: 0 });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: DefaultHashBuilder::default(),
            max_per_shard: max.div_ceil(SHARDS).max(1),
        }
    }

    /// What there is.
    pub(super) fn get(&self, quota: &Quota, key: &str) -> Option<V> {
        let hash = self.hash(quota, key);
        let shard = self.shard(hash).lock();
        shard.entries.find(hash, |entry| entry.is(quota, key)).map(|entry| entry.value)
    }

    /// Decides on what there is, and keeps what that leaves, in one step.
    pub(super) fn update<T>(
        &self,
        quota: &Quota,
        key: &str,
        now: u64,
        decide: impl FnOnce(&mut Option<V>) -> T,
    ) -> T {
        let hash = self.hash(quota, key);
        let mut shard = self.shard(hash).lock();
        if let Some(entry) = shard.entries.find_mut(hash, |entry| entry.is(quota, key)) {
            let mut value = Some(entry.value);
            let answer = decide(&mut value);
            entry.value = value.unwrap_or(entry.value);
            return answer;
        }
        let mut value = None;
        let answer = decide(&mut value);
        if let Some(value) = value {
            shard.make_room(now, self.max_per_shard);
            let entry = Entry { hash, text: text(quota, key), value };
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
        self.hasher.hash_one((mark(quota), &*quota.name, key))
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard<V>> {
        // The table itself goes by the highest and the lowest bits.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

impl<V: Ends> Shard<V> {
    /// Sweeps each time the number of entries has doubled (a constant cost per entry), when it is full, and after a
    /// while.
    fn make_room(&mut self, now: u64, max: usize) {
        if self.entries.len() >= max.min(self.sweep_at) || now.saturating_sub(self.swept) >= SWEEP_EVERY {
            self.sweep(now);
        }
        if self.entries.len() >= max {
            self.drop_soonest();
        }
    }

    fn sweep(&mut self, now: u64) {
        self.entries.retain(|entry| entry.value.ends() > now);
        self.sweep_at = (self.entries.len() * 2).max(MIN_SWEEP);
        self.swept = now;
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
        let text = self.text.as_bytes();
        let Some((head, tail)) = text.split_at_checked(quota.name.len() + 2) else { return false };
        tail == key.as_bytes() && head[0] == mark(quota) && head[1..head.len() - 1] == *quota.name.as_bytes()
    }
}

/// Neither names nor keys have control characters in them.
const BETWEEN: char = '\0';

fn mark(quota: &Quota) -> u8 {
    match quota.algorithm {
        Algorithm::FixedWindow => b'w',
        _ => b'b',
    }
}

fn text(quota: &Quota, key: &str) -> Box<str> {
    let mut text = String::with_capacity(quota.name.len() + key.len() + 2);
    text.push(mark(quota).into());
    text.push_str(&quota.name);
    text.push(BETWEEN);
    text.push_str(key);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Ends for u64 {
        fn ends(&self) -> u64 {
            *self
        }
    }

    fn held(counts: &Counts<u64>) -> usize {
        counts.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }

    /// G, F6: what has ended is dropped by those who come later, however few they are, and its memory with it.
    #[test]
    fn what_has_ended_is_dropped_by_those_who_come_later() {
        let (counts, quota) = (Counts::new(100_000), Quota::api());
        let add =
            |key: String, now: u64| counts.update(&quota, &key, now, |ends| *ends = Some(now + 1_000_000));
        (0..20_000).for_each(|n| add(n.to_string(), 0));
        assert_eq!(held(&counts), 20_000);
        (0..2_000).for_each(|n| add(format!("later {n}"), SWEEP_EVERY));
        assert_eq!(held(&counts), 2_000, "every shard was met by one of so many");
        let room: usize = counts.shards.iter().map(|shard| shard.lock().entries.capacity()).sum();
        assert!(room <= SHARDS * 2 * MIN_SWEEP, "{room}");
    }

    /// G3: quotas and keys are told apart, wherever the one ends and the other begins.
    #[test]
    fn quotas_and_keys_are_told_apart() {
        let counts = Counts::new(100_000);
        let quotas = [
            Quota::token_bucket("a", 1, Quota::MAX_PER),
            Quota::token_bucket("ab", 1, Quota::MAX_PER),
            Quota::fixed_window("a", 1, Quota::MAX_PER),
        ];
        let pairs = || quotas.iter().flat_map(|quota| ["c", "bc", "b", "a"].map(|key| (quota, key)));
        for (n, (quota, key)) in (1_u64..).zip(pairs()) {
            counts.update(quota, key, 0, |ends| assert_eq!(ends.replace(n), None, "{quota:?} {key}"));
        }
        for (n, (quota, key)) in (1_u64..).zip(pairs()) {
            assert_eq!(counts.get(quota, key), Some(n), "{quota:?} {key}");
        }
    }
}
