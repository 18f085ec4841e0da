//! What an instance tells the run: a line of JSON each, on its output.

use std::time::Duration;

use cache_core::Clock;
use conformance::history::Entry;
use serde::{Deserialize, Serialize};

/// Begins every line that is for the run; the test harness writes to the same output.
pub(crate) const MARK: char = '@';

/// Tenants of a run.
pub(crate) const TENANTS: u32 = 3;
/// Keys of a tenant.
pub(crate) const KEYS: u32 = 8;
/// A load takes this long after the origin was asked, at least.
pub(crate) const LOAD_TAKES: Duration = Duration::from_micros(500);

pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    (0..TENANTS).flat_map(|tenant| (0..KEYS).map(move |key| (tenant, key)))
}

/// Nanoseconds of the machine's monotonic clock: the same in every process.
pub(crate) fn now() -> u64 {
    Clock::system().now().as_nanos()
}

/// A cached row says what it is, so that a foreign one shows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) of: Entry,
    pub(crate) version: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// Reads of one version of an entry. Only the last to begin can be the stalest, only the first to end can be
    /// from the future: the others between them need not be told.
    Seen { entry: Entry, value_of: Entry, version: u64, reads: u64, last_began: u64, first_ended: u64 },
    /// An invalidation returned `Ok`: of what, and what was committed before it began.
    Acknowledged { committed: Vec<(Entry, u64)>, at: u64 },
    /// An invalidation returned an error.
    Refused,
    /// How the instance stands, from now on.
    Trust(Standing),
    /// The slowest read since the last line of this kind, and how many ended without trust.
    Slowest { began: u64, ended: u64, untrusted: u64 },
    /// What the instance's cache has counted so far.
    Counts(Counts),
    /// What was asked for by a [`Command`] is done.
    Done,
}

/// Whether an instance trusts its memory, and what may keep it from that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) trusted: bool,
    pub(crate) subscribed: bool,
    /// Invalidations that failed and are still to be repeated.
    pub(crate) pending: bool,
}

/// The parts of a cache's statistics that a run shows.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) near: u64,
    pub(crate) far: u64,
    pub(crate) loads: u64,
    pub(crate) uncached: u64,
    pub(crate) refused_fills: u64,
    pub(crate) far_failures: u64,
}

impl Counts {
    pub(crate) fn plus(self, other: &Self) -> Self {
        Self {
            near: self.near + other.near,
            far: self.far + other.far,
            loads: self.loads + other.loads,
            uncached: self.uncached + other.uncached,
            refused_fills: self.refused_fills + other.refused_fills,
            far_failures: self.far_failures + other.far_failures,
        }
    }
}

impl From<tenant_cache::Stats> for Counts {
    fn from(stats: tenant_cache::Stats) -> Self {
        Self {
            near: stats.near_hits,
            far: stats.far_hits,
            loads: stats.loads,
            uncached: stats.uncached_loads,
            refused_fills: stats.refused_fills,
            far_failures: stats.far_failures,
        }
    }
}

/// What the run asks of an instance: a word a line, on its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// End the random work.
    Rest,
    /// Invalidate every entry, until it was acknowledged.
    Repair,
    /// Read every entry, through memory and past it.
    ReadAll,
}

impl Command {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Repair => "repair",
            Self::ReadAll => "read-all",
        }
    }

    pub(crate) fn of(word: &str) -> Option<Self> {
        [Self::Rest, Self::Repair, Self::ReadAll].into_iter().find(|command| command.word() == word.trim())
    }
}
