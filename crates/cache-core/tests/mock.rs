//! The mocks, as a user's tests would use them.
#![cfg(feature = "mock")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cache_core::mock::{MockCacheService, MockConcurrencyService, MockHeldLock};
use cache_core::prelude::*;
use cache_core::{BackendError, BackendErrorKind, FencingToken, LockError, LockGuard, Quota};

/// A10: the mock of the byte contract serves the typed calls, single and in bulk, behind the trait object.
#[tokio::test]
async fn the_cache_mock_serves_the_typed_calls() {
    let mut mock = MockCacheService::new();
    mock.expect_get_bytes().withf(|key| key == "org:acme").returning(|_| Ok(Some("42".into())));
    mock.expect_set_bytes()
        .withf(|key, value, ttl| key == "n" && value == "7" && *ttl == Ttl::from(Some(300)))
        .once()
        .returning(|_, _, _| Ok(()));
    mock.expect_get_many_bytes()
        .withf(|keys| keys == &["a", "b"])
        .returning(|_| Ok(vec![Some("1".into()), None]));
    mock.expect_invalidate()
        .returning(|_| Err(BackendError::new(BackendErrorKind::Unavailable, "invalidate", "as told").into()));
    let cache: Arc<dyn CacheService> = Arc::new(mock);
    assert_eq!(cache.get::<u32>("org:acme").await.expect("get"), Some(42));
    cache.set("n", &7, Some(300)).await.expect("set");
    assert_eq!(cache.get_many::<u32>(&["a", "b"]).await.expect("get_many"), [Some(1), None]);
    let error = cache.invalidate("k").await.expect_err("as told");
    assert!(error.is_transient() && error.to_string().starts_with("Cache backend error: "), "{error}");
}

/// A10: one mock stands in for locks, limits and presence.
#[tokio::test]
async fn the_concurrency_mock_is_the_sum_of_its_parts() {
    let mut mock = MockConcurrencyService::new();
    mock.expect_check().returning(|quota, _, _| {
        Err(cache_core::RateLimitError::CostExceedsLimit { cost: 9, limit: quota.limit })
    });
    mock.expect_count().returning(|_| Ok(3));
    let service: Arc<dyn ConcurrencyService> = Arc::new(mock);
    assert!(service.check(&Quota::api(), "k", 1).await.is_err());
    let tenant = cache_core::TenantId::new("acme").expect("an id");
    assert_eq!(service.count(&tenant).await.expect("count"), 3);
}

/// F4, SH7: `with_lock` drops the work when the lock is lost, and says so.
#[tokio::test]
async fn work_is_dropped_when_the_lock_is_lost() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let mut mock = MockConcurrencyService::new();
    mock.expect_acquire().returning(|_, _| {
        let mut held = MockHeldLock::new();
        // Lost at once.
        held.expect_lost().returning(|| ());
        held.expect_fence().returning(|| FencingToken(1));
        Ok(LockGuard::new(held))
    });
    let dropped = Arc::new(AtomicBool::new(false));
    let witness = Dropped(dropped.clone());
    let work = async move {
        let _witness = witness;
        std::future::pending::<()>().await;
    };
    let locks: Arc<dyn Locks> = Arc::new(mock);
    let lost = locks.with_lock("k", work).await;
    assert!(matches!(lost, Err(LockError::Lost)), "{lost:?}");
    assert!(dropped.load(Ordering::SeqCst));
}
