//! Waiting, giving up, and being dropped.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use cache_core::{LockError, LockGuard, LockOptions, Locks};

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
    enqueue_on(&f.service, key, options).await
}

async fn enqueue_on<'a>(locks: &'a Arc<dyn Locks>, key: &'a str, options: &'a LockOptions) -> Acquiring<'a> {
    let mut waiter: Acquiring<'a> = Box::pin(locks.acquire(key, options));
    let soon = tokio::time::timeout(Duration::from_millis(100), &mut waiter).await;
    assert!(soon.is_err(), "the lock is held, so it waits");
    waiter
}

/// F3: first come, first served.
pub async fn waiters_are_served_in_the_order_of_arrival(f: LockFixture) {
    let (key, options) = (f.key("k"), patient());
    let held = f.service.acquire(&key, &options).await.unwrap();
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
    let held = f.service.acquire(&key, &patient()).await.unwrap();
    let limit = Duration::from_millis(150);
    let refused = f.service.acquire(&key, &waiting(limit)).await.unwrap_err();
    assert!(matches!(refused, LockError::Timeout { waited } if waited >= limit), "{refused:?}");
    let at_once = f.service.acquire(&key, &waiting(Duration::ZERO)).await.unwrap_err();
    assert!(matches!(at_once, LockError::Timeout { .. }), "{at_once:?}");
    held.release().await.unwrap();
}

/// F3, F4: who gave up is not waited for.
pub async fn a_waiter_that_gave_up_blocks_nobody(f: LockFixture) {
    let key = f.key("k");
    let held = f.service.acquire(&key, &patient()).await.unwrap();
    assert!(f.service.acquire(&key, &waiting(Duration::from_millis(50))).await.is_err());
    held.release().await.unwrap();
    f.service.acquire(&key, &patient()).await.unwrap().release().await.unwrap();
}

/// F4: a waiter that is dropped leaves the queue; the one behind it is served.
pub async fn a_waiter_that_is_dropped_blocks_nobody(f: LockFixture) {
    let (key, options) = (f.key("k"), patient());
    let held = f.service.acquire(&key, &options).await.unwrap();
    let first = enqueue(&f, &key, &options).await;
    let second = enqueue(&f, &key, &options).await;
    drop(first);
    held.release().await.unwrap();
    second.await.unwrap().release().await.unwrap();
}

/// F4: a lock that was handed to a waiter which is dropped before it notices goes to the next.
pub async fn a_lock_handed_to_a_dropped_waiter_passes_on(f: LockFixture) {
    let (key, options) = (f.key("k"), patient());
    let held = f.service.acquire(&key, &options).await.unwrap();
    let first = enqueue(&f, &key, &options).await;
    let mut second = enqueue(&f, &key, &options).await;
    held.release().await.unwrap();
    assert!(second.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(first);
    second.await.unwrap().release().await.unwrap();
}

/// F3: the next one is woken by the release, not by a poll. The median, since a remote one may miss a message.
pub async fn a_release_wakes_the_next_one(f: LockFixture) {
    let (key, options) = (f.key("k"), patient());
    let mut times = Vec::new();
    for _ in 0..9 {
        let held = f.service.acquire(&key, &options).await.unwrap();
        let waiter = enqueue_on(&f.peer, &key, &options).await;
        let released = Instant::now();
        held.release().await.unwrap();
        let taken = waiter.await.unwrap();
        times.push(released.elapsed());
        taken.release().await.unwrap();
    }
    times.sort();
    assert!(times[4] < Duration::from_millis(250), "{times:?}");
}

/// F1, F4, F5, SH7: no two hold at the same time, and their tokens are in the order of their times, while others
/// give up, are dropped, and drop their guards.
pub async fn holders_never_overlap_while_others_give_up(f: LockFixture) {
    let key = f.key("k");
    let history = Arc::new(Mutex::new(Vec::new()));
    let mut contenders = tokio::task::JoinSet::new();
    for number in 0..12_u32 {
        let (key, history) = (key.clone(), Arc::clone(&history));
        let locks = if number % 2 == 0 { f.service.clone() } else { f.peer.clone() };
        contenders.spawn(async move {
            for round in 0..12 {
                let options = waiting(Duration::from_millis(1 + u64::from(rand::random::<u8>()) * 4));
                let attempt = locks.acquire(&key, &options);
                let patience = Duration::from_millis(if round % 4 == 0 { 3 } else { 5_000 });
                let Ok(Ok(guard)) = tokio::time::timeout(patience, attempt).await else { continue };
                let from = Instant::now();
                tokio::task::yield_now().await;
                // Written down before it lets go: from then on another may have it.
                history.lock().unwrap().push((from, Instant::now(), guard.fence()));
                if round % 3 == 0 {
                    drop(guard);
                } else {
                    guard.release().await.unwrap();
                }
            }
        });
    }
    contenders.join_all().await;
    let mut history = std::mem::take(&mut *history.lock().unwrap());
    history.sort();
    assert!(history.len() >= 12, "{} held it", history.len());
    for pair in history.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two at the same time: {pair:?}");
        assert!(pair[0].2 < pair[1].2, "tokens out of order: {pair:?}");
    }
    f.service.acquire(&key, &patient()).await.unwrap().release().await.unwrap();
}
