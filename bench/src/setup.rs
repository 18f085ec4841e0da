//! What the rows share: entries, key sequences, our cache on a real Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cache_core::bus::BusHealth;
use cache_core::{InvalidationBus, RequestContext, Scope, TenantId};
use cache_redis::{BusPolicy, RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use metrics_exporter_prometheus::PrometheusBuilder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tenant_cache::{Caches, DomainBuilder, TenantCache};
use tokio::runtime::Runtime;

/// Entries of the near rows.
pub const ENTRIES: usize = 10_000;
pub const HOUR: Duration = Duration::from_secs(3_600);

/// A row as services cache them: about 300 bytes of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub id: u64,
    pub slug: String,
    pub name: String,
    pub plan: String,
    pub flags: Vec<bool>,
    pub limits: Vec<u32>,
    pub note: String,
}

impl Row {
    pub fn of(key: &str) -> Self {
        let id = key.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Self {
            id,
            slug: key.to_owned(),
            name: format!("The organisation of {key}"),
            plan: "enterprise".to_owned(),
            flags: vec![true, false, true, true],
            limits: vec![100, 2_000, 30_000, 4],
            note: "x".repeat(100),
        }
    }
}

pub fn keys() -> Vec<String> {
    (0..ENTRIES).map(|n| format!("org-{n:05}")).collect()
}

/// Indices below `among`, skewed as Zipf's law says with this exponent, the same in every run.
pub fn zipf(among: usize, exponent: f64, length: usize) -> Vec<usize> {
    let mut sums = Vec::with_capacity(among);
    let mut sum = 0.0;
    for rank in 1..=among {
        sum += 1.0 / (rank as f64).powf(exponent);
        sums.push(sum);
    }
    let mut rng = StdRng::seed_from_u64(42);
    let draw = |_| sums.partition_point(|at| *at < rng.random_range(0.0..sum)).min(among - 1);
    (0..length).map(draw).collect()
}

/// Our cache as services run it: scoped to a tenant, on Redis, its bus trusted.
pub fn ours(
    runtime: &Runtime,
    redis: &str,
    options: impl FnOnce(DomainBuilder<String, Row>) -> DomainBuilder<String, Row>,
) -> Result<(Caches, TenantCache<String, Row>)> {
    let settings = RedisSettings::from_url(redis)?.with_response_timeout(Duration::from_secs(5));
    let (caches, bus) = runtime.block_on(async {
        let bus = RedisBus::with_policy(RedisLink::lazy(settings)?, BusPolicy::default());
        let far = Arc::new(RedisCacheService::on(bus.clone(), RedisCacheOptions::default()));
        anyhow::Ok((Caches::builder().far(far).build()?, bus))
    })?;
    let domain = caches.domain("orgs").scope(Scope::Tenant).ttl(HOUR).near_ttl(HOUR).capacity(2 * ENTRIES);
    let cache =
        options(domain).load(|key: String| async move { Ok::<_, std::io::Error>(Some(Row::of(&key))) })?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while bus.state().health != BusHealth::Trusted {
        ensure!(Instant::now() < deadline, "the bus is not trusted after 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((caches, cache))
}

/// As in production: whatever is counted is exported, and the exporter's upkeep runs.
pub fn record_metrics() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).expect("the only recorder");
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(5));
            handle.run_upkeep();
        }
    });
}

pub fn request() -> RequestContext {
    RequestContext::new(TenantId::new("acme").expect("an id"))
}

pub fn runtime(threads: usize) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().expect("a runtime starts")
}

/// Nanoseconds per operation.
pub fn per_operation(operations: usize, began: Instant) -> f64 {
    began.elapsed().as_nanos() as f64 / operations as f64
}

/// The value that so many (0 to 1) of them do not exceed.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
