//! A random model: two instances in one process, many tenants, users, scopes, options and calls, each call also given up
//! at any point, with faults of the far tier and of the functions that a cache is given, and an origin that knows what
//! every read may return. `RANDOM_SECONDS` sets how long (default: four fixed seeds), `RANDOM_SEED` the first seed;
//! further ones follow it.
//!
//! A seed runs on one thread in a time of its own, which passes only when all tasks wait: it takes nearly the same course
//! each time. One seed in four (1, 5, 9 and so on) runs on two threads in real time.
//!
//! | part | |
//! |---|---|
//! | `entry` | what is cached: whose, where, which version |
//! | `origin` | the truth: each version of each entry, and what every read may return |
//! | `domains` | the caches, and their options |
//! | `loader` | the functions they are given |
//! | `call` | what callers do |
//! | `patience` | how long they wait |
//! | `check` | whether what they get is right |
//! | `faults` | what goes wrong |
//! | `record` | what happened, what is in flight, what was wrong |
//! | `run` | a run from its seed to its rest |
#![expect(clippy::panic, reason = "a test fails by panicking")]

mod call;
mod check;
mod domains;
mod entry;
mod faults;
mod loader;
mod origin;
mod patience;
mod record;
mod run;
mod world;

use std::time::{Duration, Instant};

use crate::run::{Tally, watched};

/// Seeds of the suite: one in real time, one with a store that is on no bus of its own.
const SEEDS: [u64; 4] = [1, 2, 4, 6];

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Whatever callers, loaders and the far tier do: no value of another entry, none older than an acknowledged
/// invalidation, no "there is no such thing" of what was there, no call beyond its limits, no panic, and at rest
/// nothing but what the origin holds, without a lease or a task.
#[test]
fn nothing_is_promised_that_does_not_hold() {
    loader::silence_planned_panics();
    let (first, limit) = (setting("RANDOM_SEED"), setting("RANDOM_SECONDS").map(Duration::from_secs));
    let seeds: Box<dyn Iterator<Item = u64>> = match (first, limit) {
        (None, None) => Box::new(SEEDS.into_iter()),
        (Some(seed), None) => Box::new(std::iter::once(seed)),
        (seed, Some(_)) => Box::new(seed.unwrap_or(1)..),
    };
    let (began, mut shown, mut tally) = (Instant::now(), Duration::ZERO, Tally::default());
    for seed in seeds {
        tally.add(&watched(seed));
        let elapsed = began.elapsed();
        if limit.is_some() && elapsed.saturating_sub(shown) > Duration::from_secs(10) {
            shown = elapsed;
            println!("{:>5} s  {tally}", elapsed.as_secs());
        }
        if limit.is_some_and(|limit| elapsed >= limit) {
            break;
        }
    }
    tally.counts.iter().for_each(|(what, count)| println!("{count:>9} × {what}"));
    println!("random: {tally}");
    assert!(tally.violations.is_empty(), "\n{}", tally.violations.join("\n\n"));
    assert!(tally.reads > 500 && tally.cancelled > 50, "there was something to check: {tally}");
}
