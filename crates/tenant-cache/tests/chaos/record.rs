//! What the instances told, and whether it keeps the promises. Decided as the run goes: what was decided is forgotten,
//! so that a long run needs no more memory than a short one.

use std::collections::HashMap;
use std::time::Duration;

use conformance::history::{Acknowledged, Entry, Read, Violation, check};

use crate::instance::TRUST_FOR;
use crate::origin::Origin;
use crate::report::{Counts, Line, Standing, now};

/// Nothing is told later than this after it happened: instances are frozen for two seconds at most.
const SETTLED: Duration = Duration::from_secs(10);
/// Acknowledgements older than this are forgotten, but for the newest of each entry and instance. A read that is behind
/// one of them is found all the same; only by how much could be told too low.
const KEPT: Duration = Duration::from_secs(60);
/// Violations that are shown.
const SHOWN: usize = 16;

type Seen = (u32, Entry, Entry, u64);

/// Everything that was told, by all instances.
pub(crate) struct Record {
    /// When the run began, on the machine's clock; times of the verdict are since then.
    start: u64,
    pub(crate) reads: u64,
    pub(crate) untrusted: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    /// The longest time by which a read was behind an acknowledged invalidation.
    pub(crate) worst: Duration,
    /// The first of the broken promises, and how many there are in all.
    pub(crate) violations: Vec<Violation>,
    pub(crate) violated: u64,
    /// The longest time that a read took, without what its process was frozen meanwhile.
    pub(crate) slowest: Duration,
    pub(crate) trusted: HashMap<u32, Standing>,
    /// Which instance was frozen from when to when.
    pub(crate) frozen: Vec<(u32, u64, u64)>,
    slow: Vec<(u32, u64, u64)>,
    counts: HashMap<u32, Counts>,
    acks: Vec<Acknowledged>,
    seen: HashMap<Seen, (u64, u64)>,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            start: now(),
            reads: 0,
            untrusted: 0,
            acknowledged: 0,
            refused: 0,
            worst: Duration::ZERO,
            violations: Vec::new(),
            violated: 0,
            slowest: Duration::ZERO,
            trusted: HashMap::new(),
            frozen: Vec::new(),
            slow: Vec::new(),
            counts: HashMap::new(),
            acks: Vec::new(),
            seen: HashMap::new(),
        }
    }

    pub(crate) fn hear(&mut self, instance: u32, line: Line) {
        match line {
            Line::Seen { entry, value_of, version, reads, last_began, first_ended } => {
                self.reads += reads;
                let key = (instance, entry, value_of, version);
                let times = self.seen.entry(key).or_insert((last_began, first_ended));
                *times = (times.0.max(last_began), times.1.min(first_ended));
            }
            Line::Acknowledged { committed, at } => {
                self.acknowledged += 1;
                let at = self.since_start(at);
                let acks = committed.into_iter().map(|(entry, version)| Acknowledged {
                    instance,
                    entry,
                    version,
                    at,
                });
                self.acks.extend(acks);
            }
            Line::Refused => self.refused += 1,
            Line::Trust(standing) => drop(self.trusted.insert(instance, standing)),
            Line::Slowest { began, ended, untrusted } => {
                self.untrusted += untrusted;
                self.slow.push((instance, began, ended));
            }
            Line::Counts(counts) => drop(self.counts.insert(instance, counts)),
            Line::Done => {}
        }
    }

    /// Decides over what is told in full by now, and forgets it.
    pub(crate) fn settle(&mut self, origin: &Origin) {
        self.decide(origin, now().saturating_sub(SETTLED.as_nanos() as u64));
    }

    /// Decides over everything; nothing more will be told.
    pub(crate) fn settle_all(&mut self, origin: &Origin) {
        self.decide(origin, u64::MAX);
    }

    /// What the instances' caches counted; those of an instance that was killed until shortly before.
    pub(crate) fn counts(&self) -> Counts {
        self.counts.values().fold(Counts::default(), Counts::plus)
    }

    fn decide(&mut self, origin: &Origin, until: u64) {
        let mut reads = Vec::new();
        for ((instance, entry, value_of, version), (began, ended)) in
            self.seen.extract_if(|_, (began, _)| *began <= until)
        {
            let committed = origin.committed(entry, ended);
            let began = Duration::from_nanos(began.saturating_sub(self.start));
            reads.push(Read { instance, entry, value_of, version, began, committed });
        }
        // The order of a map is none: the first violation shown is the first that happened.
        reads.sort_by_key(|read| read.began);
        let verdict = check(self.acks.clone(), &reads, TRUST_FOR);
        self.worst = self.worst.max(verdict.worst);
        self.violated += verdict.violations.len() as u64;
        self.violations.extend(verdict.violations);
        self.violations.truncate(SHOWN);
        for (instance, began, ended) in self.slow.extract_if(.., |(_, _, ended)| *ended <= until) {
            let frozen = self.frozen.iter().filter(|(frozen, ..)| *frozen == instance);
            let stood: u64 =
                frozen.map(|(_, from, to)| ended.min(*to).saturating_sub(began.max(*from))).sum();
            let took = ended.saturating_sub(began).saturating_sub(stood);
            self.slowest = self.slowest.max(Duration::from_nanos(took));
        }
        self.forget();
    }

    /// Forgets acknowledgements that no read will be compared with any more.
    fn forget(&mut self) {
        let horizon = self.since_start(now()).saturating_sub(KEPT);
        let mut newest: HashMap<(u32, Entry), u64> = HashMap::new();
        for ack in &self.acks {
            let newest = newest.entry((ack.instance, ack.entry)).or_default();
            *newest = (*newest).max(ack.version);
        }
        self.acks.retain(|ack| ack.at >= horizon || newest[&(ack.instance, ack.entry)] == ack.version);
    }

    fn since_start(&self, at: u64) -> Duration {
        Duration::from_nanos(at.saturating_sub(self.start))
    }
}
