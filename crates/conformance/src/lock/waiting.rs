//! Waiting, giving up, and being dropped.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use cache_core::{LockError, LockGuard, LockOptions};

use super::LockFixture;

fn waiting(wait: Duration) -> LockOptions {
    LockOptions::default().with_wait(wait)
}

fn patient() -> LockOptions {
    waiting(Duration::from_secs(30))
}

type Acquiring<'a> = Pin<Box<dyn Future<Output = Result<LockGuard, LockError>> + Send + 'a>>;

/// Puts a waiter into the queue: polls until it has said that it waits. In-process it does so at its first poll,
/// a remote one needs its round trip.
async fn enqueue<'a>(f: &'a LockFixture, key: &'a str, options: &'a LockOptions) -> Acquiring<'a> {
    let mut waiter: Acquiring<'a> = Box::pin(f.locks.acquire(key, options));
    let soon = tokio::time::timeout(Duration::from_millis(100), &mut waiter).await;
    assert!(soon.is_err(), "the lock is held, so it waits");
    waiter
}

/// F3: first come, first served.
pub async fn waiters_are_served_in_the_order_of_arrival(f: LockFixture) {
    let (key, options) = (f.key("k"), patient());
    let held = f.locks.acquire(&key, &options).await.unwrap();
    let mut waiters = Vec::new();
    for _ in 0..5 {
        waiters.push(enqueue(&f, &key, &options).await);
    }
    held.release().await.unwrap();
    // Awaited one by one: were another served first, this one would wait for it until its limit.
    for waiter in waiters {
        waiter.await.unwrap().release().await.unwrap();
    }
}

/// F3: waiting ends with `Timeout`, and not before its time.
pub async fn waiting_has_a_limit(f: LockFixture) {
    let key = f.key("k");
    let held = f.locks.acquire(&key, &patient()).await.unwrap();
    let limit = Duration::from_millis(150);
    let refused = f.locks.acquire(&key, &waiting(limit)).await.unwrap_err();
    assert!(matches!(refused, LockError::Timeout { waited } if waited >= limit), "{refused:?}");
    let at_once = f.locks.acquire(&key, &waiting(Duration::ZERO)).await.unwrap_err();
    assert!(matches!(at_once, LockError::Timeout { .. }), "{at_once:?}");
    held.release().await.unwrap();
}

/// F3, F4: who gave up is not waited for.
pub async fn a_waiter_that_gave_up_blocks_nobody(f: LockFixture) {
    let key = f.key("k");
    let held = f.locks.acquire(&key, &patient()).await.unwrap();
    assert!(f.locks.acquire(&key, &waiting(Duration::from_millis(50))).await.is_err());
    held.release().await.unwrap();
    f.locks.acquire(&key, &patient()).await.unwrap().release().await.unwrap();
}

/// F4: a waiter that is dropped leaves the queue; the one behind it is served.
pub async fn a_waiter_that_is_dropped_blocks_nobody(f: LockFixture) {
    let (key, options) = (f.key("k"), patient());
    let held = f.locks.acquire(&key, &options).await.unwrap();
    let first = enqueue(&f, &key, &options).await;
    let second = enqueue(&f, &key, &options).await;
    drop(first);
    held.release().await.unwrap();
    second.await.unwrap().release().await.unwrap();
}

/// F4: a lock that was handed to a waiter which is dropped before it notices goes to the next.
pub async fn a_lock_handed_to_a_dropped_waiter_passes_on(f: LockFixture) {
    let (key, options) = (f.key("k"), patient());
    let held = f.locks.acquire(&key, &options).await.unwrap();
    let first = enqueue(&f, &key, &options).await;
    let mut second = enqueue(&f, &key, &options).await;
    held.release().await.unwrap();
    assert!(second.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(first);
    second.await.unwrap().release().await.unwrap();
}
