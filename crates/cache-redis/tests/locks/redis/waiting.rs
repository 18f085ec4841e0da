//! The queue: order, wake-ups, and those who vanish from it.

use std::time::{Duration, Instant, SystemTime};

use cache_core::prelude::*;
use cache_core::{LockError, LockOptions};
use conformance::redis_server::RedisServer;
use tokio::sync::mpsc;

use crate::fleet::{
    ALIVE, OWNER, QUEUE, SLACK, instance, ms, only_the_fence_is_left, queued, take, ttl, until,
};

/// F3: waiters are woken by the release, by messages between instances: each handover takes a small part of the
/// second after which they would ask by themselves.
#[tokio::test]
async fn a_release_wakes_the_next_one() {
    let server = RedisServer::start();
    let (here, there) = (instance(&server.url()), instance(&server.url()));
    let mut guard = take(&here).await;
    let (mut released, mut dropped) = (Vec::new(), Vec::new());
    for round in 0..24 {
        let next = if round % 2 == 0 { there.clone() } else { here.clone() };
        let waiter = tokio::spawn(async move { (take(&next).await, Instant::now()) });
        until("the waiter", || queued(&server) == 1).await;
        let (began, times) = (Instant::now(), if round % 4 < 2 { &mut released } else { &mut dropped });
        if round % 4 < 2 {
            guard.release().await.expect("released");
        } else {
            drop(guard);
        }
        let (taken, at) = waiter.await.expect("no panic");
        times.push(at - began);
        guard = taken;
    }
    for mut times in [released, dropped] {
        times.sort();
        // The median: the listener of an instance that has just begun may miss the first.
        assert!(times[6] < ms(200), "{times:?}");
    }
    guard.release().await.expect("released");
    only_the_fence_is_left(&server).await;
}

/// F3: a wake-up that is lost costs a second, not the whole wait.
#[tokio::test]
async fn a_lost_wake_up_costs_a_second() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let guard = take(&locks).await;
    let waiter = tokio::spawn({
        let locks = locks.clone();
        async move { take(&locks).await }
    });
    until("the waiter", || queued(&server) == 1).await;
    // Freed, and nobody is told.
    server.command(&["DEL", OWNER]);
    let freed = Instant::now();
    let taken = waiter.await.expect("no panic");
    assert!(freed.elapsed() < ms(1_000) + SLACK, "{:?}", freed.elapsed());
    assert!(matches!(guard.release().await, Err(LockError::Lost)));
    taken.release().await.expect("released");
}

/// F3: without a subscription the waiters ask by themselves, and in their order.
#[tokio::test]
async fn waiters_get_on_without_a_subscription() {
    let server = RedisServer::start();
    // A user who may listen to nothing.
    server.command(&["ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "resetchannels"]);
    let url = format!("redis://deaf:pw@{}", server.address());
    let (here, there) = (instance(&url), instance(&url));
    let guard = here.acquire("k", &ttl(ms(500))).await.expect("the lock");
    let waiter = tokio::spawn(async move { take(&there).await });
    until("the waiter", || queued(&server) == 1).await;
    let freed = Instant::now();
    guard.release().await.expect("released, though nobody could be told");
    let _taken = waiter.await.expect("no panic");
    assert!(freed.elapsed() < ms(2_000) + SLACK, "{:?}", freed.elapsed());
}

/// F3: first come, first served, whichever instance one waits on.
#[tokio::test]
async fn the_order_of_arrival_holds_across_instances() {
    const WAITERS: usize = 12;
    let server = RedisServer::start();
    let fleet = [instance(&server.url()), instance(&server.url()), instance(&server.url())];
    let guard = take(&fleet[0]).await;
    let (served, mut order) = mpsc::unbounded_channel();
    let mut waiters = tokio::task::JoinSet::new();
    for number in 0..WAITERS {
        let (locks, served) = (fleet[number % fleet.len()].clone(), served.clone());
        waiters.spawn(async move {
            let guard = take(&locks).await;
            served.send((number, guard.fence())).expect("somebody listens");
            guard.release().await.expect("released");
        });
        until("the waiter", || queued(&server) == number + 1).await;
    }
    guard.release().await.expect("released");
    waiters.join_all().await;
    drop(served);
    let mut seen = Vec::new();
    while let Some(next) = order.recv().await {
        seen.push(next);
    }
    let numbers: Vec<usize> = seen.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (0..WAITERS).collect::<Vec<_>>());
    assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1), "tokens grow in that order: {seen:?}");
    only_the_fence_is_left(&server).await;
}

