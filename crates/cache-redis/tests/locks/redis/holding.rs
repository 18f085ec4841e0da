//! Holders that are killed, cut off or frozen, and a server that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cache_core::prelude::*;
use cache_core::{LockError, LockGuard, LockOptions};
use cache_redis::{RedisBus, RedisLink, RedisLocks, RedisSettings};
use conformance::hygiene;
use conformance::proxy::Proxy;
use conformance::redis_server::RedisServer;

use crate::fleet::{
    FENCE, OWNER, SLACK, instance, instance_behind, ms, only_the_fence_is_left, owner, queued, take, ttl,
    until,
};

/// F2: a lock that is held is renewed: nobody else gets it, for as long as it is held.
#[tokio::test]
async fn a_held_lock_outlives_its_ttl() {
    let server = RedisServer::start();
    let (here, there) = (instance(&server.url()), instance(&server.url()));
    let guard = here.acquire("k", &ttl(ms(150))).await.expect("the lock");
    let held = Instant::now();
    while held.elapsed() < ms(1_000) {
        let taken = there.try_acquire("k", &LockOptions::default()).await.expect("asked");
        assert!(taken.is_none(), "taken after {:?}", held.elapsed());
        tokio::time::sleep(ms(10)).await;
    }
    assert!(tokio::time::timeout(ms(10), guard.lost()).await.is_err(), "it is held");
    guard.release().await.expect("released");
    take(&there).await.release().await.expect("released");
    only_the_fence_is_left(&server).await;
}

/// F1: two services on one bus are two contenders, though they are one instance to everybody else.
#[tokio::test]
async fn two_services_on_one_bus_exclude_each_other() {
    let server = RedisServer::start();
    let link = RedisLink::lazy(RedisSettings::from_url(&server.url()).expect("a URL")).expect("a link");
    let bus = RedisBus::on(link);
    let (one, two) = (RedisLocks::on(bus.clone()), RedisLocks::on(bus));
    let guard = take(&one).await;
    assert!(two.try_acquire("k", &LockOptions::default()).await.expect("asked").is_none());
    let waiter = tokio::spawn(async move { take(&two).await });
    until("the waiter", || queued(&server) == 1).await;
    guard.release().await.expect("released");
    waiter.await.expect("no panic").release().await.expect("released");
    only_the_fence_is_left(&server).await;
}

/// SH7, F4: a holder that is cut off knows before another takes over, which is soon after its TTL. Its token is
/// lower.
#[tokio::test]
async fn a_holder_that_is_cut_off_knows_before_another_takes_over() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let (here, there) = (instance_behind(&proxy), instance(&server.url()));
    let guard = here.acquire("k", &ttl(ms(1_000))).await.expect("the lock");
    proxy.black_hole();
    let cut = Instant::now();
    let (known, other) = tokio::join!(
        async {
            guard.lost().await;
            Instant::now()
        },
        async { (take(&there).await, Instant::now()) }
    );
    let (other, taken) = other;
    assert!(known < taken, "told {:?} after another had it", known - taken);
    assert!(taken - cut < ms(1_000) + SLACK, "{:?}", taken - cut);
    assert!(guard.fence() < other.fence(), "{} {}", guard.fence(), other.fence());
    // What the first does when it comes back harms nobody.
    proxy.heal().await;
    assert!(matches!(guard.release().await, Err(LockError::Lost)));
    tokio::time::sleep(ms(50)).await;
    assert!(owner(&server).is_some(), "it is the other's");
    other.release().await.expect("still held");
}

/// F4: an answer that took long does not lengthen the holding: its time is counted from before the question.
#[tokio::test]
async fn a_slow_answer_does_not_lengthen_the_holding() {
    use conformance::proxy::{Direction, Gate};
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let (here, there) = (instance_behind(&proxy), instance(&server.url()));
    take(&here).await.release().await.expect("warm");
    proxy.set(Direction::ToClient, Gate::Delay(ms(300)));
    let guard = here.acquire("k", &ttl(ms(1_000))).await.expect("the lock");
    proxy.black_hole();
    let (known, taken) = tokio::join!(
        async {
            guard.lost().await;
            Instant::now()
        },
        async { (take(&there).await, Instant::now()) }
    );
    assert!(known < taken.1, "told {:?} after another had it", known - taken.1);
}

