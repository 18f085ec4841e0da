//! The staleness checker: what several instances did and saw, on one clock, against what is promised.
//!
//! The origin counts a version per key. A run records each acknowledged invalidation (with the version that was
//! committed before it) and each read (with the version it returned). Then:
//!
//! - **P1** no read returns a version older than one acknowledged *on the same instance* before the read began;
//! - **P2** no read returns a version older than one acknowledged *anywhere* longer than the bound before it began;
//! - **P5** no read returns another tenant's or key's value;
//! - **future** no read returns a version that was not committed when it ended.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// Which entry: tenant and key.
pub type Entry = (u32, u32);

/// An invalidation that returned `Ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Where.
    pub instance: u32,
    /// Of what.
    pub entry: Entry,
    /// What was committed before it began.
    pub version: u64,
    /// When it returned, since the run began.
    pub at: Duration,
}

/// A read that returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Where.
    pub instance: u32,
    /// What was asked for.
    pub entry: Entry,
    /// What the value says it is.
    pub value_of: Entry,
    /// Its version.
    pub version: u64,
    /// When the read began, since the run began.
    pub began: Duration,
    /// What was committed when it ended.
    pub committed: u64,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// P1: an instance did not see its own write.
    OwnWrite(Read, Acknowledged),
    /// P2: a read was older than the bound allows.
    Stale(Read, Acknowledged),
    /// P5: a read returned something else than was asked for.
    Foreign(Read),
    /// A read returned what was not committed yet.
    Future(Read),
}

impl fmt::Display for Violation {
    /// The shortest history that shows it: the acknowledgement and the read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, read: &Read, ack: &Acknowledged| {
            writeln!(f, "{name}: entry {:?}", read.entry)?;
            writeln!(f, "  {:>12?} instance {} acknowledged version {}", ack.at, ack.instance, ack.version)?;
            write!(
                f,
                "  {:>12?} instance {} began a read of version {}",
                read.began, read.instance, read.version
            )
        };
        match self {
            Self::OwnWrite(read, ack) => line(f, "own write not seen (P1)", read, ack),
            Self::Stale(read, ack) => line(f, "stale beyond the bound (P2)", read, ack),
            Self::Foreign(read) => write!(f, "foreign value (P5): {read:?}"),
            Self::Future(read) => write!(f, "a version from the future: {read:?}"),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Reads that were checked.
    pub reads: usize,
    /// The longest time by which a read was behind an acknowledged invalidation.
    pub worst: Duration,
    /// Broken promises, in the order of the reads.
    pub violations: Vec<Violation>,
}

/// Checks a history against the bound. Sorts what it is given; `O(n log n)`.
#[must_use]
pub fn check(mut acknowledged: Vec<Acknowledged>, reads: &[Read], bound: Duration) -> Verdict {
    acknowledged.sort_by_key(|ack| ack.at);
    let mut everywhere: HashMap<Entry, Vec<Acknowledged>> = HashMap::new();
    let mut own: HashMap<(u32, Entry), Vec<Acknowledged>> = HashMap::new();
    for ack in acknowledged {
        push_newer(everywhere.entry(ack.entry).or_default(), ack);
        push_newer(own.entry((ack.instance, ack.entry)).or_default(), ack);
    }
    let mut verdict = Verdict { reads: reads.len(), ..Verdict::default() };
    for read in reads {
        if read.value_of != read.entry {
            verdict.violations.push(Violation::Foreign(*read));
            continue;
        }
        if read.version > read.committed {
            verdict.violations.push(Violation::Future(*read));
        }
        if let Some(ack) =
            own.get(&(read.instance, read.entry)).and_then(|acks| first_newer(acks, read.version))
            && ack.at <= read.began
        {
            verdict.violations.push(Violation::OwnWrite(*read, ack));
        }
        if let Some(ack) = everywhere.get(&read.entry).and_then(|acks| first_newer(acks, read.version)) {
            let behind = read.began.saturating_sub(ack.at);
            verdict.worst = verdict.worst.max(behind);
            if behind >= bound {
                verdict.violations.push(Violation::Stale(*read, ack));
            }
        }
    }
    verdict
}

/// Keeps only what is newer than everything before it: versions and times both rise.
fn push_newer(acks: &mut Vec<Acknowledged>, ack: Acknowledged) {
    if acks.last().is_none_or(|last| ack.version > last.version) {
        acks.push(ack);
    }
}

/// The first acknowledgement of something newer.
fn first_newer(acks: &[Acknowledged], version: u64) -> Option<Acknowledged> {
    acks.get(acks.partition_point(|ack| ack.version <= version)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(1);

    fn ack(instance: u32, version: u64, at: u64) -> Acknowledged {
        Acknowledged { instance, entry: (0, 0), version, at: Duration::from_millis(at) }
    }

    fn read(instance: u32, version: u64, began: u64) -> Read {
        let began = Duration::from_millis(began);
        Read { instance, entry: (0, 0), value_of: (0, 0), version, began, committed: 9 }
    }

    #[test]
    fn fresh_reads_are_fine() {
        let acks = vec![ack(0, 1, 10), ack(1, 2, 20)];
        let verdict = check(acks, &[read(0, 2, 30), read(1, 9, 30), read(0, 1, 15)], BOUND);
        assert_eq!((verdict.violations, verdict.worst, verdict.reads), (vec![], Duration::ZERO, 3));
    }

    #[test]
    fn an_own_write_must_be_seen_at_once() {
        let verdict = check(vec![ack(0, 2, 20)], &[read(0, 1, 20)], BOUND);
        assert!(matches!(verdict.violations[..], [Violation::OwnWrite(..)]), "{verdict:?}");
        assert!(check(vec![ack(0, 2, 20)], &[read(0, 1, 19)], BOUND).violations.is_empty());
    }

    #[test]
    fn another_instance_may_be_behind_by_less_than_the_bound() {
        let verdict = check(vec![ack(0, 2, 0), ack(0, 3, 900)], &[read(1, 1, 999)], BOUND);
        assert_eq!((verdict.violations.len(), verdict.worst), (0, Duration::from_millis(999)));
        let verdict = check(vec![ack(0, 2, 0), ack(0, 3, 900)], &[read(1, 1, 1_000)], BOUND);
        assert!(matches!(verdict.violations[..], [Violation::Stale(_, Acknowledged { version: 2, .. })]));
        assert!(verdict.violations[0].to_string().contains("P2"));
    }

    #[test]
    fn an_older_acknowledgement_that_came_later_is_none() {
        let verdict = check(vec![ack(0, 3, 10), ack(1, 2, 20)], &[read(2, 2, 5_000)], BOUND);
        assert!(matches!(verdict.violations[..], [Violation::Stale(_, Acknowledged { version: 3, .. })]));
        assert!(check(vec![ack(0, 3, 10), ack(1, 2, 20)], &[read(2, 3, 5_000)], BOUND).violations.is_empty());
    }

    #[test]
    fn foreign_and_future_values_are_found() {
        let foreign = Read { value_of: (1, 0), ..read(0, 1, 0) };
        let future = Read { committed: 0, ..read(0, 1, 0) };
        let verdict = check(vec![], &[foreign, future], BOUND);
        assert_eq!(verdict.violations, [Violation::Foreign(foreign), Violation::Future(future)]);
    }
}
