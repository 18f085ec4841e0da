//! How often what is asked for is still in memory, at equal capacity; and what a noisy tenant does to the others.

use std::sync::Arc;

use anyhow::Result;
use cache_core::{RequestContext, Scope, TenantId};
use tenant_cache::{Caches, DomainBuilder, RequestScope, TenantCache};

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{runtime, zipf};

const CAPACITY: usize = 1_000;
const KEYS: usize = 20_000;
const READS: usize = 400_000;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let skewed = zipf(KEYS, 0.9, READS / size.less);
    // Every so often somebody reads a few thousand keys once.
    let mut scanned = Vec::with_capacity(skewed.len() * 2);
    for (n, key) in skewed.iter().enumerate() {
        scanned.push(*key);
        if n % 2_000 == 1_999 {
            scanned.extend((0..1_000).map(|at| KEYS + n + at));
        }
    }
    for (name, sequence) in [("hit_ratio_zipf", &skewed), ("hit_ratio_scan", &scanned)] {
        let mut row = Measured::new(name, "ratio").more_is_better();
        row.add("ours", our_ratio(sequence)?);
        row.add("moka::sync", moka_ratio(sequence));
        row.add("mini-moka", mini_ratio(sequence));
        report.finish(row);
    }
    Ok(())
}

fn our_ratio(sequence: &[usize]) -> Result<f64> {
    let cache = cache(&Caches::in_memory(), |domain| domain)?;
    runtime(1).block_on(tenant("acme").scope(async {
        for key in sequence {
            cache.get(key).await.expect("it is loaded");
        }
    }));
    let stats = cache.stats();
    Ok(stats.near_hits as f64 / (stats.near_hits + stats.misses) as f64)
}

fn moka_ratio(sequence: &[usize]) -> f64 {
    let cache: moka::sync::Cache<usize, Arc<usize>> = moka::sync::Cache::new(CAPACITY as u64);
    ratio(sequence, |key| {
        let hit = cache.get(&key).is_some();
        if !hit {
            cache.insert(key, Arc::new(key));
        }
        hit
    })
}

fn mini_ratio(sequence: &[usize]) -> f64 {
    let cache: mini_moka::sync::Cache<usize, Arc<usize>> = mini_moka::sync::Cache::new(CAPACITY as u64);
    ratio(sequence, |key| {
        let hit = cache.get(&key).is_some();
        if !hit {
            cache.insert(key, Arc::new(key));
        }
        hit
    })
}

fn ratio(sequence: &[usize], read: impl Fn(usize) -> bool) -> f64 {
    sequence.iter().filter(|key| read(**key)).count() as f64 / sequence.len() as f64
}

/// The hit ratio of ten quiet tenants while one reads a million keys.
pub fn noisy(size: Size, report: &mut Report) -> Result<()> {
    let mut row = Measured::new("noisy_tenant", "ratio").more_is_better();
    row.add("ours", quiet_ratio(size, 1_000_000, |domain| domain.tenant_share(0.25))?);
    row.add("ours without a share", quiet_ratio(size, 1_000_000, |domain| domain)?);
    row.add("ours without the noise", quiet_ratio(size, 0, |domain| domain.tenant_share(0.25))?);
    let (with, without) = (row.median("ours"), row.median("ours without the noise"));
    report.at_least("noisy_tenant: quiet tenants' hits with noise / without", with / without, 0.99);
    report.finish(row);
    Ok(())
}

fn quiet_ratio(
    size: Size,
    noise: usize,
    options: fn(DomainBuilder<usize, usize>) -> DomainBuilder<usize, usize>,
) -> Result<f64> {
    let cache = cache(&Caches::in_memory(), options)?;
    let sequence = zipf(60, 0.9, READS / 4 / size.less);
    let (runtime, noise_each) = (runtime(1), noise / size.less / sequence.len().max(1) + 1);
    let mut loud = 0;
    let (mut hits, mut reads) = (0, 0);
    runtime.block_on(async {
        for (n, key) in sequence.iter().enumerate() {
            let before = cache.stats().near_hits;
            let quiet = tenant(&format!("quiet-{}", n % 10));
            quiet.scope(async { cache.get(key).await.expect("it is loaded") }).await;
            hits += cache.stats().near_hits - before;
            reads += 1;
            if noise > 0 {
                tenant("noisy")
                    .scope(async {
                        for _ in 0..noise_each {
                            loud += 1;
                            // Twice, so that each looks worth keeping.
                            cache.get(&loud).await.expect("it is loaded");
                            cache.get(&loud).await.expect("it is loaded");
                        }
                    })
                    .await;
            }
        }
    });
    Ok(hits as f64 / f64::from(reads))
}

fn tenant(id: &str) -> RequestContext {
    RequestContext::new(TenantId::new(id).expect("an id"))
}

fn cache(
    caches: &Caches,
    options: impl FnOnce(DomainBuilder<usize, usize>) -> DomainBuilder<usize, usize>,
) -> Result<TenantCache<usize, usize>> {
    let domain = options(caches.domain("ratio").scope(Scope::Tenant).capacity(CAPACITY));
    Ok(domain.load(|key: usize| async move { Ok::<_, std::io::Error>(Some(key)) })?)
}