/// F3, F4: a waiter whose process was killed is passed over once it has been silent for two seconds.
#[test]
fn a_dead_waiter_is_passed_over() {
    let server = RedisServer::start();
    let url = server.url();
    let survivor = tokio::runtime::Runtime::new().expect("a runtime");
    let victim = tokio::runtime::Runtime::new().expect("a runtime");
    survivor.block_on(async {
        let locks = instance(&url);
        let guard = take(&locks).await;
        let doomed = instance(&url);
        victim.spawn(async move {
            let _ = doomed.acquire("k", &LockOptions::default().with_wait(Duration::from_secs(60))).await;
        });
        until("the first", || queued(&server) == 1).await;
        let second = tokio::spawn({
            let locks = locks.clone();
            async move { take(&locks).await }
        });
        until("the second", || queued(&server) == 2).await;
        kill(victim);
        assert_eq!(queued(&server), 2, "it could not give its place up");
        let killed = Instant::now();
        guard.release().await.expect("released");
        let taken = second.await.expect("no panic");
        // Two seconds of silence, and then the second one asks, which it does each second.
        assert!(killed.elapsed() < ms(3_000) + SLACK, "{:?}", killed.elapsed());
        taken.release().await.expect("released");
        only_the_fence_is_left(&server).await;
    });
}

/// Ends a runtime so that its tasks cannot say good-bye.
fn kill(runtime: tokio::runtime::Runtime) {
    runtime.shutdown_background();
}

/// F1, F3: a free lock that somebody waits for is not snatched away: a newcomer neither gets it at once nor comes first.
#[tokio::test]
async fn a_newcomer_does_not_push_in() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    // One who was woken a moment ago and has not asked yet.
    let now = || SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let soon = now() + ms(1_000);
    server.command(&["ZADD", QUEUE, "1", "ff/1"]);
    server.command(&["ZADD", ALIVE, &soon.as_millis().to_string(), "ff/1"]);
    assert!(locks.try_acquire("k", &LockOptions::default()).await.expect("asked").is_none());
    let taken = take(&locks).await;
    assert!(now() + ms(1) >= soon, "only once the other was silent for too long");
    taken.release().await.expect("released");
    only_the_fence_is_left(&server).await;
}

/// F3: who waits keeps its place, however long: it is not taken for dead.
#[tokio::test]
async fn a_patient_waiter_keeps_its_place() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let guard = take(&locks).await;
    let first = tokio::spawn({
        let locks = locks.clone();
        async move { take(&locks).await }
    });
    until("the first", || queued(&server) == 1).await;
    let place = server.command(&["ZRANGE", ALIVE, "0", "0"]);
    tokio::time::sleep(ms(2_600)).await;
    assert_eq!(server.command(&["ZRANGE", ALIVE, "0", "0"]).items(), place.items());
    let second = tokio::spawn(async move { take(&locks).await });
    until("the second", || queued(&server) == 2).await;
    guard.release().await.expect("released");
    let first = first.await.expect("no panic");
    assert!(!second.is_finished(), "the one who waited longer is first");
    first.release().await.expect("released");
    second.await.expect("no panic").release().await.expect("released");
}

/// F3: waiting ends with `Timeout` in its time, and gives the place up.
#[tokio::test]
async fn waiting_ends_in_its_time() {
    let server = RedisServer::start();
    let (here, there) = (instance(&server.url()), instance(&server.url()));
    let guard = take(&here).await;
    let limit = ms(300);
    let began = Instant::now();
    let refused = there.acquire("k", &LockOptions::default().with_wait(limit)).await;
    assert!(matches!(refused, Err(LockError::Timeout { waited }) if waited >= limit), "{refused:?}");
    assert!(began.elapsed() < limit + SLACK, "{:?}", began.elapsed());
    until("the place given up", || queued(&server) == 0).await;
    assert_eq!(there.waiting(), 0);
    guard.release().await.expect("released");
    only_the_fence_is_left(&server).await;
}
