//! A hit in memory, on one thread and on two.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use conformance::redis_server::RedisServer;
use metrics_exporter_prometheus::PrometheusBuilder;
use tenant_cache::{RequestScope, TenantCache};

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{ENTRIES, HOUR, Row, keys, ours, per_operation, request, runtime, zipf};

const OPERATIONS: usize = 1_000_000;

type Shared = Arc<Row>;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    // As in production: whatever is counted is exported.
    let _ = metrics::set_global_recorder(PrometheusBuilder::new().build_recorder());
    let (server, background) = (RedisServer::start(), runtime(1));
    let keys = keys();
    let sequence: Vec<String> =
        zipf(ENTRIES, 0.9, OPERATIONS / size.less).into_iter().map(|at| keys[at].clone()).collect();
    let (_caches, cache) = ours(&background, &server.url(), |domain| domain)?;
    background.block_on(request().scope(fill(&cache, &keys)));
    let moka: moka::future::Cache<String, Shared> =
        moka::future::Cache::builder().max_capacity(2 * ENTRIES as u64).time_to_live(HOUR).build();
    let mini: mini_moka::sync::Cache<String, Shared> =
        mini_moka::sync::Cache::builder().max_capacity(2 * ENTRIES as u64).time_to_live(HOUR).build();
    let quick: quick_cache::sync::Cache<String, Shared> = quick_cache::sync::Cache::new(2 * ENTRIES);
    let cachet = cachet::Cache::builder::<String, Shared>(background.block_on(async { tick() }))
        .memory_with(|memory| memory.max_capacity(2 * ENTRIES as u64).time_to_live(HOUR))
        .stampede_protection()
        .build();
    let tiers = background.block_on(multi_tier(&server.url()))?;
    background.block_on(async {
        for key in &keys {
            moka.insert(key.clone(), Arc::new(Row::of(key))).await;
            mini.insert(key.clone(), Arc::new(Row::of(key)));
            quick.insert(key.clone(), Arc::new(Row::of(key)));
            cachet.get_or_insert(key, || async { Arc::new(Row::of(key)) }).await.expect("it is made");
            load_tiers(&tiers, key).await;
        }
    });
    let one = |work: &dyn Fn(&[String])| {
        let began = Instant::now();
        work(&sequence);
        per_operation(sequence.len(), began)
    };
    let our_hits = |keys: &[String]| {
        block(request().scope(async {
            for key in keys {
                black_box(cache.get(key).await.expect("a hit"));
            }
        }));
    };
    let moka_hits = |keys: &[String]| {
        block(async {
            for key in keys {
                let load = async { Err::<Shared, std::io::Error>(std::io::Error::other("a miss")) };
                black_box(moka.try_get_with_by_ref(key, load).await.expect("a hit"));
            }
        });
    };
    let cachet_hits = |keys: &[String]| {
        background.block_on(async {
            for key in keys {
                black_box(cachet.get_or_insert(key, || async { unreachable!() }).await.expect("a hit"));
            }
        });
    };
    let tier_hits = |keys: &[String]| {
        background.block_on(async {
            // Two orders of magnitude slower: a tenth is enough to tell.
            for key in keys.iter().step_by(10) {
                black_box(load_tiers(&tiers, key).await);
            }
        });
    };
    let mini_hits = |keys: &[String]| keys.iter().for_each(|key| drop(black_box(mini.get(key))));
    let quick_hits = |keys: &[String]| keys.iter().for_each(|key| drop(black_box(quick.get(key))));
    let mut row = Measured::new("near_hit", "ns/op");
    row.measure(
        size.rounds,
        &mut [
            ("ours", &mut || one(&our_hits)),
            ("bare quick_cache get", &mut || one(&quick_hits)),
            ("moka::future try_get_with", &mut || one(&moka_hits)),
            ("cachet get_or_insert", &mut || one(&cachet_hits)),
            ("multi-tier-cache get_or_compute_typed", &mut || one(&tier_hits) * 10.0),
            ("bare mini-moka get", &mut || one(&mini_hits)),
        ],
    );
    let ours = row.median("ours");
    report.at_most("near_hit: ours / moka::future", ours / row.median("moka::future try_get_with"), 0.5);
    report.at_most("near_hit: ours / bare quick_cache", ours / row.median("bare quick_cache get"), 3.0);
    report.finish(row);
    two_threads(size, report, &sequence, ours, &our_hits, &moka_hits, &quick_hits)
}

/// Throughput of two threads that ask the same caches.
fn two_threads(
    size: Size,
    report: &mut Report,
    sequence: &[String],
    one: f64,
    ours: &(dyn Fn(&[String]) + Sync),
    moka: &(dyn Fn(&[String]) + Sync),
    quick: &(dyn Fn(&[String]) + Sync),
) -> Result<()> {
    let both = |work: &(dyn Fn(&[String]) + Sync)| {
        // Not in step: the second begins elsewhere.
        let turned: Vec<String> = [&sequence[sequence.len() / 2..], &sequence[..sequence.len() / 2]].concat();
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
            ("ours", &mut || both(ours)),
            ("bare quick_cache get", &mut || both(quick)),
            ("moka::future try_get_with", &mut || both(moka)),
        ],
    );
    report.at_least("near_hit_2_threads: ours / ours on one", row.median("ours") * one / 1e9, 1.7);
    report.finish(row);
    Ok(())
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

fn tick() -> tick::Clock {
    tick::Clock::new_tokio()
}

async fn multi_tier(redis: &str) -> Result<multi_tier_cache::CacheManager> {
    use multi_tier_cache::{CacheManager, L1Cache, L2Cache, MokaCacheConfig};
    let l2 = L2Cache::with_url(redis).await?;
    let l1 =
        L1Cache::new(MokaCacheConfig { max_capacity: 2 * ENTRIES as u64, ..MokaCacheConfig::default() })?;
    Ok(CacheManager::new(Arc::new(l1), Arc::new(l2)).await?)
}

async fn load_tiers(tiers: &multi_tier_cache::CacheManager, key: &str) -> Row {
    let load = || async { Ok(Row::of(key)) };
    let strategy = multi_tier_cache::CacheStrategy::Custom(HOUR);
    tiers.get_or_compute_typed(key, strategy, load).await.expect("it is made")
}