/// SH7: a process that is killed releases nothing; its TTL does.
#[test]
fn a_killed_process_is_followed_within_its_ttl() {
    let server = RedisServer::start();
    let process = tokio::runtime::Runtime::new().expect("a runtime");
    let guard = process
        .block_on(async { instance(&server.url()).acquire("k", &ttl(ms(600))).await.expect("the lock") });
    process.shutdown_background();
    let killed = Instant::now();
    let survivor = tokio::runtime::Runtime::new().expect("a runtime");
    survivor.block_on(async {
        let other = take(&instance(&server.url())).await;
        assert!(killed.elapsed() < ms(600) + SLACK, "{:?}", killed.elapsed());
        assert!(guard.fence() < other.fence());
        guard.lost().await;
        assert!(matches!(guard.release().await, Err(LockError::Backend(_))), "nobody is there to do it");
        other.release().await.expect("released");
    });
}

/// A process of its own: its one thread can be stopped.
struct Process(std::thread::JoinHandle<()>);

/// SH7, F5: a holder that was frozen past its TTL learns it before it can ask anything else, and its late write
/// loses by the token.
#[tokio::test]
async fn a_frozen_holder_knows_and_loses_by_its_token() {
    let server = RedisServer::start();
    let url = server.url();
    let (held, is_held) = std::sync::mpsc::channel();
    let (thaw, thawed) = std::sync::mpsc::channel::<()>();
    let process = Process(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let guard: LockGuard = instance(&url).acquire("k", &ttl(ms(200))).await.expect("the lock");
            held.send(guard.fence()).expect("somebody listens");
            // The whole runtime stands still, the keeper too.
            thawed.recv().expect("thawed");
            let at_once = futures_util::poll!(Box::pin(guard.lost()));
            assert!(at_once.is_ready(), "it knows without asking anybody");
            assert!(matches!(guard.release().await, Err(LockError::Lost)));
        });
    }));
    let fence = tokio::task::spawn_blocking(move || is_held.recv().expect("held")).await.expect("joined");
    // What the lock protects: it remembers the highest token.
    let mut highest = fence;
    let other = take(&instance(&server.url())).await;
    assert!(other.fence() > highest);
    highest = other.fence();
    thaw.send(()).expect("it is there");
    tokio::task::spawn_blocking(move || process.0.join()).await.expect("joined").expect("no panic");
    assert!(fence < highest, "the late write is refused");
    other.release().await.expect("still held");
}

/// F4, SH7: work under a lock is dropped when the lock is lost, here because somebody removed it.
#[tokio::test]
async fn work_is_dropped_with_its_lock() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let dropped = Arc::new(AtomicBool::new(false));
    let witness = Dropped(Arc::clone(&dropped));
    let work = async {
        let _witness = witness;
        server.command(&["SET", OWNER, "ff/1", "PX", "60000"]);
        std::future::pending::<()>().await;
    };
    let began = Instant::now();
    let ended = locks.with_lock_options("k", &ttl(ms(600)), work).await;
    assert!(matches!(ended, Err(LockError::Lost)), "{ended:?}");
    assert!(dropped.load(Ordering::SeqCst));
    assert!(began.elapsed() < ms(200) + SLACK, "at the next renewal, not by the TTL: {:?}", began.elapsed());
    assert_eq!(owner(&server).as_deref(), Some("ff/1"), "the other's lock stays");
}

