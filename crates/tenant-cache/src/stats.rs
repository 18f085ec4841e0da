//! What a cache has done: counted once, told twice (in [`Stats`] and as metrics).
//!
//! Metric handles are made with the cache, so that counting is an increment and no look-up: install the
//! recorder before building caches.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::CacheError;
use metrics::{counter, histogram};

use crate::answer::{Found, Source};
use crate::once_warning::Warnings;
use crate::single_flight::LookupResult;

/// What a cache has done since it was made, in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Lookups answered from memory.
    pub near_hits: u64,
    /// Lookups answered from the far tier.
    pub far_hits: u64,
    /// Lookups that had to load.
    pub misses: u64,
    /// Loads begun.
    pub loads: u64,
    /// Loads that ended in an error, a panic or a time-out.
    pub load_failures: u64,
    /// Lookups that joined a load which was already running.
    pub coalesced: u64,
    /// Loaded values that were not stored, because an invalidation came between.
    pub refused_fills: u64,
    /// Loads that were not stored, because the far tier was away, not to be trusted, or another instance's
    /// load took too long.
    pub uncached_loads: u64,
    /// Stored values that were not readable and were replaced.
    pub damaged: u64,
    /// Failures of the far tier, each answered from the loader.
    pub far_failures: u64,
    /// Loaded values that the far tier cannot hold: larger than it accepts, or without a serialised form. They are
    /// loaded again each time.
    pub unstorable: u64,
    /// Stored entries that belong to another number of groups: a version of the program is running whose definition
    /// gives the key more tags, or fewer. Each version replaces the entries of the other.
    pub incompatible_entries: u64,
    /// Keys, among the first that were looked up, whose text is not read back as the same key.
    pub lost_keys: u64,
    /// Lookups answered with a value past its fresh life.
    pub stale_served: u64,
    /// Refreshes begun in the background.
    pub refreshes: u64,
    /// Near entries evicted because the tier was full, or the tenant's share of it.
    pub evicted_capacity: u64,
    /// Near entries replaced after their life was over. What is never asked for again leaves by capacity.
    pub evicted_expired: u64,
    /// Near entries removed by an invalidation.
    pub evicted_invalidated: u64,
    /// Near entries replaced by a newer value.
    pub evicted_replaced: u64,
    /// Values in the near tier now, dead ones that were not met yet included.
    pub size: u64,
    /// Remembered "not found" in the near tier now.
    pub negative_size: u64,
}

impl Stats {
    /// Lookups answered without loading.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.near_hits + self.far_hits
    }
}

/// Why an entry left the near tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EvictionCause {
    Capacity,
    Expired,
    Invalidated,
    Replaced,
}

/// A number that is counted here and exported.
pub(crate) struct Count {
    here: AtomicU64,
    exported: metrics::Counter,
}

impl Count {
    fn new(exported: metrics::Counter) -> Self {
        Self { here: AtomicU64::new(0), exported }
    }

    #[inline]
    pub(crate) fn add(&self, by: u64) {
        self.here.fetch_add(by, Ordering::Relaxed);
        self.exported.increment(by);
    }

    #[inline]
    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.here.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

/// A [`Count`] for what happens on every hit: each thread counts on a cache line of its own, and what was counted is
/// exported in lots. Behind by less than 64 for each line while hits alone come in; exact whenever anything else is
/// counted.
pub(crate) struct HotCount {
    lines: [Line; LINES],
    told: AtomicU64,
    exported: metrics::Counter,
}

const LINES: usize = 8;
const LOT: u64 = 64;

/// As far from the next as two cache lines, since they are fetched in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

thread_local! {
    static LINE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % LINES
    };
}

impl HotCount {
    fn new(exported: metrics::Counter) -> Self {
        Self { lines: Default::default(), told: AtomicU64::new(0), exported }
    }

