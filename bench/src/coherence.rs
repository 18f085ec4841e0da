//! How soon another instance hears of an invalidation, and what invalidating everything costs.

use std::time::Instant;

use anyhow::Result;
use conformance::redis_server::RedisServer;
use tenant_cache::{RequestScope, TenantCache};
use tokio::runtime::Runtime;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{ENTRIES, HOUR, Row, ours, quantile, request, runtime};

const INVALIDATIONS: usize = 400;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let (server, runtime) = (RedisServer::start(), runtime(2));
    let (_here, here) = ours(&runtime, &server.url(), |domain| domain)?;
    let (_there, there) = ours(&runtime, &server.url(), |domain| domain)?;
    delay(size, report, &runtime, &here, &there);
    let few = all(size, &runtime, &server, "invalidate_all_1k", 1_000)?;
    let many = all(size, &runtime, &server, "invalidate_all_1m", 1_000_000 / size.less)?;
    report.at_most(
        "invalidate_all: a million entries / a thousand",
        many.median("ours") / few.median("ours"),
        2.0,
    );
    report.finish(few);
    report.finish(many);
    Ok(())
}

/// From the call on one instance until the other's memory has forgotten the entry.
fn delay(
    size: Size,
    report: &mut Report,
    runtime: &Runtime,
    here: &TenantCache<String, Row>,
    there: &TenantCache<String, Row>,
) {
    let mut row = Measured::new("invalidation_delay", "ns/op");
    for _ in 0..size.rounds {
        let mut times: Vec<f64> = runtime.block_on(request().scope(async {
            let mut times = Vec::new();
            for n in 0..INVALIDATIONS / size.less {
                let key = format!("d{n}");
                there.get(&key).await.expect("it is loaded");
                let began = Instant::now();
                here.invalidate(&key).await.expect("it is invalidated");
                while there.peek(&key).expect("a tenant").is_some() {
                    tokio::task::yield_now().await;
                }
                times.push(began.elapsed().as_nanos() as f64);
            }
            times
        }));
        row.add("ours", quantile(&mut times, 0.5));
        row.add("ours p99", quantile(&mut times, 0.99));
    }
    report.at_most("invalidation_delay: p99 in ms", row.median("ours p99") / 1e6, 10.0);
    report.finish(row);
}

/// Invalidating a tenant's whole domain with so many entries in memory and in Redis. They are loaded once: what an
/// invalidation leaves behind does not count any more, but is still there.
fn all(
    size: Size,
    runtime: &Runtime,
    server: &RedisServer,
    name: &'static str,
    entries: usize,
) -> Result<Measured> {
    let (caches, _) = ours(runtime, &server.url(), |domain| domain)?;
    let domain = caches.domain(name).scope(cache_core::Scope::Tenant).ttl(HOUR).near_ttl(HOUR);
    let cache: TenantCache<u64, u64> = domain
        .capacity(entries + ENTRIES)
        .load(|key: u64| async move { Ok::<_, std::io::Error>(Some(key)) })?;
    let keys: Vec<u64> = (0..entries as u64).collect();
    let mut row = Measured::new(name, "ns/op");
    runtime.block_on(request().scope(async {
        for chunk in keys.chunks(500) {
            cache.get_many(chunk).await.expect("they are loaded");
        }
        for _ in 0..size.rounds.max(5) {
            let began = Instant::now();
            cache.invalidate_all().await.expect("it is invalidated");
            row.add("ours", began.elapsed().as_nanos() as f64);
        }
    }));
    Ok(row)
}
