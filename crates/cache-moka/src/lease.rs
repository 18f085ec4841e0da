//! Leases: who may fill a key. Kept apart from the values, because a lease must not be evicted.

use std::collections::HashMap;

use cache_core::Tick;

/// Leases per stripe of keys; with 64 stripes a million callers on different cold keys still have room.
const MAX_LEASES: usize = 16_384;

/// The leases of one stripe of keys; all changes of a key are made under its stripe's lock.
#[derive(Debug, Default)]
pub(crate) struct Leases(HashMap<Box<str>, Lease>);

#[derive(Debug)]
struct Lease {
    token: [u8; 16],
    until: Tick,
}

impl Leases {
    /// Whether somebody holds the key now.
    pub(crate) fn held(&self, key: &str, now: Tick) -> bool {
        self.0.get(key).is_some_and(|lease| now < lease.until)
    }

    /// Whether this token holds the key now.
    pub(crate) fn holds(&self, key: &str, token: &[u8; 16], now: Tick) -> bool {
        self.0.get(key).is_some_and(|lease| now < lease.until && lease.token == *token)
    }

    /// A new lease; `None` when there is no room for one.
    pub(crate) fn grant(&mut self, key: &str, now: Tick, until: Tick) -> Option<[u8; 16]> {
        if self.0.len() >= MAX_LEASES {
            self.0.retain(|_, lease| now < lease.until);
            if self.0.len() >= MAX_LEASES {
                return None;
            }
        }
        let token = rand::random();
        self.0.insert(key.into(), Lease { token, until });
        Some(token)
    }

    /// Gives a lease that stands another end.
    pub(crate) fn extend(&mut self, key: &str, until: Tick) {
        if let Some(lease) = self.0.get_mut(key) {
            lease.until = until;
        }
    }

    pub(crate) fn end(&mut self, key: &str) {
        self.0.remove(key);
    }

    pub(crate) fn end_prefix(&mut self, prefix: &str) {
        self.0.retain(|key, _| !key.starts_with(prefix));
    }

    /// Drops the leases that have ended.
    pub(crate) fn sweep(&mut self, now: Tick) {
        self.0.retain(|_, lease| now < lease.until);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A full table refuses rather than forgets a lease that stands, and has room again when leases end.
    #[test]
    fn a_full_table_forgets_no_standing_lease() {
        let (mut leases, now) = (Leases::default(), Tick::ZERO);
        let until = now + Duration::from_secs(1);
        for key in 0..MAX_LEASES {
            assert!(leases.grant(&key.to_string(), now, until).is_some());
        }
        assert!(leases.grant("one more", now, until).is_none());
        assert!(leases.held("0", now));
        assert!(leases.grant("one more", until, until + Duration::from_secs(1)).is_some());
        assert_eq!(leases.len(), 1);
    }
}
