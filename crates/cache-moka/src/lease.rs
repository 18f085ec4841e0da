//! Leases: who may fill a key. Kept apart from the values, because a lease must not be evicted.

use std::collections::HashMap;

use cache_core::{LeaseToken, Tick};

/// Leases per stripe of keys; with 64 stripes a million callers on different cold keys still have room.
const MAX_LEASES: usize = 16_384;

/// Below this many a stripe does not look for leases that ended by themselves.
const MIN_SWEEP: usize = 64;

/// The leases of one stripe of keys; all changes of a key are made under its stripe's lock.
#[derive(Debug)]
pub(crate) struct Leases {
    held: HashMap<Box<str>, Lease>,
    /// Ended leases are dropped when there are this many: twice what stood the last time, so that a grant costs
    /// the same on average and the table is at most twice (and 64) as large as it must be.
    sweep_at: usize,
}

#[derive(Debug)]
struct Lease {
    token: LeaseToken,
    until: Tick,
}

impl Default for Leases {
    fn default() -> Self {
        Self { held: HashMap::new(), sweep_at: MIN_SWEEP }
    }
}

impl Leases {
    /// The token that holds the key now.
    pub(crate) fn holder(&self, key: &str, now: Tick) -> Option<LeaseToken> {
        self.held.get(key).filter(|lease| now < lease.until).map(|lease| lease.token)
    }

    /// Adds a lease; `false` when there is no room for one.
    pub(crate) fn grant(&mut self, key: &str, token: LeaseToken, now: Tick, until: Tick) -> bool {
        if self.held.len() >= self.sweep_at {
            self.sweep(now);
        }
        let room = self.held.len() < MAX_LEASES;
        if room {
            self.held.insert(key.into(), Lease { token, until });
        }
        room
    }

    /// Gives a lease that stands another end.
    pub(crate) fn extend(&mut self, key: &str, until: Tick) {
        if let Some(lease) = self.held.get_mut(key) {
            lease.until = until;
        }
    }

    pub(crate) fn end(&mut self, key: &str) {
        self.held.remove(key);
    }

    pub(crate) fn end_prefix(&mut self, prefix: &str) {
        self.held.retain(|key, _| !key.starts_with(prefix));
    }

    /// Drops the leases that have ended, and the room they took.
    pub(crate) fn sweep(&mut self, now: Tick) {
        self.held.retain(|_, lease| now < lease.until);
        self.sweep_at = (self.held.len() * 2).clamp(MIN_SWEEP, MAX_LEASES);
        self.held.shrink_to(self.sweep_at);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LIFE: Duration = Duration::from_secs(1);

    /// A12: a full table refuses rather than forgets a lease that stands, and has room again when leases end.
    #[test]
    fn a_full_table_forgets_no_standing_lease() {
        let (mut leases, now) = (Leases::default(), Tick::ZERO);
        let until = now + LIFE;
        let tokens: Vec<_> = (0..MAX_LEASES).map(|_| LeaseToken::random()).collect();
        for (key, token) in tokens.iter().enumerate() {
            assert!(leases.grant(&key.to_string(), *token, now, until), "{key}");
        }
        assert!(!leases.grant("one more", LeaseToken::random(), now, until));
        for (key, token) in tokens.iter().enumerate() {
            assert_eq!(leases.holder(&key.to_string(), now), Some(*token), "{key}");
        }
        assert!(leases.grant("one more", LeaseToken::random(), until, until + LIFE));
        assert_eq!(leases.len(), 1);
    }

    /// F6's sense for leases: loads that never fill and never come back leave nothing behind for long.
    #[test]
    fn abandoned_leases_are_reclaimed_by_later_ones() {
        let (mut leases, mut now) = (Leases::default(), Tick::ZERO);
        for key in 0..100_000 {
            now = now + LIFE / 10;
            leases.grant(&key.to_string(), LeaseToken::random(), now, now + LIFE);
            assert!(leases.len() <= MIN_SWEEP, "{}", leases.len());
        }
    }
}
