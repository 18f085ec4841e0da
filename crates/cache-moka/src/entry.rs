//! A stored value that knows its life, and why it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use cache_core::Tick;

use crate::stats::{Cause, Counters};

/// mini-moka tells nobody what it evicts, but it drops it: an entry counts its own end. Whoever removes one on
/// purpose [marks](Entry::mark) it first; what is dropped unmarked made way for others.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) expires: Tick,
    cause: AtomicU8,
    counters: Arc<Counters>,
}

impl Entry {
    pub(crate) fn new(value: Bytes, expires: Tick, counters: &Arc<Counters>) -> Self {
        Self { value, expires, cause: AtomicU8::new(Cause::Capacity as u8), counters: Arc::clone(counters) }
    }

    pub(crate) fn alive(&self, now: Tick) -> bool {
        now < self.expires
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
