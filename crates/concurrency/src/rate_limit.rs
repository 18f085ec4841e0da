//! Rate limits of this process: bounded, and forgotten when they are full again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use cache_core::{Algorithm, Clock, Decision, Quota, RateLimitError, key};
use metrics::{counter, histogram};
use parking_lot::Mutex;

use crate::gcra::{Window, fixed_window, token_bucket};

const SHARDS: usize = 64;

/// The counts. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct LocalRateLimits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    shards: Box<[Mutex<Counts>]>,
    hasher: RandomState,
    clock: Clock,
    max_per_shard: usize,
}

/// By quota and then by key, so that a look-up builds no key.
#[derive(Debug, Default)]
struct Counts {
    by_quota: HashMap<Box<str>, HashMap<Box<str>, Count>>,
    size: usize,
}

#[derive(Debug, Clone, Copy)]
enum Count {
    /// The theoretical arrival time, in microseconds.
    Bucket(u64),
    Window(Window),
}

impl Default for LocalRateLimits {
    fn default() -> Self {
        Self::new(Clock::system(), 100_000)
    }
}

impl LocalRateLimits {
    pub(crate) fn new(clock: Clock, max_keys: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let max_per_shard = max_keys.div_ceil(SHARDS).max(1);
        Self(Arc::new(Shared { shards, hasher: RandomState::new(), clock, max_per_shard }))
    }

    pub(crate) fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        quota.validate(cost)?;
        key::validate(key)?;
        let started = self.0.clock.now();
        let now = started.as_nanos() / 1_000;
        let mut counts = self.0.shards[self.0.hasher.hash_one(key) as usize % SHARDS].lock();
        let (decision, keep) = match (quota.algorithm, counts.get(&quota.name, key)) {
            (Algorithm::FixedWindow, count) => {
                let window = match count {
                    Some(Count::Window(window)) => Some(window),
                    _ => None,
                };
                let (decision, window) = fixed_window(quota, window, now, cost);
                (decision, window.map(Count::Window))
            }
            (_, count) => {
                let arrival = match count {
                    Some(Count::Bucket(arrival)) => arrival,
                    _ => 0,
                };
                let (decision, arrival) = token_bucket(quota, arrival, now, cost);
                (decision, arrival.map(Count::Bucket))
            }
        };
        if let Some(count) = keep {
            counts.put(&quota.name, key, count, now, self.0.max_per_shard);
        }
        drop(counts);
        record(quota, &decision, self.0.clock.now().since(started));
        Ok(decision)
    }

    pub(crate) fn kept(&self) -> usize {
        let now = self.0.clock.now().as_nanos() / 1_000;
        let kept = |shard: &Mutex<Counts>| {
            let mut counts = shard.lock();
            counts.drop_idle(now);
            counts.size
        };
        self.0.shards.iter().map(kept).sum()
    }
}

impl Counts {
    fn get(&self, quota: &str, key: &str) -> Option<Count> {
        self.by_quota.get(quota)?.get(key).copied()
    }

    fn put(&mut self, quota: &str, key: &str, count: Count, now: u64, max: usize) {
        if let Some(there) = self.by_quota.get_mut(quota).and_then(|keys| keys.get_mut(key)) {
            *there = count;
            return;
        }
        if self.size >= max {
            self.drop_idle(now);
        }
        if self.size >= max {
            self.drop_soonest();
        }
        self.by_quota.entry(quota.into()).or_default().insert(key.into(), count);
        self.size += 1;
    }

    /// A count that has ended says what no count says.
    fn drop_idle(&mut self, now: u64) {
        self.retain(|count| count.ends() > now);
    }

    /// The quarter that ends soonest makes way, so that the next ones need not look again.
    fn drop_soonest(&mut self) {
        let mut ends: Vec<u64> = self.by_quota.values().flat_map(HashMap::values).map(Count::ends).collect();
        let quarter = ends.len() / 4;
        let (_, border, _) = ends.select_nth_unstable(quarter);
        let border = *border;
        counter!("rate_limit_evictions_total").increment(1);
        self.retain(|count| count.ends() > border);
    }

    fn retain(&mut self, keep: impl Fn(&Count) -> bool) {
        self.by_quota.retain(|_, keys| {
            keys.retain(|_, count| keep(count));
            !keys.is_empty()
        });
        self.size = self.by_quota.values().map(HashMap::len).sum();
    }
}

impl Count {
    fn ends(&self) -> u64 {
        match self {
            Self::Bucket(arrival) => *arrival,
            Self::Window(window) => window.ends,
        }
    }
}

fn record(quota: &Quota, decision: &Decision, took: Duration) {
    histogram!("rate_limit_check_duration_seconds", "name" => quota.name.clone()).record(took.as_secs_f64());
    if !decision.allowed {
        counter!("rate_limit_rejections_total", "name" => quota.name.clone()).increment(1);
    }
}
