//! The truth: each version of each entry, which of them every instance must know of, and so what a read may return.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use crate::entry::{Entry, Row};

#[derive(Debug)]
pub(crate) struct Origin {
    rows: Mutex<HashMap<Entry, History>>,
    /// Held by whoever commits, and by an insert to its end: two inserts of one entry may land in either order, and then
    /// nobody could tell which value is right.
    turns: HashMap<Entry, Arc<Turn<()>>>,
}

#[derive(Debug)]
struct History {
    /// Whether the row is there, by version.
    present: Vec<bool>,
    /// The newest version whose change was acknowledged: no read that starts now returns an older one.
    acknowledged: usize,
}

/// What a read that begins now must not be older than.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    pub(crate) entry: Entry,
    pub(crate) version: usize,
}

impl Origin {
    pub(crate) fn new() -> Self {
        let entries = Entry::all();
        let history = |entry: &Entry| History { present: vec![entry.key % 3 != 2], acknowledged: 0 };
        let rows = entries.iter().map(|entry| (*entry, history(entry))).collect();
        let turns = entries.iter().map(|entry| (*entry, Arc::default())).collect();
        Self { rows: Mutex::new(rows), turns }
    }

    fn with<R>(&self, entry: Entry, act: impl FnOnce(&mut History) -> R) -> R {
        act(self.rows.lock().get_mut(&entry).expect("every entry has a history"))
    }

    /// Waits until nobody else writes an entry.
    pub(crate) async fn turn(&self, entry: Entry) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turns[&entry]).lock_owned().await
    }

    /// A new version.
    pub(crate) fn commit(&self, entry: Entry, present: bool) -> usize {
        self.with(entry, |row| {
            row.present.push(present);
            row.present.len() - 1
        })
    }

    /// The version that is there, and whether that is a row.
    pub(crate) fn load(&self, entry: Entry) -> (usize, bool) {
        self.with(entry, |row| (row.present.len() - 1, row.present[row.present.len() - 1]))
    }

    /// What was committed by now of some entries: what an invalidation that begins now will acknowledge.
    pub(crate) fn committed(&self, entries: &[Entry]) -> Vec<Floor> {
        entries.iter().map(|entry| Floor { entry: *entry, version: self.load(*entry).0 }).collect()
    }

    pub(crate) fn acknowledge(&self, floors: &[Floor]) {
        for Floor { entry, version } in floors {
            self.with(*entry, |row| row.acknowledged = row.acknowledged.max(*version));
        }
    }

    /// What a read that begins now may not be older than.
    pub(crate) fn floor(&self, entry: Entry) -> Floor {
        Floor { entry, version: self.with(entry, |row| row.acknowledged) }
    }

    /// Entries with changes that nobody has acknowledged.
    pub(crate) fn unacknowledged(&self) -> Vec<Entry> {
        let rows = self.rows.lock();
        let behind = rows.iter().filter(|(_, row)| row.acknowledged + 1 < row.present.len());
        behind.map(|(entry, _)| *entry).collect()
    }

    /// What is wrong with an answer that a read which began at `floor` gets now.
    pub(crate) fn wrong(&self, floor: Floor, answer: Option<&Row>) -> Option<String> {
        let Floor { entry, version: floor } = floor;
        self.with(entry, |row| {
            let newest = row.present.len() - 1;
            let Some(value) = answer else {
                let absent = row.present[floor..].iter().any(|present| !present);
                return (!absent).then(|| format!("absent, and it was there in {floor}..={newest}"));
            };
            if value.of != entry {
                return Some(format!("the value of {:?}", value.of));
            }
            if value.fallback {
                return None;
            }
            if !(floor..=newest).contains(&value.version) {
                return Some(format!("version {}, which is not in {floor}..={newest}", value.version));
            }
            (!row.present[value.version]).then(|| format!("version {}, which is no row", value.version))
        })
    }
}
