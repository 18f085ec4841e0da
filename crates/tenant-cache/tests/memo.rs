//! One value, computed once per life, whoever asks and however it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::{LoadError, ManualClock, RequestContext, TenantId};
use conformance::wait::until;
use futures_util::future::{join_all, poll_immediate};
use tenant_cache::{Memo, RequestScope};
use tokio::sync::Semaphore;

const TTL: Duration = Duration::from_secs(60);

/// A computation that counts, can be held, and can be made to fail.
#[derive(Default)]
struct Source {
    begun: AtomicUsize,
    dropped: AtomicUsize,
    failing: AtomicUsize,
}

struct Dropped<'a>(&'a AtomicUsize);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn held(hand: &ManualClock, source: &Arc<Source>, gate: &Arc<Semaphore>) -> Memo<usize> {
    let (source, gate) = (Arc::clone(source), Arc::clone(gate));
    Memo::with_clock("numbers", TTL, hand.clock(), move || {
        let (source, gate) = (Arc::clone(&source), Arc::clone(&gate));
        async move {
            let _dropped = Dropped(&source.dropped);
            let number = source.begun.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            match source.failing.load(Ordering::SeqCst) {
                0 => Ok(number),
                1 => Err(std::io::Error::other("away")),
                _ => panic!("a bug"),
            }
        }
    })
}

fn new() -> (ManualClock, Arc<Source>, Arc<Semaphore>, Memo<usize>) {
    let (hand, source, gate) = (ManualClock::new(), Arc::default(), Arc::new(Semaphore::new(0)));
    let memo = held(&hand, &source, &gate);
    (hand, source, gate, memo)
}

/// E12: all who ask at once share one computation; it is kept for its life and not longer.
#[tokio::test]
async fn it_is_computed_once_per_life() {
    let (hand, source, gate, memo) = new();
    gate.add_permits(100);
    let all = join_all((0..100).map(|_| memo.get())).await;
    assert!(all.into_iter().all(|value| *value.unwrap() == 0));
    hand.advance(TTL - Duration::from_nanos(1));
    assert_eq!(*memo.get().await.unwrap(), 0);
    hand.advance(Duration::from_nanos(1));
    assert_eq!(*memo.get().await.unwrap(), 1);
    assert_eq!(source.begun.load(Ordering::SeqCst), 2);
}

/// E12: a computation goes on while anybody waits, and is dropped when the last one leaves.
#[tokio::test]
async fn it_belongs_to_all_who_wait() {
    let (_, source, gate, memo) = new();
    let (mut first, mut second) = (Box::pin(memo.get()), Box::pin(memo.get()));
    assert!(poll_immediate(&mut first).await.is_none() && poll_immediate(&mut second).await.is_none());
    until("the computation", || source.begun.load(Ordering::SeqCst) == 1).await;
    drop(first);
    tokio::task::yield_now().await;
    assert_eq!(source.dropped.load(Ordering::SeqCst), 0, "the second still waits");
    drop(second);
    until("its end", || source.dropped.load(Ordering::SeqCst) == 1).await;
    gate.add_permits(1);
    assert_eq!(*memo.get().await.unwrap(), 1, "begun anew");
}

/// E12: an error or a panic reaches all who wait, once, and the next call computes anew.
#[tokio::test]
async fn failures_are_not_kept() {
    let (_, source, gate, memo) = new();
    for failing in [1, 2] {
        source.failing.store(failing, Ordering::SeqCst);
        let mut waiting = join_all((0..5).map(|_| memo.get()));
        assert!(poll_immediate(&mut waiting).await.is_none());
        gate.add_permits(1);
        for outcome in waiting.await {
            match (failing, outcome.unwrap_err()) {
                (1, LoadError::Failed { .. }) | (2, LoadError::Panicked { .. }) => {}
                (_, other) => panic!("{other:?}"),
            }
        }
        assert_eq!(source.begun.load(Ordering::SeqCst), failing, "one computation for the five");
    }
    source.failing.store(0, Ordering::SeqCst);
    gate.add_permits(1);
    assert_eq!(*memo.get().await.unwrap(), 2);
}

/// E12, SE1: what was being computed when it was invalidated goes to those who asked before, and to nobody after.
#[tokio::test]
async fn an_invalidation_overtakes_a_computation() {
    let (_, source, gate, memo) = new();
    let mut before = Box::pin(memo.get());
    assert!(poll_immediate(&mut before).await.is_none());
    memo.invalidate();
    let mut after = Box::pin(memo.get());
    assert!(poll_immediate(&mut after).await.is_none());
    until("a computation that is not joined", || source.begun.load(Ordering::SeqCst) == 2).await;
    gate.add_permits(2);
    assert_eq!((*before.await.unwrap(), *after.await.unwrap()), (0, 1));
    assert_eq!(*memo.get().await.unwrap(), 1, "the old one was not kept");
    memo.invalidate();
    gate.add_permits(1);
    assert_eq!(*memo.get().await.unwrap(), 2);
}

/// D4: what everybody gets is computed outside of any request, so that it cannot be one tenant's.
#[tokio::test]
async fn it_is_computed_outside_of_requests() {
    let memo = Memo::with_clock("who", TTL, ManualClock::new().clock(), || async {
        Ok::<_, std::io::Error>(RequestContext::current().is_some())
    });
    let context = RequestContext::new(TenantId::new("acme").unwrap());
    assert!(!*context.scope(memo.get()).await.unwrap());
}
