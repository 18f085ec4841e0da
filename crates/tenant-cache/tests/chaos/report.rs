//! What an instance tells the run: a line of JSON each, on its output.

use cache_core::Clock;
use conformance::history::Entry;
use serde::{Deserialize, Serialize};

/// Begins every line that is for the run; the test harness writes to the same output.
pub(crate) const MARK: char = '@';

/// Tenants of a run.
pub(crate) const TENANTS: u32 = 3;
/// Keys of a tenant.
pub(crate) const KEYS: u32 = 8;

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
    /// Whether this instance trusts its memory, from now on.
    Trust(bool),
    /// The slowest read since the last line of this kind, in milliseconds, and how many began without trust.
    Slowest { millis: u64, untrusted: u64 },
    /// What was asked for by a [`Command`] is done.
    Done,
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
