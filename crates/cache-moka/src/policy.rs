//! How the service behaves: plain data with reasoned defaults.

use std::time::Duration;

use cache_core::CacheError;
use cache_core::cache::{DEFAULT_MAX_VALUE_BYTES, DEFAULT_TTL};

/// What bounds the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// So many entries, whatever their size.
    Entries(u64),
    /// So many bytes of keys and values; the bookkeeping (about 300 bytes per entry) comes on top. A value that
    /// is larger than all of it is accepted and not kept.
    Bytes(u64),
}

/// The options of a [`MokaCacheService`](crate::MokaCacheService).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MokaPolicy {
    /// What bounds the memory. Default 10 000 entries.
    pub capacity: Capacity,
    /// Life of an entry that is stored with [`Ttl::Default`](cache_core::Ttl::Default). Default 300 s. Zero stores
    /// only what says its own life.
    pub default_ttl: Duration,
    /// Life of an entry that nobody reads. Default: none but its own. A read does not prolong an entry's own life.
    pub time_to_idle: Option<Duration>,
    /// The largest value, in bytes. Default 8 MiB.
    pub max_value_bytes: usize,
}

impl Default for MokaPolicy {
    fn default() -> Self {
        Self {
            capacity: Capacity::Entries(10_000),
            default_ttl: DEFAULT_TTL,
            time_to_idle: None,
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
        }
    }
}

impl MokaPolicy {
    /// Longer ones are a mistake in the configuration: no process lives that long.
    const MAX_IDLE: Duration = Duration::from_secs(1_000 * 365 * 24 * 60 * 60);

    pub(crate) fn validate(&self) -> Result<(), CacheError> {
        let refuse = |reason: &'static str| Err(CacheError::configuration("in-process cache", reason));
        match self.capacity {
            Capacity::Entries(0) | Capacity::Bytes(0) => return refuse("`capacity` is zero"),
            _ => {}
        }
        if self.time_to_idle.is_some_and(|idle| idle.is_zero() || idle > Self::MAX_IDLE) {
            return refuse("`time_to_idle` is zero or over 1 000 years");
        }
        if self.max_value_bytes == 0 {
            return refuse("`max_value_bytes` is zero");
        }
        Ok(())
    }
}