/// F2: only its owner releases a lock.
#[tokio::test]
async fn anothers_lock_is_not_released() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let guard = take(&locks).await;
    server.command(&["SET", OWNER, "ff/1", "PX", "60000"]);
    assert!(matches!(guard.release().await, Err(LockError::Lost)));
    assert_eq!(owner(&server).as_deref(), Some("ff/1"));
    server.command(&["DEL", OWNER]);
    let dropped = take(&locks).await;
    server.command(&["SET", OWNER, "ff/2", "PX", "60000"]);
    drop((dropped, locks));
    hygiene::no_task_left().await;
    assert_eq!(owner(&server).as_deref(), Some("ff/2"));
}

/// SF4: a server that comes back empty has forgotten who held; the holder learns it at its next renewal, and the
/// next holder's token is still higher.
#[tokio::test]
async fn a_server_that_comes_back_empty_is_noticed() {
    let mut server = RedisServer::start();
    let locks = instance(&server.url());
    let guard = locks.acquire("k", &ttl(ms(3_000))).await.expect("the lock");
    server.restart();
    let restarted = Instant::now();
    guard.lost().await;
    assert!(restarted.elapsed() < ms(1_000) + SLACK, "{:?}", restarted.elapsed());
    let other = take(&locks).await;
    assert!(other.fence() > guard.fence());
    other.release().await.expect("released");
    assert!(matches!(guard.release().await, Err(LockError::Lost)));
}

/// F4, SC3: while the server is frozen a lock runs out by itself, before the server would let another have it.
#[tokio::test]
async fn a_lock_runs_out_while_the_server_is_frozen() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let asked = Instant::now();
    let guard = locks.acquire("k", &ttl(ms(700))).await.expect("the lock");
    server.pause();
    guard.lost().await;
    assert!(asked.elapsed() < ms(700), "{:?}", asked.elapsed());
    let refused = locks.acquire("k", &LockOptions::default()).await.expect_err("nobody answers");
    assert!(matches!(refused, LockError::Backend(_)), "{refused:?}");
    server.resume();
    drop(guard);
    let again = || async { locks.acquire("k", &LockOptions::default()).await.ok() };
    let mut held = None;
    for _ in 0..200 {
        held = again().await;
        if held.is_some() {
            break;
        }
        tokio::time::sleep(ms(20)).await;
    }
    held.expect("it answers again").release().await.expect("released");
    only_the_fence_is_left(&server).await;
}

/// F5: the token grows when the counter is lost, when the server's clock is behind it, and when nobody used the
/// lock in between.
#[tokio::test]
async fn tokens_grow_whatever_happens_to_the_counter() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let fence = async || {
        let guard = take(&locks).await;
        let fence = guard.fence().0;
        guard.release().await.expect("released");
        fence
    };
    let first = fence().await;
    server.command(&["DEL", FENCE]);
    let second = fence().await;
    assert!(second > first, "{second} after {first}");
    // A clock that was put back by a year looks like this.
    let ahead = second + 365 * 24 * 3_600 * 1_000_000;
    server.command(&["SET", FENCE, &ahead.to_string()]);
    assert_eq!(fence().await, ahead + 1);
    assert_eq!(fence().await, ahead + 2);
}

/// F2: an answer that is lost on its way is asked for again, and is the same: no lock is lost by it, nor held
/// twice.
#[tokio::test]
async fn lost_answers_are_asked_for_again() {
    use conformance::proxy::{Direction, Gate};
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let locks = instance_behind(&proxy);
    take(&locks).await.release().await.expect("warm");

    proxy.set(Direction::ToClient, Gate::Hold);
    let (guard, ()) = tokio::join!(take(&locks), async {
        until("the grant", || owner(&server).is_some()).await;
        proxy.cut().await;
        proxy.heal().await;
    });
    let counter = server.command(&["GET", FENCE]).text();
    assert_eq!(counter, Some(guard.fence().to_string()), "granted once");

    proxy.set(Direction::ToClient, Gate::Hold);
    let (released, ()) = tokio::join!(guard.release(), async {
        until("the release", || owner(&server).is_none()).await;
        proxy.cut().await;
        proxy.heal().await;
    });
    released.expect("it was ours");
    only_the_fence_is_left(&server).await;
}
