//! How soon another instance hears of an invalidation, and what invalidating everything costs.

use std::time::Instant;

use anyhow::Result;
use conformance::redis_server::RedisServer;
use tenant_cache::{RequestScope, TenantCache};
use tokio::runtime::Runtime;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{Row, ours, request, runtime};

const INVALIDATIONS: usize = 400;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let (server, runtime) = (RedisServer::start(), runtime(2));
    let (_here, here) = ours(&runtime, &server.url(), |domain| domain)?;
    let (_there, there) = ours(&runtime, &server.url(), |domain| domain)?;
    delay(size, report, &runtime, &here, &there);
    for (name, entries) in [("invalidate_all_1k", 1_000), ("invalidate_all_1m", 1_000_000 / size.less)] {
        all(size, report, &runtime, &server, name, entries)?;
    }
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
    let mut row = Measured::new("invalidation_delay", "us");
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
                times.push(began.elapsed().as_secs_f64() * 1e6);
            }
            times
        }));
        times.sort_by(f64::total_cmp);
        row.add("ours", times[times.len() / 2]);
        row.add("ours p99", times[times.len() * 99 / 100]);
    }
    report.at_most("invalidation_delay: p99 in ms", row.median("ours p99") / 1_000.0, 10.0);
    report.finish(row);
}

/// Invalidating a tenant's whole domain with so many entries in memory.
fn all(
    size: Size,
    report: &mut Report,
    runtime: &Runtime,
    server: &RedisServer,
    name: &'static str,
    entries: usize,
) -> Result<()> {
    let (caches, _) = ours(runtime, &server.url(), |domain| domain)?;
    let cache: TenantCache<u64, u64> = caches
        .domain(name)
        .scope(cache_core::Scope::Tenant)
        .local()
        .capacity(entries * 2)
        .load_local(|key: u64| async move { Ok::<_, std::io::Error>(Some(key)) })?;
    let mut row = Measured::new(name, "us");
    for _ in 0..size.rounds {
        let took = runtime.block_on(request().scope(async {
            for key in 0..entries as u64 {
                cache.get(&key).await.expect("it is loaded");
            }
            let began = Instant::now();
            cache.invalidate_all().await.expect("it is invalidated");
            began.elapsed()
        }));
        row.add("ours", took.as_secs_f64() * 1e6);
    }
    report.finish(row);
    Ok(())
}
