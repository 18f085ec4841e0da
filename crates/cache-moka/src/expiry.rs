//! Finding expired entries nobody asks for, a little with every write.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use cache_core::Tick;

use crate::entry::Entry;

/// How many entries a look takes. More than the one a write adds, so that a round comes to an end; four bound the
/// queue at four thirds of the entries alive.
pub(crate) const LOOKS: usize = 4;

/// The entries of one stripe of keys in the order in which they are looked at.
///
/// Every write adds its entry and looks at those that were looked at longest ago: what left the cache is
/// forgotten, what expired is handed out, what lives goes to the back. So the cost per write is fixed. Each write
/// also looks at another stripe, in turn: keys that are written often find the expired ones of all the others.
///
/// Why not a queue ordered by expiry: it costs a logarithm per write and must be rebuilt when entries are
/// overwritten long before their end, which is the usual case. Why not a task: a service would need a runtime.
#[derive(Debug, Default)]
pub(crate) struct Rounds(VecDeque<Weak<Entry>>);

impl Rounds {
    pub(crate) fn add(&mut self, entry: &Arc<Entry>) {
        self.0.push_back(Arc::downgrade(entry));
    }

    /// What the next [`LOOKS`] entries hold that is expired.
    pub(crate) fn look(&mut self, now: Tick) -> [Option<Arc<Entry>>; LOOKS] {
        std::array::from_fn(|_| {
            let entry = self.0.pop_front()?.upgrade()?;
            if entry.alive(now) {
                self.add(&entry);
                return None;
            }
            Some(entry)
        })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;

    fn entry(expires: Tick) -> Arc<Entry> {
        Arc::new(Entry::new("k".into(), Bytes::new(), (expires, Tick::NEVER), &Arc::default()))
    }

    fn write(rounds: &mut Rounds, entry: &Arc<Entry>, now: Tick) -> usize {
        rounds.add(entry);
        rounds.look(now).iter().flatten().count()
    }

    /// B2: overwriting one key for ever keeps no trace of what was overwritten.
    #[test]
    fn overwritten_entries_are_forgotten() {
        let (mut rounds, now) = (Rounds::default(), Tick::ZERO);
        for _ in 0..1_000 {
            write(&mut rounds, &entry(Tick::NEVER), now);
        }
        assert!(rounds.len() <= LOOKS, "{}", rounds.len());
    }

    /// B2: as many writes as there are entries find every expired one, and nothing that lives.
    #[test]
    fn a_round_of_writes_finds_all_that_expired() {
        let (mut rounds, start) = (Rounds::default(), Tick::ZERO);
        let end = start + Duration::from_secs(1);
        let (short, long): (Vec<_>, Vec<_>) = (0..100).map(|_| (entry(end), entry(Tick::NEVER))).unzip();
        for entry in short.iter().chain(&long) {
            assert_eq!(write(&mut rounds, entry, start), 0);
        }
        let found: usize = (0..200).map(|_| write(&mut rounds, &entry(Tick::NEVER), end)).sum();
        assert_eq!(found, 100);
        assert!(long.iter().all(|entry| Arc::weak_count(entry) == 1), "the living are looked at again");
    }
}
