//! What goes wrong with the far tier.

use std::sync::Arc;

use cache_core::{BackendErrorKind, CacheService, Ttl};
use conformance::faults::{Gate, Method};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::domains::{DOMAINS, ms};
use crate::entry::{Entry, KEYS, TENANTS, key_tag, late_tag};
use crate::world::{Phase, World};

/// Every key of the far tier: entries, the leases beside them, the numbers of groups.
pub(crate) fn texts() -> Vec<String> {
    let entries = Entry::all().into_iter().map(Entry::text);
    let mut texts: Vec<String> = entries.flat_map(|text| [format!("refresh:{text}"), text]).collect();
    texts.push("gen:all".to_owned());
    for spec in &DOMAINS {
        texts.push(format!("gen:d:{}", spec.name));
        texts.extend((0..TENANTS).map(|tenant| format!("gen:t:t{tenant}:{}", spec.name)));
    }
    for owner in [String::new()].into_iter().chain((0..TENANTS).map(|tenant| format!("t{tenant}"))) {
        texts.push(format!("gen:w:{owner}"));
        for key in 0..KEYS {
            texts.extend([key_tag(key), late_tag(key)].map(|tag| format!("gen:g:{owner}:{tag}")));
        }
    }
    texts.sort();
    texts.dedup();
    texts
}

/// Keeps one instance's way to the far tier in trouble, until it is aborted between two faults or nothing may go wrong.
pub(crate) async fn trouble(world: Arc<World>, instance: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let far = world.instance(instance).far;
    while world.phase() != Phase::Calm {
        tokio::time::sleep(ms(rng.random_range(1..20))).await;
        let gate = draw(&mut rng, world.phase());
        let methods: Vec<Method> = match rng.random_range(0..4) {
            0 => Method::ALL.to_vec(),
            1 => Method::READS.to_vec(),
            _ => Method::ALL.choose_multiple(&mut rng, 3).copied().collect(),
        };
        world.record.count(name(gate), 1);
        far.set_gates(&methods, gate);
        tokio::time::sleep(ms(rng.random_range(1..40))).await;
        far.set_gates(&methods, Gate::Open);
    }
}

fn draw(rng: &mut StdRng, phase: Phase) -> Gate {
    let kinds = [BackendErrorKind::Unavailable, BackendErrorKind::OutOfMemory, BackendErrorKind::Other];
    let kind = *kinds.choose(rng).expect("there are some");
    match rng.random_range(0..5) {
        0 if phase == Phase::Storm => Gate::Error(kind),
        1 if phase == Phase::Storm => Gate::LostAnswer(kind),
        2 => Gate::Hold,
        3 => Gate::HoldAnswer,
        _ => Gate::Slow(ms(rng.random_range(1..12))),
    }
}

fn name(gate: Gate) -> &'static str {
    match gate {
        Gate::Error(_) => "fault: errors",
        Gate::LostAnswer(_) => "fault: answers lost",
        Gate::Hold => "fault: requests held",
        Gate::HoldAnswer => "fault: answers held",
        _ => "fault: slow answers",
    }
}

/// Has the far tier lose things without a word: one, or all.
pub(crate) async fn losses(world: Arc<World>, seed: u64) {
    let (mut rng, texts) = (StdRng::seed_from_u64(seed), texts());
    while world.phase() != Phase::Calm {
        tokio::time::sleep(ms(rng.random_range(1..40))).await;
        let lost: Vec<&String> = match rng.random_range(0..50) {
            0 => {
                world.record.count("fault: far tier emptied", 1);
                texts.iter().collect()
            }
            _ => {
                world.record.count("fault: entry evicted", 1);
                texts.choose(&mut rng).into_iter().collect()
            }
        };
        for text in lost {
            // A life of zero: what was there is gone, and nobody is told.
            let gone = world.store.set_bytes(text, "".into(), Ttl::For(ms(0))).await;
            gone.expect("a store in memory does not fail");
        }
    }
}
