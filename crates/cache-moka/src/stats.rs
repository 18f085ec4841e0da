//! What the service has done.

use std::sync::atomic::{AtomicU64, Ordering};

use cache_core::Lookup;

/// Counts since the service was made, and its size now.
///
/// `get` and `get_many` count as hits and misses. `get_or_lease` and `lease_over` are counted apart, because a
/// read-through cache asks one after the other: its hit ratio is that of the plain reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MokaStats {
    /// Entries now; expired ones that were not met yet included.
    pub size: u64,
    /// Reads that found a value.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Look-ups with a view to a lease that found a value.
    pub lease_hits: u64,
    /// Look-ups with a view to a lease that were granted it, one that was asked for again included.
    pub leases_granted: u64,
    /// Look-ups with a view to a lease that another held.
    pub leases_busy: u64,
    /// Entries that made way for others, or were not let in.
    pub evicted_capacity: u64,
    /// Entries that were dropped past their life, idle ones too.
    pub evicted_expired: u64,
    /// Entries overwritten.
    pub evicted_replaced: u64,
    /// Entries removed by an invalidation.
    pub evicted_invalidated: u64,
}

/// Why an entry left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    Capacity = 0,
    Expired = 1,
    Replaced = 2,
    Invalidated = 3,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    lease_hits: AtomicU64,
    leases_granted: AtomicU64,
    leases_busy: AtomicU64,
    /// By [`Cause`].
    evicted: [AtomicU64; 4],
}

impl Counters {
    pub(crate) fn read(&self, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lookup(&self, found: &Lookup) {
        let counter = match found {
            Lookup::Hit(_) => &self.lease_hits,
            Lookup::Granted(_) => &self.leases_granted,
            Lookup::Busy => &self.leases_busy,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn evicted(&self, cause: u8) {
        if let Some(counter) = self.evicted.get(usize::from(cause)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self, size: u64) -> MokaStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let evicted = |cause: Cause| count(&self.evicted[cause as usize]);
        MokaStats {
            size,
            hits: count(&self.hits),
            misses: count(&self.misses),
            lease_hits: count(&self.lease_hits),
            leases_granted: count(&self.leases_granted),
            leases_busy: count(&self.leases_busy),
            evicted_capacity: evicted(Cause::Capacity),
            evicted_expired: evicted(Cause::Expired),
            evicted_replaced: evicted(Cause::Replaced),
            evicted_invalidated: evicted(Cause::Invalidated),
        }
    }
}
