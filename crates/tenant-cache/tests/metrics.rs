//! What is counted and told: metrics, their tenant label, hooks.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_core::{ManualClock, Scope};
use cache_moka::MokaCacheService;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use support::{of, tenant};
use tenant_cache::{Caches, Source, TenantCache, TenantLabels};

struct Set {
    hand: ManualClock,
    cache: TenantCache<String, u64>,
    metrics: PrometheusHandle,
    told: Arc<Mutex<Vec<String>>>,
    _here: metrics::LocalRecorderGuard<'static>,
}

/// A cache with a far tier; `x` does not exist, `bad` fails, everything else is 1.
fn set(labels: TenantLabels) -> Set {
    // Tenants' series are made when they are first met, so the recorder must stay.
    let recorder: &'static _ = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    let here = metrics::set_default_local_recorder(recorder);
    let (hand, told) = (ManualClock::new(), Arc::<Mutex<Vec<String>>>::default());
    let (hits, misses) = (Arc::clone(&told), Arc::clone(&told));
    let far = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
    let caches = Caches::builder().far(far).clock(hand.clock()).tenant_labels(labels).build().unwrap();
    let cache = caches
        .domain("rows")
        .scope(Scope::Tenant)
        .jitter(0.0)
        .on_hit(move |key: &String, source: Source| {
            hits.lock().unwrap().push(format!("{key} from {source:?}"));
        })
        .on_miss(move |key: &String| misses.lock().unwrap().push(format!("{key} missed")))
        .load(|key: String| async move {
            match key.as_str() {
                "bad" => Err(io::Error::other("bad")),
                "x" => Ok(None),
                _ => Ok(Some(1)),
            }
        })
        .unwrap();
    Set { hand, cache, metrics: recorder.handle(), told, _here: here }
}

impl Set {
    async fn get(&self, tenant: &str, key: &str) {
        let _ = of(tenant, self.cache.get(&key.to_owned())).await;
    }

    /// The value of a series, zero when there is none.
    fn value(&self, series: &str) -> f64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Two misses, a near hit, a far hit, a negative hit, a failure.
    async fn course(&self, tenant: &str) {
        self.get(tenant, "k").await;
        self.get(tenant, "k").await;
        self.hand.advance(Duration::from_secs(11));
        self.get(tenant, "k").await;
        self.get(tenant, "x").await;
        self.get(tenant, "x").await;
        self.get(tenant, "bad").await;
    }
}

/// M1, SH4: each lookup is counted once as what it was.
#[tokio::test]
async fn each_lookup_is_counted_once() {
    let s = set(TenantLabels::Off);
    s.course("acme").await;
    assert_eq!(s.value(r#"cache_hits_total{name="rows",tier="near"}"#), 2.0);
    assert_eq!(s.value(r#"cache_hits_total{name="rows",tier="far"}"#), 1.0);
    assert_eq!(s.value(r#"cache_misses_total{name="rows"}"#), 3.0);
    assert_eq!(s.value(r#"cache_loads_total{name="rows"}"#), 3.0);
    assert_eq!(s.value(r#"cache_load_failures_total{name="rows"}"#), 1.0);
    let took = |outcome| {
        s.value(&format!(r#"cache_lookup_duration_seconds_count{{name="rows",outcome="{outcome}"}}"#))
    };
    assert_eq!((took("hit"), took("miss"), took("error")), (1.0, 2.0, 1.0));
    let stats = s.cache.stats();
    assert_eq!((stats.near_hits, stats.far_hits, stats.misses, stats.hits()), (2, 1, 3, 3));
    s.cache.contains(&"k".to_owned()).await.unwrap_err();
    of("acme", async { s.cache.peek(&"k".to_owned()) }).await.unwrap();
    of("acme", s.cache.contains(&"k".to_owned())).await.unwrap();
    assert_eq!(s.cache.stats(), stats, "peek and contains are not counted");
}

/// M2, SG8: with labels, hits and misses are counted by tenant and nowhere twice; who is not named is `other`.
#[tokio::test]
async fn tenants_are_named_within_bounds() {
    let s = set(TenantLabels::Allow([tenant("acme")].into()));
    s.course("acme").await;
    s.course("globex").await;
    s.course("initech").await;
    let hits = |tenant: &str, tier: &str| {
        s.value(&format!(r#"cache_hits_total{{name="rows",tenant="{tenant}",tier="{tier}"}}"#))
    };
    let misses = |tenant: &str| s.value(&format!(r#"cache_misses_total{{name="rows",tenant="{tenant}"}}"#));
    assert_eq!((hits("acme", "near"), hits("acme", "far"), misses("acme")), (2.0, 1.0, 3.0));
    assert_eq!((hits("other", "near"), hits("other", "far"), misses("other")), (4.0, 2.0, 6.0));
    let text = s.metrics.render();
    assert!(!text.contains("globex") && !text.contains(r#"cache_misses_total{name="rows"} "#), "{text}");
}

/// SG9, M2: ten thousand tenants make a bounded number of series.
#[tokio::test]
async fn many_tenants_make_few_series() {
    let s = set(TenantLabels::Busiest(3));
    for n in 0..10_000 {
        s.get(&format!("t{n}"), "k").await;
    }
    for n in 0..200 {
        s.get("busy", &format!("k{n}")).await;
    }
    let text = s.metrics.render();
    let series = text.lines().filter(|line| line.starts_with("cache_misses_total{")).count();
    assert_eq!(series, 2, "{text}");
    assert_eq!(s.value(r#"cache_misses_total{name="rows",tenant="busy"}"#), 101.0);
}

/// E10: hooks are called on each hit and each miss, with where the value came from.
#[tokio::test]
async fn hooks_are_called() {
    let s = set(TenantLabels::Off);
    s.course("acme").await;
    let told = std::mem::take(&mut *s.told.lock().unwrap());
    let expected = ["k missed", "k from Near", "k from Far", "x missed", "x from Near", "bad missed"];
    assert_eq!(told, expected);
}

/// M2: without a recorder everything works, and is counted here.
#[tokio::test]
async fn without_a_recorder_stats_still_count() {
    let caches = Caches::in_memory();
    let cache: TenantCache<u64, u64> = caches
        .domain("rows")
        .scope(Scope::Global)
        .load(|n| async move { Ok::<_, io::Error>(Some(n)) })
        .unwrap();
    cache.get(&1).await.unwrap();
    cache.get(&1).await.unwrap();
    assert_eq!((cache.stats().near_hits, cache.stats().misses), (1, 1));
}
