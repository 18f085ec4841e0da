//! A stored value that knows its life, and why it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use cache_core::Tick;

use crate::stats::{Cause, Counters};

/// mini-moka tells nobody what it evicts, but it drops it: an entry counts its own end. Whoever removes one on
/// purpose [marks](Entry::mark) it first; what is dropped unmarked made way for others.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Arc<str>,
    pub(crate) value: Bytes,
    expires: Tick,
    /// When it ends because nobody read it; moved on by every read.
    idle_until: AtomicU64,
    cause: AtomicU8,
    counters: Arc<Counters>,
}

impl Entry {
    pub(crate) fn new(
        key: Arc<str>,
        value: Bytes,
        (expires, idle_until): (Tick, Tick),
        counters: &Arc<Counters>,
    ) -> Self {
        Self {
            key,
            value,
            expires,
            idle_until: AtomicU64::new(idle_until.as_nanos()),
            cause: AtomicU8::new(Cause::Capacity as u8),
            counters: Arc::clone(counters),
        }
    }

    pub(crate) fn alive(&self, now: Tick) -> bool {
        now < self.expires && now.as_nanos() < self.idle_until.load(Ordering::Relaxed)
    }

    /// Counts as a read: the entry may be idle until then. Readers may pass each other: the latest counts.
    pub(crate) fn idle_until(&self, until: Tick) {
        self.idle_until.fetch_max(until.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn mark(&self, cause: Cause) {
        self.cause.store(cause as u8, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.counters.evicted(*self.cause.get_mut());
    }
}
