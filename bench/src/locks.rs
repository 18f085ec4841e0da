//! Locks in Redis: taking a free one, and handing one over to who waits for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cache_core::{LockGuard, LockOptions, Locks};
use cache_redis::{RedisBus, RedisLink, RedisLocks, RedisSettings};
use conformance::redis_server::RedisServer;
use rand::Rng;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use rslock::LockManager;
use tokio::runtime::Runtime;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{per_operation, quantile, runtime};

const PAIRS: usize = 4_000;
const WAITERS: usize = 64;
const POLL: Duration = Duration::from_millis(50);
/// Long enough for all of them to wait.
const QUIET: Duration = Duration::from_millis(150);
const TTL: Duration = Duration::from_secs(30);
/// What a holder does with the lock.
const HOLD: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(120);

/// A lock that is compared.
trait Lock: Clone + Send + Sync + 'static {
    type Held: Send;
    fn take(&self, key: &str) -> impl Future<Output = Self::Held> + Send;
    fn give(&self, key: &str, held: Self::Held) -> impl Future<Output = ()> + Send;
}

impl Lock for RedisLocks {
    type Held = LockGuard;

    async fn take(&self, key: &str) -> LockGuard {
        self.acquire(key, &LockOptions::default().with_ttl(TTL).with_wait(PATIENCE)).await.expect("the lock")
    }

    async fn give(&self, _: &str, held: LockGuard) {
        held.release().await.expect("it was held");
    }
}

/// What many services have: `SET NX` again and again. It even lets go without looking whether it still holds.
#[derive(Clone)]
struct Polling(MultiplexedConnection);

impl Lock for Polling {
    type Held = ();

