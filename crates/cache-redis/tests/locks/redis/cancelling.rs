//! Dropped at every point, and nothing is left.

use std::time::{Duration, Instant};

use cache_core::LockOptions;
use cache_core::prelude::*;
use conformance::hygiene;
use conformance::proxy::{Direction, Gate, Proxy};
use conformance::redis_server::RedisServer;

use crate::fleet::{
    SLACK, instance, instance_behind, ms, only_the_fence_is_left, owner, queued, take, until,
};

/// F4: an attempt is dropped before its question reached the server; it is settled after it did.
#[tokio::test]
async fn dropped_before_the_server_was_asked() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let locks = instance_behind(&proxy);
    take(&locks).await.release().await.expect("warm");
    proxy.set(Direction::ToServer, Gate::Hold);
    assert!(tokio::time::timeout(ms(50), locks.acquire("k", &LockOptions::default())).await.is_err());
    assert_eq!(locks.waiting(), 0);
    proxy.set(Direction::ToServer, Gate::Pass);
    take(&locks).await.release().await.expect("released");
    only_the_fence_is_left(&server).await;
}

/// F4: an attempt is dropped while the server's yes is on its way; the lock is given up, not kept for its TTL.
#[tokio::test]
async fn dropped_while_the_yes_is_on_its_way() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let (here, there) = (instance_behind(&proxy), instance(&server.url()));
    // The server must know the script that gives up: no answer that it does not could arrive below.
    drop(take(&here).await);
    take(&here).await.release().await.expect("warm");
    for waiting in [true, false] {
        proxy.set(Direction::ToClient, Gate::Hold);
        let asking = async {
            if waiting {
                let _ = here.acquire("k", &LockOptions::default()).await;
            } else {
                let _ = here.try_acquire("k", &LockOptions::default()).await;
            }
        };
        assert!(tokio::time::timeout(ms(50), asking).await.is_err());
        // Long before the thirty seconds for which it was granted.
        until("the end of it", || owner(&server).is_none()).await;
        proxy.set(Direction::ToClient, Gate::Pass);
        take(&there).await.release().await.expect("released");
    }
    only_the_fence_is_left(&server).await;
}

/// F4: a waiter is dropped in the queue, and its place goes at once.
#[tokio::test]
async fn dropped_in_the_queue() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let guard = take(&locks).await;
    for _ in 0..5 {
        let waiter = tokio::spawn({
            let locks = locks.clone();
            async move { take(&locks).await }
        });
        until("the waiter", || queued(&server) == 1).await;
        waiter.abort();
        assert!(waiter.await.is_err_and(|end| end.is_cancelled()));
        let dropped = Instant::now();
        until("its end", || queued(&server) == 0).await;
        assert!(dropped.elapsed() < SLACK, "not by the queue's expiry: {:?}", dropped.elapsed());
        assert_eq!(locks.waiting(), 0);
    }
    guard.release().await.expect("released");
    only_the_fence_is_left(&server).await;
}

/// F4: a release that is dropped goes on.
#[tokio::test]
async fn dropped_while_it_lets_go() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let locks = instance_behind(&proxy);
    let guard = take(&locks).await;
    proxy.set(Direction::ToServer, Gate::Hold);
    assert!(tokio::time::timeout(ms(50), guard.release()).await.is_err());
    proxy.set(Direction::ToServer, Gate::Pass);
    until("the release", || owner(&server).is_none()).await;
    only_the_fence_is_left(&server).await;
}

/// F4: what could not be given up while the server was away is given up when it is back, well before its TTL.
#[tokio::test]
async fn dropped_while_the_server_is_away() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let (here, there) = (instance_behind(&proxy), instance(&server.url()));
    let guard = take(&here).await;
    proxy.refuse().await;
    proxy.cut().await;
    drop(guard);
    tokio::time::sleep(ms(300)).await;
    assert!(owner(&server).is_some(), "it could not be told");
    proxy.heal().await;
    // It is tried each second, and the circuit breaker adds as much; the TTL would take thirty.
    let options = LockOptions::default().with_wait(Duration::from_secs(15));
    there.acquire("k", &options).await.expect("given up").release().await.expect("released");
}

/// F4, SH5: dropped anywhere, in any mixture, by many at the same time: no lock, no place, no waiter and no task is
/// left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_anywhere() {
    let server = RedisServer::start();
    {
        let fleet = [instance(&server.url()), instance(&server.url())];
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..16 {
            let locks = fleet[number % 2].clone();
            tasks.spawn(async move {
                for _ in 0..40 {
                    let patience = Duration::from_micros(rand::random_range(0..4_000));
                    let work = async {
                        tokio::time::sleep(Duration::from_micros(rand::random_range(0..500))).await;
                    };
                    let _ = tokio::time::timeout(patience, locks.with_lock("k", work)).await;
                }
            });
        }
        tasks.join_all().await;
        take(&fleet[0]).await.release().await.expect("released");
        only_the_fence_is_left(&server).await;
        assert_eq!((fleet[0].waiting(), fleet[1].waiting()), (0, 0));
    }
    hygiene::no_task_left().await;
}

/// F6: twenty thousand different locks, and this process and the server remember only the tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_different_locks_leave_nothing() {
    const EACH: usize = 2_500;
    let server = RedisServer::start();
    {
        let locks = instance(&server.url());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let locks = locks.clone();
            tasks.spawn(async move {
                for number in 0..EACH {
                    let key = format!("k{task}/{number}");
                    let guard = locks.acquire(&key, &LockOptions::default()).await.expect("free");
                    if number % 2 == 0 { guard.release().await.expect("released") } else { drop(guard) }
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(locks.waiting(), 0);
    }
    hygiene::no_task_left().await;
    let keys = server.command(&["KEYS", "*lock:*"]);
    let keys: Vec<String> = keys.items().iter().filter_map(conformance::resp::Reply::text).collect();
    assert_eq!(keys.len(), 8 * EACH);
    assert!(keys.iter().all(|key| key.ends_with(":fence")), "only tokens");
}
