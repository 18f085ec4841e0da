//! A hit in the far tier, and several keys at once, against the bare client.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use cache_core::CacheServiceExt;
use cache_redis::{RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use conformance::redis_server::RedisServer;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tenant_cache::{RequestScope, TenantCache};
use tokio::runtime::Runtime;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{ENTRIES, Row, keys, ours, request, runtime};

const READS: usize = 40_000;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let (server, runtime) = (RedisServer::start(), runtime(2));
    // Memory keeps nothing: each read goes to Redis.
    let (_caches, cache) = ours(&runtime, &server.url(), |domain| domain.near_ttl(Duration::ZERO))?;
    let keys = Arc::new(keys());
    let bare = runtime.block_on(async {
        let client = redis::Client::open(server.url())?;
        let mut bare = client.get_multiplexed_async_connection().await?;
        for key in keys.iter() {
            let _: () = bare.set(key, serde_json::to_vec(&Row::of(key))?).await?;
        }
        anyhow::Ok(bare)
    })?;
    runtime.block_on(request().scope(async {
        for chunk in keys.chunks(500) {
            cache.get_many(chunk).await.expect("they are loaded");
        }
    }));
    let settings = RedisSettings::from_url(&server.url())?;
    let service = Arc::new(runtime.block_on(async {
        let link = RedisLink::lazy(settings)?;
        anyhow::Ok(RedisCacheService::on(RedisBus::on(link), RedisCacheOptions::default()))
    })?);
    let before = cache.stats();
    for (name, callers) in [("far_hit_1", 1), ("far_hit_16", 16), ("far_hit_64", 64), ("far_hit_512", 512)] {
        let reads = if callers == 1 { READS / 8 } else { READS } / size.less;
        let mut row = Measured::new(name, "op/s");
        let mut our = || {
            let cache = cache.clone();
            concurrently(&runtime, callers, reads, &keys, move |key| {
                let cache = cache.clone();
                async move { drop(black_box(cache.get(&key).await.expect("a hit"))) }
            })
        };
        let mut their = || {
            let bare = bare.clone();
            concurrently(&runtime, callers, reads, &keys, move |key| {
                let mut bare = bare.clone();
                async move {
                    let bytes: Vec<u8> = bare.get(&key).await.expect("a hit");
                    black_box(Arc::new(serde_json::from_slice::<Row>(&bytes).expect("a row")));
                }
            })
        };
        let mut plain = || {
            let service = Arc::clone(&service);
            concurrently(&runtime, callers, reads, &keys, move |key| {
                let service = Arc::clone(&service);
                async move {
                    let row: Option<Row> = service.get(&key).await.expect("a hit");
                    black_box(Arc::new(row.expect("a row")));
                }
            })
        };
        let subjects: &mut [(&str, &mut dyn FnMut() -> f64)] = &mut [
            ("ours", &mut our),
            ("ours, the plain cache service", &mut plain),
            ("bare redis-rs multiplexed GET", &mut their),
        ];
        row.measure(size.rounds, subjects);
        if callers == 64 {
            let ratio = row.median("ours") / row.median("bare redis-rs multiplexed GET");
            report.at_least("far_hit_64: ours / bare", ratio, 0.85);
        }
        report.finish(row);
    }
    several(size, report, &runtime, &cache, &bare, &keys);
    let after = cache.stats();
    anyhow::ensure!(after.loads == before.loads, "every read was a hit in the far tier: {after:?}");
    Ok(())
}

fn several(
    size: Size,
    report: &mut Report,
    runtime: &Runtime,
    cache: &TenantCache<String, Row>,
    bare: &MultiplexedConnection,
    keys: &Arc<Vec<String>>,
) {
    let calls = READS / 16 / size.less;
    let mut row = Measured::new("far_get_many_16", "op/s");
    let chunks = || keys.chunks_exact(16).cycle().take(calls);
    let mut our = || {
        let began = Instant::now();
        runtime.block_on(request().scope(async {
            for chunk in chunks() {
                black_box(cache.get_many(chunk).await.expect("hits"));
            }
        }));
        calls as f64 / began.elapsed().as_secs_f64()
    };
    let mut their = || {
        let (began, mut bare) = (Instant::now(), bare.clone());
        runtime.block_on(async {
            for chunk in chunks() {
                let found: Vec<Vec<u8>> = bare.mget(chunk).await.expect("hits");
                let row = |bytes: Vec<u8>| Arc::new(serde_json::from_slice::<Row>(&bytes).expect("a row"));
                black_box(found.into_iter().map(row).collect::<Vec<_>>());
            }
        });
        calls as f64 / began.elapsed().as_secs_f64()
    };
    row.measure(size.rounds, &mut [("ours", &mut our), ("bare redis-rs MGET", &mut their)]);
    report.at_least(
        "far_get_many_16: ours / bare",
        row.median("ours") / row.median("bare redis-rs MGET"),
        0.8,
    );
    report.finish(row);
}

/// Operations a second of so many callers, each with keys of its own.
fn concurrently<F, Fut>(
    runtime: &Runtime,
    callers: usize,
    reads: usize,
    keys: &Arc<Vec<String>>,
    read: F,
) -> f64
where
    F: Fn(String) -> Fut + Send + Clone + 'static,
    Fut: Future<Output = ()> + Send,
{
    let began = Instant::now();
    runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for caller in 0..callers {
            let (read, keys) = (read.clone(), Arc::clone(keys));
            all.spawn(request().scope(async move {
                for at in 0..reads / callers {
                    read(keys[(caller * 7_919 + at * 31) % ENTRIES].clone()).await;
                }
            }));
        }
        all.join_all().await;
    });
    (reads / callers * callers) as f64 / began.elapsed().as_secs_f64()
}
