//! Announcements that failed, until they are out.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::BackoffBuilder;
use cache_core::Invalidation;

use super::Shared;
use crate::keyspace::BATCH;

/// Keys that are remembered one by one; beyond, everything is announced instead.
const MAX_KEYS: usize = 10_000;
/// Announcements of groups that are remembered one by one.
const MAX_GROUPS: usize = 256;

/// What is still to be announced, each thing once.
#[derive(Debug, Default)]
pub(super) struct Pending {
    keys: BTreeSet<Arc<str>>,
    groups: Vec<Invalidation>,
    /// Too much to remember one by one.
    everything: bool,
}

impl Pending {
    /// Remembers an announcement; `true` when nothing was pending before.
    pub(super) fn add(&mut self, message: Invalidation) -> bool {
        let first = self.len() == 0;
        match message {
            Invalidation::Keys(keys) => self.keys.extend(keys),
            message if self.groups.contains(&message) => {}
            message => self.groups.push(message),
        }
        // The keys stay: they are still to be removed from Redis. `All` only tells the others.
        if self.groups.len() > MAX_GROUPS {
            self.groups.clear();
            self.everything = true;
        }
        while self.keys.len() > MAX_KEYS {
            self.keys.pop_first();
            self.everything = true;
        }
        first
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len() + self.groups.len() + usize::from(self.everything)
    }

    /// The next thing to announce. It stays until [`done`](Self::done).
    fn next(&self) -> Option<Invalidation> {
        if self.everything {
            return Some(Invalidation::All);
        }
        if self.keys.is_empty() {
            return self.groups.first().cloned();
        }
        Some(Invalidation::Keys(self.keys.iter().take(BATCH).cloned().collect()))
    }

    fn done(&mut self, message: &Invalidation) {
        match message {
            Invalidation::All if self.everything => self.everything = false,
            Invalidation::Keys(keys) => keys.iter().for_each(|key| {
                self.keys.remove(key);
            }),
            message => self.groups.retain(|other| other != message),
        }
    }
}

/// Repeats what is pending until nothing is, then ends. Ends too when the bus is gone.
pub(super) async fn repeat(bus: Weak<Shared>) {
    let pauses = || {
        backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut pause = pauses();
    loop {
        tokio::time::sleep(pause.next().unwrap_or(Duration::from_secs(5))).await;
        loop {
            let Some(bus) = bus.upgrade() else { return };
            let Some(message) = bus.pending.lock().next() else { return };
            if bus.send(&message).await.is_err() {
                break;
            }
            // Once more: between the failure and now somebody may have read the old far value.
            bus.sinks.apply(&message);
            bus.pending.lock().done(&message);
            pause = pauses();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SD5: the same key thirty times is one announcement.
    #[test]
    fn each_thing_is_remembered_once() {
        let mut pending = Pending::default();
        assert!(pending.add(Invalidation::key("k")));
        for _ in 0..30 {
            assert!(!pending.add(Invalidation::key("k")));
            pending.add(Invalidation::Prefix("p".into()));
        }
        assert_eq!(pending.len(), 2);
        while let Some(message) = pending.next() {
            pending.done(&message);
        }
        assert_eq!(pending.len(), 0);
    }

    /// P6: what overflows becomes one announcement of everything, and memory stays bounded.
    #[test]
    fn overflow_becomes_everything() {
        let mut pending = Pending::default();
        for key in 0..MAX_KEYS + 10 {
            pending.add(Invalidation::key(key.to_string()));
        }
        assert_eq!(pending.len(), MAX_KEYS + 1);
        assert_eq!(pending.next(), Some(Invalidation::All));
        for group in 0..1_000 {
            pending.add(Invalidation::Prefix(group.to_string().into()));
        }
        assert!(pending.len() <= MAX_KEYS + MAX_GROUPS + 1);
    }
}
