//! Random operations on a backend and on the model.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, CacheService, Claim, Clock, LeaseToken, Lookup, Stamp, Ttl};
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
    GetOrLease(usize, LeaseToken, Duration),
    LeaseOver(usize, Bytes, LeaseToken, Duration),
    TakeLease(usize, LeaseToken, Duration),
    Fill(usize, Claim, Bytes, Ttl),
    Renew(usize, Claim, Duration),
    Release(usize, Claim),
    Pass(Duration),
}

/// An answer, as far as it is the same on every backend.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Values(Vec<Option<Bytes>>),
    Looked(Lookup),
    Claimed(Claim),
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
    let mut asked = Asked::default();
    let mut last: VecDeque<Op> = VecDeque::new();
    for step in 0..steps {
        let op = random(&mut rng, &mut asked, matches!(fixture.time, Time::Manual(_)));
        last.push_back(op.clone());
        if last.len() > 12 {
            last.pop_front();
        }
        if let Op::Pass(time) = op {
            fixture.time.pass(time).await;
            continue;
        }
        let expected = apply(&model, fixture, &op).await;
        let answer = apply(&*fixture.service, fixture, &op).await;
        assert_eq!(answer, expected, "seed {seed}, step {step}, after {}", Lines(&last));
    }
}

/// The leases that were asked for lately, each with its key; not all of them were granted.
#[derive(Debug, Default)]
struct Asked(VecDeque<(usize, LeaseToken)>);

impl Asked {
    /// A key and a token to ask for a lease with: new ones, or now and then a request that is repeated.
    fn request(&mut self, rng: &mut StdRng) -> (usize, LeaseToken) {
        if rng.random_range(0..4) == 0
            && let Some(again) = self.0.back()
        {
            return *again;
        }
        let request = (name(rng), LeaseToken::from_bytes(rng.random()));
        self.0.push_back(request);
        if self.0.len() > 20 {
            self.0.pop_front();
        }
        request
    }

    /// A key and a claim on it: by one of the last leases that were asked for, or by a value that may be there.
    fn claim(&self, rng: &mut StdRng) -> (usize, Claim) {
        match self.0.iter().rev().nth(rng.random_range(0..4)) {
            Some((name, token)) if rng.random_range(0..3) > 0 => (*name, Claim::lease(*token)),
            _ => (name(rng), Claim::replacing(Stamp::of(&value(rng)))),
        }
    }
}

fn name(rng: &mut StdRng) -> usize {
    rng.random_range(0..NAMES.len())
}

fn value(rng: &mut StdRng) -> Bytes {
    Bytes::from_static(VALUES[rng.random_range(0..VALUES.len())])
}

fn random(rng: &mut StdRng, asked: &mut Asked, time_passes: bool) -> Op {
    // Without a clock to set nothing may end by itself meanwhile.
    let times: &[u64] = if time_passes { &TIMES } else { &[0, 100_000] };
    let time = |rng: &mut StdRng| Duration::from_millis(times.choose(rng).copied().unwrap_or(0));
    let life = |rng: &mut StdRng| if rng.random() { Ttl::Default } else { Ttl::For(time(rng)) };
    let some = |rng: &mut StdRng| (0..rng.random_range(0..4)).map(|_| name(rng)).collect::<Vec<_>>();
    // A lease of no length is left out: Redis has none, and gives the shortest it can.
    let shortest = Duration::from_millis(if time_passes { 10 } else { 100_000 });
    let lease = |rng: &mut StdRng| time(rng).max(shortest);
    match rng.random_range(0..if time_passes { 21 } else { 19 }) {
        0 | 1 => Op::Get(name(rng)),
        2 => Op::GetMany(some(rng)),
        3 => Op::Set(name(rng), value(rng), life(rng)),
        4 => Op::SetMany(some(rng), value(rng), life(rng)),
        5 => Op::Invalidate(name(rng)),
        6 => Op::InvalidateMany(some(rng)),
        7 => Op::InvalidatePrefix(NAMES[name(rng)].to_owned()),
        at @ 8..=13 => {
            let (name, token) = asked.request(rng);
            match at {
                8..=10 => Op::GetOrLease(name, token, lease(rng)),
                11 | 12 => Op::LeaseOver(name, value(rng), token, lease(rng)),
                _ => Op::TakeLease(name, token, lease(rng)),
            }
        }
        at @ 14..=18 => {
            let (name, claim) = asked.claim(rng);
            match at {
                14..=16 => Op::Fill(name, claim, value(rng), life(rng)),
                17 => Op::Renew(name, claim, lease(rng)),
                _ => Op::Release(name, claim),
            }
        }
        _ => Op::Pass(time(rng).min(Duration::from_millis(50))),
    }
}

async fn apply(service: &dyn CacheService, fixture: &CacheFixture, op: &Op) -> Answer {
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
        Op::GetOrLease(name, token, time) => {
            service.get_or_lease(&key(name), *token, *time).await.map_or_else(failed, Answer::Looked)
        }
        Op::LeaseOver(name, seen, token, time) => {
            let found = service.lease_over(&key(name), &Stamp::of(seen), *token, *time).await;
            found.map_or_else(failed, Answer::Looked)
        }
        Op::TakeLease(name, token, time) => {
            service.take_lease(&key(name), *token, *time).await.map_or_else(failed, Answer::Claimed)
        }
        Op::Fill(name, claim, value, ttl) => flag(service.fill(&key(name), claim, value.clone(), *ttl).await),
        Op::Renew(name, claim, time) => flag(service.renew(&key(name), claim, *time).await),
        Op::Release(name, claim) => done(service.release(&key(name), claim).await),
        Op::Pass(_) => Answer::Done,
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