    async fn take(&self, key: &str) {
        let options = redis::SetOptions::default()
            .conditional_set(redis::ExistenceCheck::NX)
            .with_expiration(redis::SetExpiry::PX(TTL.as_millis() as u64));
        loop {
            let taken: bool =
                self.0.clone().set_options(key, "held", options.clone()).await.expect("an answer");
            if taken {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn give(&self, key: &str, (): ()) {
        let _: () = self.0.clone().del(key).await.expect("an answer");
    }
}

impl Lock for LockManager {
    type Held = rslock::Lock;

    async fn take(&self, key: &str) -> rslock::Lock {
        self.acquire_no_guard(key.as_bytes(), TTL).await.expect("the lock")
    }

    async fn give(&self, _: &str, held: rslock::Lock) {
        self.unlock(&held).await;
    }
}

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let (server, runtime) = (RedisServer::start(), runtime(2));
    let ours = || {
        let link = RedisLink::lazy(RedisSettings::from_url(&server.url())?)?;
        anyhow::Ok(RedisLocks::on(RedisBus::on(link)))
    };
    let bare = runtime.block_on(async {
        redis::Client::open(server.url())?.get_multiplexed_async_connection().await.context("a connection")
    })?;
    // Waiters in two instances.
    let ours = runtime.block_on(async { anyhow::Ok([ours()?, ours()?]) })?;
    let rslock = [LockManager::new(vec![server.url()]), LockManager::new(vec![server.url()])];
    uncontended(size, report, &runtime, &ours[0], &bare, &rslock[0]);
    handoff(size, report, &runtime, &ours, &bare, &rslock)
}

fn uncontended(
    size: Size,
    report: &mut Report,
    runtime: &Runtime,
    ours: &RedisLocks,
    bare: &MultiplexedConnection,
    rslock: &LockManager,
) {
    let mut row = Measured::new("lock_uncontended", "ns/op");
    let pairs = PAIRS / size.less;
    row.measure(
        size.rounds,
        &mut [
            ("ours", &mut || runtime.block_on(take_and_give(ours, pairs))),
            ("bare two round trips", &mut || runtime.block_on(take_and_give(&Polling(bare.clone()), pairs))),
            ("rslock", &mut || runtime.block_on(take_and_give(rslock, pairs))),
        ],
    );
    let ratio = row.median("ours") / row.median("bare two round trips");
    report.at_most("lock_uncontended: ours / bare two round trips", ratio, 1.5);
    report.finish(row);
}

async fn take_and_give<L: Lock>(lock: &L, pairs: usize) -> f64 {
    let keys: Vec<String> = (0..100).map(|n| format!("free-{n}")).collect();
    let began = Instant::now();
    for key in keys.iter().cycle().take(pairs) {
        let held = lock.take(key).await;
        lock.give(key, held).await;
    }
    per_operation(pairs, began)
}

fn handoff(
    size: Size,
    report: &mut Report,
    runtime: &Runtime,
    ours: &[RedisLocks; 2],
    bare: &MultiplexedConnection,
    rslock: &[LockManager; 2],
) -> Result<()> {
    let mut row = Measured::new("lock_handoff", "ns/op");
    let polling = [Polling(bare.clone()), Polling(bare.clone())];
    let drains = if size.less == 1 { 4 } else { 1 };
    for _ in 0..size.rounds {
        both(&mut row, "ours", runtime.block_on(handoffs(ours, drains))?);
        both(&mut row, "bare round trip", runtime.block_on(round_trips(bare, drains)));
        both(&mut row, "polling every 50 ms", runtime.block_on(handoffs(&polling, drains))?);
        both(&mut row, "rslock", runtime.block_on(handoffs(rslock, 1))?);
    }
    let p99 = row.median("ours p99");
    report.at_most("lock_handoff: ours p99 / a round trip", p99 / row.median("bare round trip"), 3.0);
    let bare_p99 = row.median("bare round trip p99");
    report.at_most("lock_handoff: ours p99 / a round trip's p99", p99 / bare_p99, 3.0);
    report.at_least(
        "lock_handoff: polling p50 / ours p50",
        row.median("polling every 50 ms") / row.median("ours"),
        20.0,
    );
    report.at_least(
        "lock_handoff: polling p99 / ours p99",
        row.median("polling every 50 ms p99") / p99,
        20.0,
    );
    report.finish(row);
    Ok(())
}

fn both(row: &mut Measured, subject: &str, mut times: Vec<f64>) {
    row.add(subject, quantile(&mut times, 0.5));
    row.add(&format!("{subject} p99"), quantile(&mut times, 0.99));
}

/// From the moment a holder begins to let go until the next one has the lock, in nanoseconds.
async fn handoffs<L: Lock>(locks: &[L; 2], drains: usize) -> Result<Vec<f64>> {
    let times = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..drains {
        let drained = tokio::time::timeout(PATIENCE, drain(locks, &times)).await;
        drained.context("the waiters did not get the lock")?;
    }
    Ok(std::mem::take(&mut *times.lock().expect("nobody panicked")))
}

/// All waiters get the lock once.
async fn drain<L: Lock>(locks: &[L; 2], times: &Arc<Mutex<Vec<f64>>>) {
    let key: Arc<str> = format!("wanted-{:x}", rand::random::<u64>()).into();
    let given = Arc::new(Mutex::new(Instant::now()));
    let held = locks[0].take(&key).await;
    let mut waiters = tokio::task::JoinSet::new();
    for n in 0..WAITERS {
        let (lock, key) = (locks[n % 2].clone(), Arc::clone(&key));
        let (given, times) = (Arc::clone(&given), Arc::clone(times));
        // Not all in step: whoever polls would else do it all at once.
        let phase = rand::rng().random_range(Duration::ZERO..POLL);
        waiters.spawn(async move {
            tokio::time::sleep(phase).await;
            let held = lock.take(&key).await;
            let took = { given.lock().expect("nobody panicked").elapsed() };
            times.lock().expect("nobody panicked").push(took.as_nanos() as f64);
            tokio::time::sleep(HOLD).await;
            *given.lock().expect("nobody panicked") = Instant::now();
            lock.give(&key, held).await;
        });
    }
    // Until all of them wait.
    tokio::time::sleep(QUIET).await;
    *given.lock().expect("nobody panicked") = Instant::now();
    locks[0].give(&key, held).await;
    waiters.join_all().await;
}

/// As handovers come: after a while of quiet, and then as far apart as they are. A connection that is busy answers
/// sooner, and so does a machine.
async fn round_trips(bare: &MultiplexedConnection, drains: usize) -> Vec<f64> {
    let mut times = Vec::new();
    for at in 0..drains * WAITERS {
        tokio::time::sleep(if at % WAITERS == 0 { QUIET } else { HOLD }).await;
        let began = Instant::now();
        let _: () = redis::cmd("PING").query_async(&mut bare.clone()).await.expect("an answer");
        times.push(began.elapsed().as_nanos() as f64);
    }
    times
}
