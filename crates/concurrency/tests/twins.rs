//! What callers of locks, limits and presence see when these fail.

use std::sync::Arc;
use std::time::Duration;

use cache_core::prelude::*;
use cache_core::{
    BackendErrorKind, LockError, LockOptions, Member, PresenceError, Quota, RateLimitError, TenantId, UserId,
};
use concurrency::{FleetRateLimits, LocalConcurrencyService};
use conformance::faults::{ChaosConcurrency, ConcurrencyMethod as Method, Gate, Gated};
use conformance::hygiene::no_task_left;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(3_600);

fn twin() -> Arc<ChaosConcurrency> {
    Arc::new(ChaosConcurrency::new(Arc::new(LocalConcurrencyService::new())))
}

/// SC1: what fails is said as what it is, and the work under a lock that was not had is not begun.
#[tokio::test]
async fn failures_are_said_as_what_they_are() {
    let (twin, tenant) = (twin(), TenantId::new("acme").unwrap());
    twin.set_all(Gate::Error(BackendErrorKind::Unavailable));
    let work = twin.with_lock("k", async { panic!("the lock was not had") }).await;
    assert!(matches!(work, Err(LockError::Backend(error)) if error.kind == BackendErrorKind::Unavailable));
    let closed = twin.check(&Quota::api(), "k", 1).await;
    assert!(matches!(closed, Err(RateLimitError::Unavailable { .. })), "{closed:?}");
    let member = Member { user_id: UserId::new("ann").unwrap(), connected_at: 7 };
    let joined = twin.join(&tenant, "c", &member).await;
    assert!(matches!(joined, Err(PresenceError::Backend(_))), "{joined:?}");
    twin.set_all(Gate::Open);
    assert_eq!(twin.count(&tenant).await.unwrap(), 0);
    assert!(twin.check(&Quota::auth(), "k", 0).await.unwrap().remaining == 5);
}

/// F4, SH7: a lock that was granted and not heard of is free again.
#[tokio::test]
async fn a_lock_whose_answer_is_lost_is_free_again() {
    let twin = twin();
    twin.set_gate(Method::Acquire, Gate::LostAnswer(BackendErrorKind::Unavailable));
    twin.acquire("k", &LockOptions::default()).await.unwrap_err();
    twin.set_all(Gate::Open);
    assert!(twin.try_acquire("k", &LockOptions::default()).await.unwrap().is_some());
    no_task_left().await;
}

/// A8: callers who leave, wherever the call stands, leave nothing behind.
#[tokio::test(start_paused = true)]
async fn callers_who_leave_leave_nothing_behind() {
    for gate in [Gate::Hold, Gate::HoldAnswer, Gate::Never] {
        let service = LocalConcurrencyService::new();
        let twin = ChaosConcurrency::new(Arc::new(service.clone()));
        twin.set_all(gate);
        let work = timeout(LONG, twin.with_lock("k", std::future::pending::<()>()));
        assert!(work.await.is_err(), "{gate:?}");
        let asked = timeout(LONG, twin.check(&Quota::api(), "k", 0)).await;
        assert!(asked.is_err(), "{gate:?}");
        assert_eq!(service.kept(), 0, "{gate:?}");
        for method in Method::ALL {
            assert_eq!(twin.stopped(*method), 0, "{method:?}");
        }
    }
}

/// G4: a limit whose store is slow waits for it; one whose store lost the answer has perhaps counted there, and counts
/// here.
#[tokio::test(start_paused = true)]
async fn a_store_that_loses_answers_is_one_that_is_away() {
    let twin = twin();
    let limits = FleetRateLimits::new(twin.clone());
    let quota = Quota::token_bucket("q", 10, LONG);
    twin.set_gate(Method::Check, Gate::Slow(Duration::from_secs(3)));
    assert_eq!(limits.check(&quota, "k", 1).await.unwrap().remaining, 9);
    twin.set_gate(Method::Check, Gate::LostAnswer(BackendErrorKind::Unavailable));
    assert_eq!(limits.check(&quota, "k", 1).await.unwrap().remaining, 9, "counted here");
    limits.check(&quota.clone().fail_closed(), "k", 1).await.unwrap_err();
    twin.set_all(Gate::Open);
    assert_eq!(limits.check(&quota, "k", 0).await.unwrap().remaining, 7, "and taken there");
}