    #[inline]
    pub(crate) fn one(&self) {
        let line = &self.lines[LINE.with(|line| *line)];
        let before = line.0.fetch_add(1, Ordering::Relaxed);
        // The first ones at once, so that what is rare is told exactly.
        if before < LOT || before.is_multiple_of(LOT) {
            self.tell();
        }
    }

    /// Exports what was not yet.
    #[cold]
    pub(crate) fn tell(&self) {
        let counted = self.get();
        let before = self.told.fetch_max(counted, Ordering::Relaxed);
        self.exported.increment(counted.saturating_sub(before));
    }

    pub(crate) fn get(&self) -> u64 {
        self.lines.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

impl std::fmt::Debug for HotCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

/// The counters of one cache.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) near_hits: HotCount,
    pub(crate) far_hits: Count,
    pub(crate) misses: Count,
    pub(crate) loads: Count,
    pub(crate) load_failures: Count,
    pub(crate) coalesced: Count,
    pub(crate) refused_fills: Count,
    pub(crate) uncached_loads: Count,
    pub(crate) damaged: Count,
    pub(crate) far_failures: Count,
    unstorable: Count,
    incompatible: Count,
    lost_keys: Count,
    domain: Box<str>,
    warnings: Warnings,
    pub(crate) stale_served: Count,
    pub(crate) refreshes: Count,
    evicted: [Count; 4],
    /// How long lookups past memory took, by who answered.
    took: [metrics::Histogram; 3],
}

impl Counters {
    /// `by_tenant`: hits and misses are exported elsewhere, by tenant; see [`Meters`](crate::labels::Meters).
    pub(crate) fn new(domain: &str, by_tenant: bool) -> Self {
        let plain = |metric: &'static str| Count::new(counter!(metric, "name" => domain.to_owned()));
        let hits = |tier: &'static str| match by_tenant {
            true => metrics::Counter::noop(),
            false => counter!("cache_hits_total", "name" => domain.to_owned(), "tier" => tier),
        };
        let misses = match by_tenant {
            true => Count::new(metrics::Counter::noop()),
            false => plain("cache_misses_total"),
        };
        let evicted = |cause: &'static str| {
            Count::new(counter!("cache_evictions_total",
                "name" => domain.to_owned(), "tier" => "near", "cause" => cause))
        };
        let took = |outcome: &'static str| histogram!("cache_lookup_duration_seconds", "name" => domain.to_owned(), "outcome" => outcome);
        Self {
            near_hits: HotCount::new(hits("near")),
            far_hits: Count::new(hits("far")),
            misses,
            loads: plain("cache_loads_total"),
            load_failures: plain("cache_load_failures_total"),
            coalesced: plain("cache_coalesced_total"),
            refused_fills: plain("cache_refused_fills_total"),
            uncached_loads: plain("cache_uncached_loads_total"),
            damaged: plain("cache_damaged_entries_total"),
            far_failures: plain("cache_far_failures_total"),
            unstorable: plain("cache_unstorable_total"),
            incompatible: plain("cache_incompatible_entries_total"),
            lost_keys: plain("cache_lost_keys_total"),
            domain: domain.into(),
            warnings: Warnings::default(),
            stale_served: plain("cache_stale_served_total"),
            refreshes: plain("cache_refreshes_total"),
            evicted: [evicted("capacity"), evicted("expired"), evicted("invalidated"), evicted("replaced")],
            took: [took("hit"), took("miss"), took("error")],
        }
    }

    /// Records a lookup that went past memory. Hits in memory are not timed: reading a clock twice would cost as
    /// much as the hit.
    pub(crate) fn took<V>(&self, landing: &LookupResult<V>, time: Duration) {
        let outcome = match landing {
            Ok(Found { source: Source::Near | Source::Far, .. }) => 0,
            Ok(_) => 1,
            Err(_) => 2,
        };
        self.took[outcome].record(time);
        self.near_hits.tell();
    }

    /// A loaded value was not stored, because of this.
    pub(crate) fn not_stored(&self, error: &CacheError) {
        let (domain, warnings) = (&*self.domain, &self.warnings);
        let warning = match error {
            CacheError::ValueTooLarge { .. } => &warnings.too_large,
            CacheError::Serialization(_) => &warnings.not_encodable,
            _ => {
                self.far_failures.one();
                tracing::debug!(domain, %error, "a loaded value was not stored");
                return;
            }
        };
        self.unstorable.one();
        warning.give(|| {
            tracing::warn!(domain, %error, "a value cannot be stored and is loaded each time; told once, see `unstorable`");
        });
    }

    /// A stored entry belongs to another number of groups.
    pub(crate) fn incompatible_entry(&self) {
        self.incompatible.one();
        let domain = &*self.domain;
        self.warnings.incompatible.give(|| {
            tracing::warn!(
                domain,
                "a version with another number of `tags` uses the domain, and each replaces the other's entries; \
                 told once, see `incompatible_entries`"
            );
        });
    }

    /// The text of a key was not read back as the same key.
    pub(crate) fn lost_key(&self) {
        self.lost_keys.one();
        let domain = &*self.domain;
        self.warnings.lost_key.give(|| {
            tracing::warn!(
                domain,
                "the text of a key is not read back as the same key (`Display` and `FromStr`, or `CacheKey`): \
                 what others invalidate is looked for in all of memory; told once, see `lost_keys`"
            );
        });
    }

    pub(crate) fn evicted(&self, cause: EvictionCause) -> &Count {
        &self.evicted[cause as usize]
    }

    /// The counts, with the sizes that only the tier knows left at zero.
    pub(crate) fn snapshot(&self) -> Stats {
        self.near_hits.tell();
        Stats {
            near_hits: self.near_hits.get(),
            far_hits: self.far_hits.get(),
            misses: self.misses.get(),
            loads: self.loads.get(),
            load_failures: self.load_failures.get(),
            coalesced: self.coalesced.get(),
            refused_fills: self.refused_fills.get(),
            uncached_loads: self.uncached_loads.get(),
            damaged: self.damaged.get(),
            far_failures: self.far_failures.get(),
            unstorable: self.unstorable.get(),
            incompatible_entries: self.incompatible.get(),
            lost_keys: self.lost_keys.get(),
            stale_served: self.stale_served.get(),
            refreshes: self.refreshes.get(),
            evicted_capacity: self.evicted(EvictionCause::Capacity).get(),
            evicted_expired: self.evicted(EvictionCause::Expired).get(),
            evicted_invalidated: self.evicted(EvictionCause::Invalidated).get(),
            evicted_replaced: self.evicted(EvictionCause::Replaced).get(),
            size: 0,
            negative_size: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Default)]
    struct Exported(AtomicU64);

    impl metrics::CounterFn for Exported {
        fn increment(&self, by: u64) {
            self.0.fetch_add(by, Ordering::SeqCst);
        }

        fn absolute(&self, _: u64) {
            unreachable!("hits are only counted up");
        }
    }

    /// M1: whatever threads count at the same time, each hit is told once: a little later, and exactly when asked.
    #[test]
    fn every_hit_is_told_once() {
        let exported = Arc::new(Exported::default());
        let told = || exported.0.load(Ordering::SeqCst);
        let hits = HotCount::new(metrics::Counter::from_arc(Arc::clone(&exported)));
        (1..=10).for_each(|n| {
            hits.one();
            assert_eq!(told(), n, "rare hits are told at once");
        });
        std::thread::scope(|scope| {
            (0..4).for_each(|_| {
                scope.spawn(|| (0..100_000).for_each(|_| hits.one()));
            });
        });
        assert!(told() <= 400_010 && told() > 400_010 - 8 * LOT, "{}", told());
        hits.tell();
        assert_eq!((told(), hits.get()), (400_010, 400_010));
    }
}
