//! Holding and releasing.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::{FencingToken, KeyError, LockError, LockOptions, LocksExt};
use tokio::task::JoinSet;

use super::LockFixture;

fn patient() -> LockOptions {
    LockOptions::default().with_wait(Duration::from_secs(30))
}

/// F1, SH7: of many tasks one is inside at a time, and all get in.
pub async fn one_task_holds_at_a_time(f: LockFixture) {
    let (inside, entered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let last = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let (locks, key) = (f.service.clone(), f.key("k"));
        let (inside, entered, last) = (inside.clone(), entered.clone(), last.clone());
        tasks.spawn(async move {
            let guard = locks.acquire(&key, &patient()).await.unwrap();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "nobody else is inside");
            let fence = guard.fence().0;
            assert!(last.swap(fence, Ordering::SeqCst) < fence, "the token grows");
            tokio::task::yield_now().await;
            entered.fetch_add(1, Ordering::SeqCst);
            inside.fetch_sub(1, Ordering::SeqCst);
            guard.release().await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(entered.load(Ordering::SeqCst), 64);
}

/// F1: locks of different keys are different locks.
pub async fn different_keys_do_not_wait_for_each_other(f: LockFixture) {
    let options = LockOptions::default().with_wait(Duration::from_secs(5));
    let mut held = Vec::new();
    for n in 0..100 {
        held.push(f.service.acquire(&f.key(&n.to_string()), &options).await.unwrap());
    }
}

/// F4: a guard that is dropped frees its lock, without being asked to.
pub async fn a_dropped_guard_frees_the_lock(f: LockFixture) {
    let key = f.key("k");
    for _ in 0..20 {
        drop(f.service.acquire(&key, &patient()).await.unwrap());
    }
    f.service.acquire(&key, &patient()).await.unwrap().release().await.unwrap();
}

/// F2: after `release` has answered, the lock can be taken at once.
pub async fn a_released_lock_is_free(f: LockFixture) {
    let key = f.key("k");
    for _ in 0..20 {
        let guard = f.service.try_acquire(&key, &LockOptions::default()).await.unwrap();
        guard.expect("the lock is free").release().await.unwrap();
    }
}

/// F1: `try_acquire` says at once that a lock is held.
pub async fn a_held_lock_is_not_taken(f: LockFixture) {
    let key = f.key("k");
    let held = f.service.acquire(&key, &patient()).await.unwrap();
    assert_eq!(held.key(), key);
    assert!(f.service.try_acquire(&key, &LockOptions::default()).await.unwrap().is_none());
    assert!(f.service.try_acquire(&f.key("other"), &LockOptions::default()).await.unwrap().is_some());
    held.release().await.unwrap();
    assert!(f.service.try_acquire(&key, &LockOptions::default()).await.unwrap().is_some());
}

/// F1: what one instance holds no other gets, and what it releases every other may take.
pub async fn a_lock_holds_for_every_instance(f: LockFixture) {
    let key = f.key("k");
    let held = f.service.acquire(&key, &patient()).await.unwrap();
    assert!(f.peer.try_acquire(&key, &LockOptions::default()).await.unwrap().is_none());
    held.release().await.unwrap();
    let held = f.peer.try_acquire(&key, &LockOptions::default()).await.unwrap().expect("it is free");
    assert!(f.service.try_acquire(&key, &LockOptions::default()).await.unwrap().is_none());
    held.release().await.unwrap();
}

/// F2, SH7: a lock is held for as long as its guard lives, not for its TTL; the holder is not told that it is lost.
pub async fn a_held_lock_outlives_its_ttl(f: LockFixture) {
    let key = f.key("k");
    let held = f.service.acquire(&key, &patient().with_ttl(Duration::from_secs(1))).await.unwrap();
    let told = tokio::time::timeout(Duration::from_millis(2_500), held.lost()).await;
    assert!(told.is_err(), "it is held");
    assert!(f.peer.try_acquire(&key, &LockOptions::default()).await.unwrap().is_none());
    held.release().await.unwrap();
}

/// F5, SH7: the token grows from holder to holder, whichever instance they are on.
pub async fn fencing_tokens_grow_across_instances(f: LockFixture) {
    let key = f.key("k");
    let mut last = FencingToken(0);
    for round in 0..20 {
        let locks = if round % 2 == 0 { &f.service } else { &f.peer };
        let guard = locks.acquire(&key, &patient()).await.unwrap();
        assert!(guard.fence() > last, "{} after {last}", guard.fence());
        last = guard.fence();
        guard.release().await.unwrap();
    }
}

/// F5: the token grows with every holding, also of a key that nobody used for a while.
pub async fn fencing_tokens_only_grow(f: LockFixture) {
    let (key, other) = (f.key("k"), f.key("other"));
    let mut last = FencingToken(0);
    for _ in 0..30 {
        let guard = f.service.acquire(&key, &patient()).await.unwrap();
        assert!(guard.fence() > last, "{} after {last}", guard.fence());
        last = guard.fence();
        guard.release().await.unwrap();
        f.service.acquire(&other, &patient()).await.unwrap().release().await.unwrap();
    }
}

/// F1: `with_lock` answers what the work answers, errors of the work included.
pub async fn work_under_a_lock_answers_what_it_answers(f: LockFixture) {
    let key = f.key("k");
    assert_eq!(f.service.with_lock(&key, async { 42 }).await.unwrap(), 42);
    let failed: Result<u32, &str> = f.service.with_lock(&key, async { Err("no") }).await.unwrap();
    assert_eq!(failed, Err("no"));
    let nested =
        f.service.with_lock(&key, async { f.service.try_acquire(&key, &patient()).await.unwrap().is_none() });
    assert!(nested.await.unwrap(), "the lock is held while the work runs");
    assert!(f.service.try_acquire(&key, &LockOptions::default()).await.unwrap().is_some());
}

/// F4: work that is dropped half-way frees its lock.
pub async fn dropped_work_frees_the_lock(f: LockFixture) {
    let key = f.key("k");
    let (inside, is_inside) = tokio::sync::oneshot::channel();
    let (locks, same) = (f.service.clone(), key.clone());
    let work = tokio::spawn(async move {
        let endless = async {
            let _ = inside.send(());
            std::future::pending::<()>().await;
        };
        locks.with_lock(&same, endless).await
    });
    is_inside.await.unwrap();
    work.abort();
    assert!(work.await.unwrap_err().is_cancelled());
    f.service.acquire(&key, &patient()).await.unwrap().release().await.unwrap();
}

/// F13 of COHERENCE: braces, percent signs and other scripts in a name are ordinary, and names stay apart.
pub async fn hostile_keys_are_ordinary(f: LockFixture) {
    let names = ["{", "}", "{a}", "{a}b", "%7B", "%", "a:b", "a b", "é", "*", "?"];
    let mut held = Vec::new();
    for name in names {
        let guard = f.service.try_acquire(&f.key(name), &LockOptions::default()).await.unwrap();
        held.push(guard.unwrap_or_else(|| panic!("{name} is no other's lock")));
    }
    for guard in held {
        guard.release().await.unwrap();
    }
}

/// A8: what is no key, or no possible option, is refused before anything happens.
pub async fn unacceptable_keys_and_options_are_refused(f: LockFixture) {
    let long = "x".repeat(513);
    for key in ["", "a\nb", &long] {
        let refused = f.service.acquire(key, &patient()).await.unwrap_err();
        assert!(matches!(refused, LockError::InvalidKey(_)), "{refused:?}");
        let refused = f.service.try_acquire(key, &patient()).await.unwrap_err();
        assert!(matches!(
            refused,
            LockError::InvalidKey(
                KeyError::Empty | KeyError::TooLong { .. } | KeyError::ControlCharacter { .. }
            )
        ));
    }
    let hasty = LockOptions::default().with_ttl(Duration::from_millis(1));
    let refused = f.service.acquire(&f.key("k"), &hasty).await.unwrap_err();
    assert!(matches!(refused, LockError::InvalidOptions { .. }), "{refused:?}");
}
