//! Many contenders in two instances, and what they lived through, checked.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache_core::LockOptions;
use cache_core::prelude::*;
use conformance::redis_server::RedisServer;

use crate::fleet::{instance, only_the_fence_is_left};

/// A time in which somebody held the lock, and by which token.
#[derive(Debug, Clone, Copy)]
struct Held {
    from: Instant,
    to: Instant,
    fence: u64,
}

/// F1, F5, SH7: no two holders at the same time, and tokens in the order of their times; while contenders time out,
/// vanish and are woken, and connections are killed under them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_hold_at_the_same_time() {
    let server = RedisServer::start();
    let fleet = [instance(&server.url()), instance(&server.url())];
    let history = Arc::new(Mutex::new(Vec::<Held>::new()));
    let mut contenders = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (locks, history) = (fleet[number % 2].clone(), Arc::clone(&history));
        contenders.spawn(async move {
            for _ in 0..40 {
                let wait = Duration::from_millis(rand::random_range(1..2_000));
                let Ok(guard) = locks.acquire("k", &LockOptions::default().with_wait(wait)).await else {
                    continue;
                };
                let from = Instant::now();
                if rand::random_bool(0.5) {
                    tokio::time::sleep(Duration::from_micros(rand::random_range(0..2_000))).await;
                }
                // Before letting go: from then on another may have it.
                let held = Held { from, to: Instant::now(), fence: guard.fence().0 };
                history.lock().expect("not poisoned").push(held);
                if rand::random_bool(0.3) {
                    drop(guard);
                } else {
                    let _ = guard.release().await;
                }
            }
        });
    }
    let faults = async {
        for kind in ["pubsub", "normal", "pubsub"] {
            tokio::time::sleep(Duration::from_millis(150)).await;
            server.command(&["CLIENT", "KILL", "TYPE", kind]);
        }
    };
    tokio::join!(contenders.join_all(), faults);
    let mut history = history.lock().expect("not poisoned").clone();
    history.sort_by_key(|held| held.from);
    assert!(history.len() > 300, "most got it: {}", history.len());
    for pair in history.windows(2) {
        assert!(pair[0].to <= pair[1].from, "two at the same time: {pair:?}");
        assert!(pair[0].fence < pair[1].fence, "tokens out of order: {pair:?}");
    }
    only_the_fence_is_left(&server).await;
}
