//! What the service has done.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the service was made, and its size now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MokaStats {
    /// Entries now; expired ones that were not met yet included.
    pub size: u64,
    /// Reads that found a value.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Entries that made way for others, or were not let in.
    pub evicted_capacity: u64,
    /// Entries found past their life.
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
    /// By [`Cause`].
    evicted: [AtomicU64; 4],
}

impl Counters {
    pub(crate) fn read(&self, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn evicted(&self, cause: u8) {
        if let Some(counter) = self.evicted.get(usize::from(cause)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self, size: u64) -> MokaStats {
        let evicted = |cause: Cause| self.evicted[cause as usize].load(Ordering::Relaxed);
        MokaStats {
            size,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evicted_capacity: evicted(Cause::Capacity),
            evicted_expired: evicted(Cause::Expired),
            evicted_replaced: evicted(Cause::Replaced),
            evicted_invalidated: evicted(Cause::Invalidated),
        }
    }
}
