//! Announcements that failed, until they are out.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::BackoffBuilder;
use cache_core::Invalidation;
use tokio::sync::Notify;

use super::Shared;
use super::announce::Announcement;
use crate::keyspace::BATCH;

/// Keys that are remembered one by one; beyond, everything is announced instead.
const MAX_KEYS: usize = 10_000;
/// Announcements of groups that are remembered one by one.
const MAX_GROUPS: usize = 256;

/// What is still to be announced, each thing once.
///
/// Each thing carries the number of the failure that it is due to. What failed again while it was being
/// repeated stays: the repetition may have come before the change that the second failure is about.
#[derive(Debug, Default)]
pub(super) struct Pending {
    failures: u64,
    keys: BTreeMap<Arc<str>, Due>,
    groups: Vec<(Announcement, u64)>,
    /// Too much to remember one by one.
    everything: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    failure: u64,
    remove: bool,
}

/// What [`Pending::add`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Added {
    /// Nothing was pending before.
    pub(super) first: bool,
    /// Some of it is now remembered as "everything" only.
    pub(super) overflowed: bool,
}

/// Something to repeat, and the last failure it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Repetition {
    announcement: Announcement,
    up_to: u64,
}

impl Pending {
    /// Remembers an announcement.
    pub(super) fn add(&mut self, announcement: Announcement) -> Added {
        let first = self.len() == 0;
        self.failures += 1;
        let failure = self.failures;
        match announcement {
            Announcement { message: Invalidation::Keys(keys), remove } => {
                for key in keys {
                    let due = self.keys.entry(key).or_insert(Due { failure, remove });
                    *due = Due { failure, remove: remove || due.remove };
                }
            }
            group => match self.groups.iter_mut().find(|(other, _)| *other == group) {
                Some((_, due)) => *due = failure,
                None => self.groups.push((group, failure)),
            },
        }
        Added { first, overflowed: self.shrink() }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len() + self.groups.len() + usize::from(self.everything.is_some())
    }

    /// Keeps within the bounds. A key or prefix that is let go of stays in Redis until its life ends; nobody's
    /// memory keeps it.
    fn shrink(&mut self) -> bool {
        let over = self.groups.len() > MAX_GROUPS || self.keys.len() > MAX_KEYS;
        if self.groups.len() > MAX_GROUPS {
            self.groups.clear();
        }
        while self.keys.len() > MAX_KEYS {
            self.keys.pop_first();
        }
        if over {
            self.everything = Some(self.failures);
        }
        over
    }

    /// The next thing to announce. It stays until it is [`done`](Self::done).
    fn next(&self) -> Option<Repetition> {
        let up_to = self.failures;
        let repetition = |announcement| Some(Repetition { announcement, up_to });
        if self.everything.is_some() {
            return repetition(Announcement::telling(Invalidation::All));
        }
        let Some(first) = self.keys.values().next() else {
            return repetition(self.groups.first()?.0.clone());
        };
        // Those that are to be removed and those that are not go in messages of their own.
        let alike = self.keys.iter().filter(|(_, due)| due.remove == first.remove);
        let keys = alike.take(BATCH).map(|(key, _)| Arc::clone(key)).collect();
        repetition(Announcement { message: Invalidation::Keys(keys), remove: first.remove })
    }

    fn done(&mut self, repetition: &Repetition) {
        let answered = |failure: u64| failure <= repetition.up_to;
        match &repetition.announcement.message {
            Invalidation::All if self.everything.is_some() => {
                self.everything = self.everything.filter(|failure| !answered(*failure));
            }
            Invalidation::Keys(keys) => {
                for key in keys {
                    if self.keys.get(key).is_some_and(|due| answered(due.failure)) {
                        self.keys.remove(key);
                    }
                }
            }
            _ => self
                .groups
                .retain(|(other, failure)| *other != repetition.announcement || !answered(*failure)),
        }
    }
}

/// Repeats what is pending until nothing is, then ends. Ends too when the bus is gone.
///
/// A beat that came back cuts a pause short: memory is not trusted until all is out, and a pause that grew long in an
/// outage must not make the outage longer.
pub(super) async fn repeat(bus: Weak<Shared>, reachable: Arc<Notify>) {
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
        let pausing = tokio::time::sleep(pause.next().unwrap_or(Duration::from_secs(5)));
        tokio::select! {
            () = pausing => {}
            () = reachable.notified() => {}
        }
        loop {
            let Some(bus) = bus.upgrade() else { return };
            let Some(repetition) = bus.pending.lock().next() else { return };
            if bus.send(&repetition.announcement).await.is_err() {
                break;
            }
            // Once more: between the failure and now somebody may have read the old far value.
            bus.sinks.apply(&repetition.announcement.message);
            bus.pending.lock().done(&repetition);
            pause = pauses();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> Announcement {
        Announcement::removing(Invalidation::key(key))
    }

    fn prefix(prefix: &str) -> Announcement {
        Announcement::removing(Invalidation::Prefix(prefix.into()))
    }

    fn repeat_all(pending: &mut Pending) -> Vec<Announcement> {
        let mut repeated = Vec::new();
        while let Some(repetition) = pending.next() {
            pending.done(&repetition);
            repeated.push(repetition.announcement);
        }
        repeated
    }

    /// SD5: the same key thirty times is one announcement.
    #[test]
    fn each_thing_is_remembered_once() {
        let mut pending = Pending::default();
        assert!(pending.add(key("k")).first);
        for _ in 0..30 {
            assert!(!pending.add(key("k")).first);
            pending.add(prefix("p"));
        }
        assert_eq!(pending.len(), 2);
        assert_eq!(repeat_all(&mut pending), [key("k"), prefix("p")]);
        assert_eq!(pending.len(), 0);
    }

    /// P6: what fails again while it is being repeated is repeated again.
    #[test]
    fn a_failure_during_the_repetition_is_not_lost() {
        let mut pending = Pending::default();
        for again in [key("k"), prefix("p")] {
            pending.add(again.clone());
            let on_its_way = pending.next().expect("pending");
            pending.add(again.clone());
            pending.done(&on_its_way);
            assert_eq!(pending.len(), 1, "the second failure is another one");
            assert_eq!(repeat_all(&mut pending), [again]);
        }
    }

    /// P6: a value that was stored and only not announced is not removed; one that was to be removed is, also
    /// when it was announced since.
    #[test]
    fn only_what_was_to_be_removed_is() {
        let mut pending = Pending::default();
        pending.add(Announcement::telling(Invalidation::key("stored")));
        pending.add(key("both"));
        pending.add(Announcement::telling(Invalidation::key("both")));
        let repeated = repeat_all(&mut pending);
        assert_eq!(repeated, [key("both"), Announcement::telling(Invalidation::key("stored"))]);
    }

    /// P6: what overflows becomes one announcement of everything, and memory stays bounded.
    #[test]
    fn overflow_becomes_everything() {
        let mut pending = Pending::default();
        for n in 0..MAX_KEYS {
            assert!(!pending.add(key(&n.to_string())).overflowed);
        }
        assert!(pending.add(key("one more")).overflowed);
        assert_eq!(pending.len(), MAX_KEYS + 1);
        for n in 0..1_000 {
            pending.add(prefix(&n.to_string()));
        }
        assert!(pending.len() <= MAX_KEYS + MAX_GROUPS + 1);
        let repeated = repeat_all(&mut pending);
        assert_eq!(repeated.first(), Some(&Announcement::telling(Invalidation::All)));
        assert_eq!(pending.len(), 0);
    }
}
