//! What hits allocate: in memory nothing, in the far tier a little.
use std::alloc::System;
use std::sync::Arc;
use std::time::Duration;

use cache_core::{RequestContext, Scope, TenantId, UserId};
use cache_moka::MokaCacheService;
use metrics_exporter_prometheus::PrometheusBuilder;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tenant_cache::{Caches, RequestScope, TenantCache, TenantLabels};

// Counts for the whole process: the one test here runs on one thread.
#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// E2: a near hit allocates nothing: in a request's scope, with a user, tags, a far tier, an installed recorder and a
/// tenant label. A far hit allocates what it keeps and a future that is no larger than a read needs: what may come after
/// one, a load with all its limits, is not in it.
#[tokio::test]
async fn a_near_hit_allocates_nothing_and_a_far_hit_little() {
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
            let mut allocated = Vec::new();
            // Several times: the thread of the test runner allocates now and then.
            for _ in 0..4 {
                let region = Region::new(COUNTING);
                for _ in 0..1_000 {
                    std::hint::black_box(cache.get(&key).await.unwrap());
                }
                allocated.push(region.change().allocations);
            }
            assert!(allocated.contains(&0), "{key}: {allocated:?}");
        }
    });
    work.await;
    assert_eq!(cache.stats().near_hits, 8_000);

    let cache: TenantCache<String, String> = caches
        .domain("far-rows")
        .scope(Scope::Tenant)
        .near_ttl(Duration::ZERO)
        .load(|key: String| async move { Ok::<_, std::io::Error>(Some(key)) })
        .unwrap();
    let request = RequestContext::new(TenantId::new("acme").unwrap());
    let work = request.scope(async {
        let key = "k".to_owned();
        cache.get(&key).await.unwrap();
        let region = Region::new(COUNTING);
        for _ in 0..1_000 {
            std::hint::black_box(cache.get(&key).await.unwrap());
        }
        let change = region.change();
        let (bytes, count) = (change.bytes_allocated / 1_000, change.allocations / 1_000);
        assert!(count <= 15, "{count} allocations for a far hit");
        assert!(bytes < 8 * 1_024, "{bytes} bytes for a far hit");
    });
    work.await;
    assert_eq!(cache.stats().far_hits, 1_000);
}
