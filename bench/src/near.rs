//! A hit in memory, on one thread and on two.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use conformance::redis_server::RedisServer;
use tenant_cache::{RequestScope, TenantCache};
use tokio::runtime::Runtime;

use crate::Size;
use crate::peers::{Hitbox, Tiers};
use crate::report::{Report, Row as Measured};
use crate::setup::{ENTRIES, HOUR, Row, keys, ours, per_operation, request, runtime, zipf};

const OPERATIONS: usize = 1_000_000;

type Shared = Arc<Row>;

/// The caches that are compared, all holding the same.
struct Caches {
    background: Runtime,
    _own: tenant_cache::Caches,
    ours: TenantCache<String, Row>,
    moka: moka::future::Cache<String, Shared>,
    mini: mini_moka::sync::Cache<String, Shared>,
    quick: quick_cache::sync::Cache<String, Shared>,
    cachet: cachet::Cache<String, Shared>,
    tiers: Tiers,
    hitbox: Hitbox,
}

impl Caches {
    fn new(redis: &str, keys: &[String]) -> Result<Self> {
        let background = runtime(1);
        let (own, ours) = ours(&background, redis, |domain| domain)?;
        let room = 2 * ENTRIES as u64;
        let clock = background.block_on(async { tick::Clock::new_tokio() });
        let caches = Self {
            moka: moka::future::Cache::builder().max_capacity(room).time_to_live(HOUR).build(),
            mini: mini_moka::sync::Cache::builder().max_capacity(room).time_to_live(HOUR).build(),
            quick: quick_cache::sync::Cache::new(2 * ENTRIES),
            cachet: cachet::Cache::builder::<String, Shared>(clock)
                .memory_with(|memory| memory.max_capacity(room).time_to_live(HOUR))
                .stampede_protection()
                .build(),
            tiers: background.block_on(Tiers::new(redis))?,
            hitbox: Hitbox::new(),
            background,
            _own: own,
            ours,
        };
        caches.background.block_on(caches.fill(keys));
        Ok(caches)
    }

    async fn fill(&self, keys: &[String]) {
        request().scope(fill(&self.ours, keys)).await;
        for key in keys {
            self.moka.insert(key.clone(), Arc::new(Row::of(key))).await;
            self.mini.insert(key.clone(), Arc::new(Row::of(key)));
            self.quick.insert(key.clone(), Arc::new(Row::of(key)));
            self.cachet.get_or_insert(key, || async { Arc::new(Row::of(key)) }).await.expect("it is made");
            self.tiers.get(key).await;
            self.hitbox.get(key).await;
        }
    }

    fn our_hits(&self, keys: &[String]) {
        block(request().scope(async {
            for key in keys {
                black_box(self.ours.get(key).await.expect("a hit"));
            }
        }));
    }

    fn moka_hits(&self, keys: &[String]) {
        block(async {
            for key in keys {
                let load = async { Err::<Shared, std::io::Error>(std::io::Error::other("a miss")) };
                black_box(self.moka.try_get_with_by_ref(key, load).await.expect("a hit"));
            }
        });
    }

    fn cachet_hits(&self, keys: &[String]) {
        self.background.block_on(async {
            for key in keys {
                black_box(self.cachet.get_or_insert(key, || async { unreachable!() }).await.expect("a hit"));
            }
        });
    }

    /// Every tenth: it is an order of magnitude slower, and a tenth is enough to tell.
    fn tier_hits(&self, keys: &[String]) {
        self.background.block_on(async {
            for key in keys.iter().step_by(10) {
                black_box(self.tiers.get(key).await);
            }
        });
    }

    /// Every tenth, as above.
    fn hitbox_hits(&self, keys: &[String]) {
        self.background.block_on(async {
            for key in keys.iter().step_by(10) {
                black_box(self.hitbox.get(key).await);
            }
        });
    }

    fn mini_hits(&self, keys: &[String]) {
        keys.iter().for_each(|key| drop(black_box(self.mini.get(key))));
    }

    fn quick_hits(&self, keys: &[String]) {
        keys.iter().for_each(|key| drop(black_box(self.quick.get(key))));
    }
}

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let (server, keys) = (RedisServer::start(), keys());
    let sequence: Vec<String> =
        zipf(ENTRIES, 0.9, OPERATIONS / size.less).into_iter().map(|at| keys[at].clone()).collect();
    let caches = Caches::new(&server.url(), &keys)?;
    let one = |work: &dyn Fn(&[String])| {
        let began = Instant::now();
        work(&sequence);
        per_operation(sequence.len(), began)
    };
    let mut row = Measured::new("near_hit", "ns/op");
    row.measure(
        size.rounds,
        &mut [
            ("ours", &mut || one(&|keys| caches.our_hits(keys))),
            ("bare quick_cache get", &mut || one(&|keys| caches.quick_hits(keys))),
            ("moka::future try_get_with", &mut || one(&|keys| caches.moka_hits(keys))),
            ("cachet get_or_insert", &mut || one(&|keys| caches.cachet_hits(keys))),
            ("multi-tier-cache get_or_compute_typed", &mut || one(&|keys| caches.tier_hits(keys)) * 10.0),
            ("hitbox-fn cached", &mut || one(&|keys| caches.hitbox_hits(keys)) * 10.0),
            ("bare mini-moka get", &mut || one(&|keys| caches.mini_hits(keys))),
        ],
    );
    let ours = row.median("ours");
    report.at_most("near_hit: ours / moka::future", ours / row.median("moka::future try_get_with"), 0.5);
    report.at_most("near_hit: ours / bare quick_cache", ours / row.median("bare quick_cache get"), 3.0);
    report.finish(row);
    two_threads(size, report, &sequence, ours, &caches);
    Ok(())
}

/// Throughput of two threads that ask the same caches.
fn two_threads(size: Size, report: &mut Report, sequence: &[String], one: f64, caches: &Caches) {
    // Not in step: the second begins elsewhere.
    let turned: Vec<String> = [&sequence[sequence.len() / 2..], &sequence[..sequence.len() / 2]].concat();
    let both = |work: &(dyn Fn(&[String]) + Sync)| {
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| work(sequence));
            scope.spawn(|| work(&turned));
        });
        2e9 / per_operation(sequence.len(), began)
    };
    let mut row = Measured::new("near_hit_2_threads", "op/s");
    row.measure(
        size.rounds,
        &mut [
            ("ours", &mut || both(&|keys| caches.our_hits(keys))),
            ("bare quick_cache get", &mut || both(&|keys| caches.quick_hits(keys))),
            ("moka::future try_get_with", &mut || both(&|keys| caches.moka_hits(keys))),
        ],
    );
    report.at_least("near_hit_2_threads: ours / ours on one", row.median("ours") * one / 1e9, 1.7);
    report.finish(row);
}

async fn fill(cache: &TenantCache<String, Row>, keys: &[String]) {
    for key in keys {
        cache.get(key).await.expect("it is loaded");
    }
}

/// Polls on this thread; a hit needs no runtime.
fn block<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    runtime.block_on(work)
}
