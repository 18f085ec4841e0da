//! Random operations on a backend and on the model.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, CacheService, Claim, Clock, Lookup, Stamp, Ttl};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::ModelCache;
use crate::cache::{CacheFixture, MAX_VALUE_BYTES, Time};

/// Names that are each other's prefixes, and that a pattern would match.
const NAMES: [&str; 7] = ["a", "ab", "abc", "a*", "b", "b:c", "é"];

/// Values that are each other's beginnings, that look like a lease, and of which only the first 33 bytes count.
const VALUES: [&[u8]; 7] = [
    b"",
    b"v",
    b"value",
    b"\0",
    b"\0sixteen bytes, x",
    b"\x01a longer value, of which the beginning is compared: 1",
    b"\x01a longer value, of which the beginning is compared: 2",
];

/// In milliseconds: lives, leases, and the steps in which time passes meet exactly now and then.
const TIMES: [u64; 5] = [0, 10, 20, 50, 100_000];

#[derive(Debug, Clone)]
enum Op {
    Get(usize),
    GetMany(Vec<usize>),
    Set(usize, Bytes, Ttl),
    SetMany(Vec<usize>, Bytes, Ttl),
    Invalidate(usize),
    InvalidateMany(Vec<usize>),
    InvalidatePrefix(String),
    GetOrLease(usize, Duration),
    LeaseOver(usize, Bytes, Duration),
    Fill(usize, Held, Bytes, Ttl),
    Renew(usize, Held, Duration),
    Release(usize, Held),
    Pass(Duration),
}

/// What is claimed: a lease granted earlier, counted from the latest, or a value that may have been seen.
#[derive(Debug, Clone)]
enum Held {
    Lease(usize),
    Seen(Bytes),
}

/// An answer, as far as it is the same on every backend.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Values(Vec<Option<Bytes>>),
    Looked(Option<Bytes>, &'static str),
    Flag(bool),
    Count(u64),
    Done,
    Failed(String),
}

/// Runs `steps` random operations of one caller on the fixture's service and on the model, and compares every
/// answer. With a clock that is set by hand time passes too; leases and lives end in the middle of things.
///
/// A failure names the seed and the last operations; set the seed in the call to run them again.
pub async fn agree(fixture: &CacheFixture, seed: u64, steps: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = match &fixture.time {
        Time::Manual(hand) => hand.clock(),
        Time::Real => Clock::system(),
    };
    let model = ModelCache::new(clock, MAX_VALUE_BYTES);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut last: VecDeque<Op> = VecDeque::new();
    for step in 0..steps {
        let op = random(&mut rng, matches!(fixture.time, Time::Manual(_)));
        last.push_back(op.clone());
        if last.len() > 12 {
            last.pop_front();
        }
        if let Op::Pass(time) = op {
            fixture.time.pass(time).await;
            continue;
        }
        let expected = apply(&model, fixture, &op, &mut theirs).await;
        let answer = apply(&*fixture.service, fixture, &op, &mut ours).await;
        assert_eq!(answer, expected, "seed {seed}, step {step}, after {}", Lines(&last));
        if ours.len() > 20 {
            ours.remove(0);
            theirs.remove(0);
        }
    }
}

fn random(rng: &mut StdRng, time_passes: bool) -> Op {
    let name = |rng: &mut StdRng| rng.random_range(0..NAMES.len());
    let value = |rng: &mut StdRng| Bytes::from_static(VALUES[rng.random_range(0..VALUES.len())]);
    // Without a clock to set nothing may end by itself meanwhile.
    let times: &[u64] = if time_passes { &TIMES } else { &[0, 100_000] };
    let time = |rng: &mut StdRng| Duration::from_millis(times.choose(rng).copied().unwrap_or(0));
    let life = |rng: &mut StdRng| if rng.random() { Ttl::Default } else { Ttl::For(time(rng)) };
    let some = |rng: &mut StdRng| (0..rng.random_range(0..4)).map(|_| name(rng)).collect::<Vec<_>>();
    let held = |rng: &mut StdRng| match rng.random_range(0..3) {
        0 => Held::Seen(value(rng)),
        _ => Held::Lease(rng.random_range(0..4)),
    };
    // A lease of no length is left out: Redis has none, and gives the shortest it can.
    let shortest = Duration::from_millis(if time_passes { 10 } else { 100_000 });
    let lease = |rng: &mut StdRng| time(rng).max(shortest);
    match rng.random_range(0..if time_passes { 20 } else { 18 }) {
        0 | 1 => Op::Get(name(rng)),
        2 => Op::GetMany(some(rng)),
        3 => Op::Set(name(rng), value(rng), life(rng)),
        4 => Op::SetMany(some(rng), value(rng), life(rng)),
        5 => Op::Invalidate(name(rng)),
        6 => Op::InvalidateMany(some(rng)),
        7 => Op::InvalidatePrefix(NAMES[name(rng)].to_owned()),
        8..=10 => Op::GetOrLease(name(rng), lease(rng)),
        11 | 12 => Op::LeaseOver(name(rng), value(rng), lease(rng)),
        13..=15 => Op::Fill(name(rng), held(rng), value(rng), life(rng)),
        16 => Op::Renew(name(rng), held(rng), lease(rng)),
        17 => Op::Release(name(rng), held(rng)),
        _ => Op::Pass(time(rng).min(Duration::from_millis(50))),
    }
}

