//! What a hit in memory costs: nothing is allocated.
use std::alloc::System;
use std::sync::Arc;

use cache_core::{RequestContext, Scope, TenantId, UserId};
use cache_moka::MokaCacheService;
use metrics_exporter_prometheus::PrometheusBuilder;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tenant_cache::{Caches, RequestScope, TenantCache, TenantLabels};

// Counts for the whole process: the one test here runs on one thread.
#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// E2: a near hit allocates nothing: in a request's scope, with a user, tags, a far tier, an installed recorder and a
/// tenant label.
#[tokio::test]
async fn a_near_hit_allocates_nothing() {
    let recorder: &'static _ = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    let _recording = metrics::set_default_local_recorder(recorder);
    let far = Arc::new(MokaCacheService::builder().build().unwrap());
    let acme = TenantId::new("acme").unwrap();
    let labels = TenantLabels::Allow([acme.clone()].into());
    let caches = Caches::builder().far(far).tenant_labels(labels).build().unwrap();
    let cache: TenantCache<String, String> = caches
        .domain("rows")
        .scope(Scope::User)
        .tags(|key: &String| vec![format!("of-{key}")])
        .load(|key: String| async move { Ok::<_, std::io::Error>((key != "gone").then_some(key)) })
        .unwrap();
    let request = RequestContext::new(acme).with_user(UserId::new("ann").unwrap());
    let work = request.scope(async {
        for key in ["k".to_owned(), "gone".to_owned()] {
            cache.get(&key).await.unwrap();
            let region = Region::new(COUNTING);
            for _ in 0..1_000 {
                std::hint::black_box(cache.get(&key).await.unwrap());
            }
            assert_eq!(region.change().allocations, 0, "{key}");
        }
    });
    work.await;
    assert_eq!(cache.stats().near_hits, 2_000);
}
