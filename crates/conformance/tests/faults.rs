//! The chaos twin does what it is told, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use cache_core::prelude::*;
use cache_core::{BackendErrorKind, Claim, Clock, LeaseToken, Lookup};
use conformance::faults::{ChaosCache, Gate, Method};
use conformance::hygiene::no_task_left;
use conformance::model::ModelCache;
use tokio::time::{Instant, timeout};

const LONG: Duration = Duration::from_secs(3600);

fn twin() -> Arc<ChaosCache> {
    Arc::new(ChaosCache::new(Arc::new(ModelCache::new(Clock::system(), 1024))))
}

fn kind<T>(answer: Result<T, CacheError>) -> Option<BackendErrorKind> {
    match answer {
        Err(CacheError::Backend(error)) => Some(error.kind),
        _ => None,
    }
}

/// SC1, SC2: a call that fails has changed nothing; one whose answer was lost has.
#[tokio::test]
async fn a_failed_call_did_nothing_and_a_lost_answer_did() {
    let cache = twin();
    cache.set_gate(Method::SetBytes, Gate::Error(BackendErrorKind::ReadOnly));
    assert_eq!(kind(cache.set("k", &1, None).await), Some(BackendErrorKind::ReadOnly));
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
    cache.set_gate(Method::SetBytes, Gate::LostAnswer(BackendErrorKind::Unavailable));
    assert_eq!(kind(cache.set("k", &1, None).await), Some(BackendErrorKind::Unavailable));
    assert_eq!(cache.get("k").await.unwrap(), Some(1));
    cache.set_all(Gate::Open);
    cache.set("k", &2, None).await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), Some(2));
}

/// SC2, SA6: a lease whose answer was lost is given up by the token that was sent.
#[tokio::test]
async fn a_lease_whose_answer_was_lost_is_given_up_by_its_token() {
    let (cache, token) = (twin(), LeaseToken::random());
    cache.set_gate(Method::GetOrLease, Gate::LostAnswer(BackendErrorKind::Unavailable));
    assert_eq!(kind(cache.get_or_lease("k", token, LONG).await), Some(BackendErrorKind::Unavailable));
    cache.set_all(Gate::Open);
    let other = LeaseToken::random();
    assert_eq!(cache.get_or_lease("k", other, LONG).await.unwrap(), Lookup::Busy);
    cache.release("k", &Claim::lease(token)).await.unwrap();
    let found = cache.get_or_lease("k", other, LONG).await.unwrap();
    assert_eq!(found, Lookup::Granted(Claim::lease(other)));
}

/// SC8: calls are counted by method, also those that fail, and counts can be taken.
#[tokio::test]
async fn calls_are_counted_by_method() {
    let cache = twin();
    cache.set_all(Gate::Error(BackendErrorKind::Unavailable));
    assert!(cache.health().await.is_err());
    for _ in 0..3 {
        assert!(cache.get_or_lease("k", LeaseToken::random(), LONG).await.is_err());
    }
    assert_eq!((cache.calls(Method::GetOrLease), cache.total_calls()), (3, 4));
    assert_eq!(cache.take_calls(), [(Method::GetOrLease, 3), (Method::Health, 1)]);
    assert_eq!(cache.take_calls(), []);
}

/// SC4: slow is as slow as it says, and never is never.
#[tokio::test(start_paused = true)]
async fn slow_and_never_take_their_time() {
    let cache = twin();
    cache.set_gate(Method::GetBytes, Gate::Slow(Duration::from_secs(3)));
    let began = Instant::now();
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    cache.set_gate(Method::GetBytes, Gate::Never);
    let call = timeout(LONG, cache.get::<u32>("k"));
    let opened = async {
        cache.at_gate(Method::GetBytes, 1).await;
        cache.set_gate(Method::GetBytes, Gate::Open);
    };
    assert!(tokio::join!(call, opened).0.is_err(), "even when others pass again");
    assert_eq!(cache.stopped(Method::GetBytes), 0, "a call that is dropped stands there no more");
}

/// Interleavings are forced: a call that is held before has not begun, one that is held after is done.
#[tokio::test]
async fn held_calls_stop_before_or_after_their_effect() {
    let cache = twin();
    for (gate, done) in [(Gate::Hold, false), (Gate::HoldAnswer, true)] {
        cache.set_all(Gate::Open);
        cache.invalidate("k").await.unwrap();
        let Lookup::Granted(claim) = cache.get_or_lease("k", LeaseToken::random(), LONG).await.unwrap()
        else {
            panic!("the lease is free");
        };
        cache.set_gate(Method::Fill, gate);
        let held = cache.clone();
        let fill = tokio::spawn(async move { held.fill("k", &claim, "1".into(), Ttl::Default).await });
        cache.at_gate(Method::Fill, 1).await;
        assert_eq!(cache.get("k").await.unwrap(), done.then_some(1), "{gate:?}");
        cache.invalidate("k").await.unwrap();
        cache.set_gate(Method::Fill, Gate::Open);
        assert_eq!(fill.await.unwrap().unwrap(), done, "{gate:?}");
        assert_eq!(cache.get::<u32>("k").await.unwrap(), None, "nothing is left in either order");
    }
    no_task_left().await;
}

/// A held call does what the gate says when it is changed, and a dropped one leaves the gate.
#[tokio::test]
async fn a_held_call_meets_the_next_gate() {
    let cache = twin();
    cache.set_gate(Method::Invalidate, Gate::Hold);
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.invalidate("k").await })
        })
        .collect();
    cache.at_gate(Method::Invalidate, 2).await;
    calls[1].abort();
    while cache.stopped(Method::Invalidate) > 1 {
        tokio::task::yield_now().await;
    }
    cache.set_gate(Method::Invalidate, Gate::Error(BackendErrorKind::Unavailable));
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await);
    }
    assert!(answers[1].as_ref().unwrap_err().is_cancelled());
    assert_eq!(kind(answers.remove(0).unwrap()), Some(BackendErrorKind::Unavailable));
    assert_eq!(cache.stopped(Method::Invalidate), 0);
}
