//! A Tokio runtime is needed for whatever memory cannot answer: without one, lookups say so by name.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, LoadError, Scope};
use cache_moka::MokaCacheService;
use futures_util::future::{FutureExt, pending};
use tenant_cache::{Caches, TenantCache, memo};

fn rows(caches: &Caches) -> TenantCache<u32, u32> {
    caches
        .domain("rows")
        .scope(Scope::Global)
        .stale_if_error(Duration::from_secs(60))
        .soft_timeout(Duration::from_secs(1))
        .load(|key: u32| async move { Ok::<_, std::io::Error>(Some(key)) })
        .unwrap()
}

/// Polls once, outside of any runtime.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("it does not wait for a runtime that is not there")
}

fn is_named<T: std::fmt::Debug>(ended: &Result<T, CacheError>) {
    assert!(matches!(ended, Err(CacheError::Load(LoadError::NoRuntime { .. }))), "{ended:?}");
}

#[test]
fn without_a_runtime_lookups_say_so() {
    let far = Arc::new(MokaCacheService::builder().build().unwrap());
    for caches in [Caches::in_memory(), Caches::builder().far(far).build().unwrap()] {
        let rows = rows(&caches);
        is_named(&at_once(rows.get(&1)));
        is_named(&at_once(rows.refresh(&1)));
        is_named(&at_once(rows.fresh(&1)));
        is_named(&at_once(rows.get_many(&[1, 2])));
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            rows.get(&1).await.unwrap();
        });
        assert_eq!(at_once(rows.get(&1)).unwrap().as_deref(), Some(&1), "memory needs none");
        at_once(rows.invalidate(&1)).unwrap();
    }
    let memo = memo("table", Duration::from_secs(60), || async { Ok::<_, std::io::Error>(1) });
    assert!(matches!(at_once(memo.get()), Err(LoadError::NoRuntime { .. })));
}

/// A load whose runtime ends lapses: who waits on another runtime goes on by itself.
#[test]
fn the_end_of_a_runtime_holds_nobody_up() {
    let caches = Caches::in_memory();
    let begun = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    let rows: TenantCache<u32, u32> = caches
        .domain("rows")
        .scope(Scope::Global)
        .load(move |key: u32| {
            let first = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            async move {
                if first {
                    pending::<()>().await;
                }
                Ok::<_, std::io::Error>(Some(key))
            }
        })
        .unwrap();
    let one = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asking = rows.clone();
    one.spawn(async move { asking.get(&1).await });
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let found = other.block_on(async {
        conformance::wait::until("the first load", || begun.load(std::sync::atomic::Ordering::SeqCst) == 1)
            .await;
        let asking = rows.clone();
        let waiting = tokio::spawn(async move { asking.get(&1).await });
        conformance::wait::until("the second lookup", || rows.stats().coalesced + rows.stats().loads >= 1)
            .await;
        one.shutdown_background();
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it goes on").unwrap()
    });
    assert_eq!(found.unwrap().as_deref(), Some(&1));
}