/// Runs an operation and remembers the leases it was granted.
async fn apply(
    service: &dyn CacheService,
    fixture: &CacheFixture,
    op: &Op,
    claims: &mut Vec<(usize, Claim)>,
) -> Answer {
    let key = |name: &usize| fixture.key(NAMES[*name]);
    match op {
        Op::Get(name) => values(service.get_bytes(&key(name)).await.map(|value| vec![value])),
        Op::GetMany(names) => {
            let keys: Vec<String> = names.iter().map(key).collect();
            values(service.get_many_bytes(&texts(&keys)).await)
        }
        Op::Set(name, value, ttl) => done(service.set_bytes(&key(name), value.clone(), *ttl).await),
        Op::SetMany(names, value, ttl) => {
            let keys: Vec<String> = names.iter().map(key).collect();
            let entries: Vec<(&str, Bytes)> = keys.iter().map(|key| (key.as_str(), value.clone())).collect();
            done(service.set_many_bytes(&entries, *ttl).await)
        }
        Op::Invalidate(name) => done(service.invalidate(&key(name)).await),
        Op::InvalidateMany(names) => {
            let keys: Vec<String> = names.iter().map(key).collect();
            done(service.invalidate_many(&texts(&keys)).await)
        }
        Op::InvalidatePrefix(prefix) => {
            service.invalidate_prefix(&fixture.key(prefix)).await.map_or_else(failed, Answer::Count)
        }
        Op::GetOrLease(name, time) => looked(*name, service.get_or_lease(&key(name), *time).await, claims),
        Op::LeaseOver(name, seen, time) => {
            let found = service.lease_over(&key(name), &Stamp::of(seen), *time).await;
            looked(*name, found, claims)
        }
        Op::Fill(name, held, value, ttl) => {
            let (name, claim) = claimed(*name, held, claims);
            flag(service.fill(&key(&name), &claim, value.clone(), *ttl).await)
        }
        Op::Renew(name, held, time) => {
            let (name, claim) = claimed(*name, held, claims);
            flag(service.renew(&key(&name), &claim, *time).await)
        }
        Op::Release(name, held) => {
            let (name, claim) = claimed(*name, held, claims);
            done(service.release(&key(&name), &claim).await)
        }
        Op::Pass(_) => Answer::Done,
    }
}

/// A lease that was granted comes with its key; one that never was is a foreign one.
fn claimed(name: usize, held: &Held, claims: &[(usize, Claim)]) -> (usize, Claim) {
    match held {
        Held::Seen(value) => (name, Claim::replacing(Stamp::of(value))),
        Held::Lease(back) => {
            claims.iter().rev().nth(*back).cloned().unwrap_or_else(|| (name, Claim::lease([7; 16])))
        }
    }
}

fn looked(name: usize, found: Result<Lookup, CacheError>, claims: &mut Vec<(usize, Claim)>) -> Answer {
    match found {
        Ok(Lookup::Hit(value)) => Answer::Looked(Some(value), "hit"),
        Ok(Lookup::Busy) => Answer::Looked(None, "busy"),
        Ok(Lookup::Granted(claim)) => {
            claims.push((name, claim));
            Answer::Looked(None, "granted")
        }
        Err(error) => failed(error),
    }
}

fn texts(keys: &[String]) -> Vec<&str> {
    keys.iter().map(String::as_str).collect()
}

fn values(found: Result<Vec<Option<Bytes>>, CacheError>) -> Answer {
    found.map_or_else(failed, Answer::Values)
}

fn flag(answer: Result<bool, CacheError>) -> Answer {
    answer.map_or_else(failed, Answer::Flag)
}

fn done(answer: Result<(), CacheError>) -> Answer {
    answer.map_or_else(failed, |()| Answer::Done)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape `map_or_else` wants")]
fn failed(error: CacheError) -> Answer {
    Answer::Failed(error.to_string())
}

/// One operation per line.
struct Lines<'a>(&'a VecDeque<Op>);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|op| write!(f, "\n  {op:?}"))
    }
}
