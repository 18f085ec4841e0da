//! One cache per domain.

mod support;

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Scope};
use support::{Origin, of, plain, versions};
use tenant_cache::{Caches, TenantCache};

fn numbers(caches: &Caches, ttl: u64) -> Result<TenantCache<u32, u32>, CacheError> {
    caches
        .domain("numbers")
        .scope(Scope::Global)
        .ttl(Duration::from_secs(ttl))
        .load(|key: u32| async move { Ok::<_, std::io::Error>(Some(key)) })
}

/// E1: asking twice for a domain gives the same cache.
#[tokio::test]
async fn the_same_definition_gives_the_same_cache() {
    let caches = Caches::in_memory();
    let (first, second) = (numbers(&caches, 60).unwrap(), numbers(&caches, 60).unwrap());
    first.get(&1).await.unwrap();
    assert_eq!(second.peek(&1).unwrap().as_deref(), Some(&1));
    assert!(caches.get::<u32, u32>("numbers").is_some());
    assert!(caches.get::<u64, u32>("numbers").is_none());
    assert!(caches.get::<u32, u32>("others").is_none());
    assert_eq!(caches.stats().len(), 1);
}

/// E1: another definition of a domain is an error: other options, types, or loader.
#[tokio::test]
async fn another_definition_is_an_error() {
    let caches = Caches::in_memory();
    let _kept = numbers(&caches, 60).unwrap();
    let refused = |error: CacheError| {
        assert!(matches!(error, CacheError::Configuration { .. }), "{error:?}");
        assert!(error.to_string().contains("`numbers`"), "{error}");
    };
    refused(numbers(&caches, 61).unwrap_err());
    let other_loader = caches
        .domain::<u32, u32>("numbers")
        .scope(Scope::Global)
        .ttl(Duration::from_secs(60))
        .load(|key: u32| async move { Ok::<_, std::io::Error>(Some(key + 1)) });
    refused(other_loader.unwrap_err());
    let other_type = caches
        .domain::<u32, u64>("numbers")
        .scope(Scope::Global)
        .ttl(Duration::from_secs(60))
        .load(|_| async { Ok::<_, std::io::Error>(None) });
    refused(other_type.unwrap_err());
}

/// A7: a name or option that cannot work is refused when the cache is defined.
#[tokio::test]
async fn impossible_definitions_are_refused() {
    let caches = Caches::in_memory();
    let define = |name: &str, scope| {
        caches
            .domain::<u32, u32>(name)
            .scope(scope)
            .load(|key| async move { Ok::<_, std::io::Error>(Some(key)) })
    };
    for (name, scope) in
        [("", Scope::Tenant), ("Upper", Scope::Tenant), ("org:id", Scope::Tenant), ("lock", Scope::Global)]
    {
        let error = define(name, scope).unwrap_err();
        assert!(matches!(error, CacheError::Configuration { .. }), "{name}: {error:?}");
    }
    assert!(define("org:id", Scope::Global).is_ok());
}

/// E11, SH5: a cache stays coherent as long as somebody holds it, and leaves nothing behind afterwards.
#[tokio::test]
async fn a_cache_outlives_its_registry_and_is_then_freed() {
    let origin = Origin::open();
    let caches = Caches::in_memory();
    let cache = versions(&caches, &origin);
    let bus = caches.bus();
    drop(caches);
    origin.commit("k", 1);
    assert_eq!(plain(of("acme", cache.get(&"k".to_owned())).await.unwrap()), Some(1));
    origin.commit("k", 2);
    let message = cache_core::Invalidation::key("acme:rows:k");
    bus.publish(&message).await.unwrap();
    assert_eq!(plain(of("acme", cache.get(&"k".to_owned())).await.unwrap()), Some(2));
    drop(cache);
    assert_eq!(Arc::strong_count(&bus), 1, "the registry is gone, and its subscription with it");
}
