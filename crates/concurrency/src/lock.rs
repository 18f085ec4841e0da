//! Locks of this process: fair, handed from holder to waiter, and forgotten when nobody uses them.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use cache_core::{Clock, FencingToken, HeldLock, LockError, LockGuard, LockOptions, key};
use metrics::{counter, histogram};
use parking_lot::Mutex;
use tokio::sync::oneshot;

const SHARDS: usize = 64;

/// The locks. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalLocks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    shards: Box<[Mutex<Queues>]>,
    hasher: RandomState,
    next_waiter: AtomicU64,
    last_fence: AtomicU64,
    clock: Clock,
}

type Queues = HashMap<Box<str>, Queue>;

/// A key that is held, and who waits for it in the order of arrival. A key that is not held has no queue.
type Queue = VecDeque<Waiter>;

#[derive(Debug)]
struct Waiter {
    id: u64,
    wake: oneshot::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            next_waiter: AtomicU64::new(0),
            last_fence: AtomicU64::new(0),
            clock: Clock::system(),
        }
    }
}

impl LocalLocks {
    #[tracing::instrument(name = "lock_wait", level = "debug", skip_all)]
    pub(crate) async fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, LockError> {
        check(key, options)?;
        let started = Instant::now();
        let key: Arc<str> = key.into();
        if let Some(mut place) = self.0.enter(&key) {
            if tokio::time::timeout(options.wait, &mut place.woken).await.is_err() {
                counter!("lock_timeouts_total").increment(1);
                return Err(LockError::Timeout { waited: started.elapsed() });
            }
            place.taken = true;
        }
        histogram!("lock_wait_seconds").record(started.elapsed().as_secs_f64());
        Ok(self.0.hold(key))
    }

    pub(crate) fn try_acquire(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        check(key, options)?;
        let free = {
            let mut shard = self.0.shard(key).lock();
            let free = !shard.contains_key(key);
            if free {
                shard.insert(key.into(), Queue::new());
            }
            free
        };
        Ok(free.then(|| self.0.hold(key.into())))
    }

    pub(crate) fn kept(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

fn check(key: &str, options: &LockOptions) -> Result<(), LockError> {
    key::validate(key)?;
    options.validate()
}

impl Shared {
    fn shard(&self, key: &str) -> &Mutex<Queues> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Takes the key (`None`), or a place in its queue.
    fn enter(self: &Arc<Self>, key: &Arc<str>) -> Option<Place> {
        let mut shard = self.shard(key).lock();
        let Some(queue) = shard.get_mut(&**key) else {
            shard.insert((&**key).into(), Queue::new());
            return None;
        };
        let id = self.next_waiter.fetch_add(1, Ordering::Relaxed);
        let (wake, woken) = oneshot::channel();
        queue.push_back(Waiter { id, wake });
        Some(Place { locks: Arc::clone(self), key: Arc::clone(key), id, woken, taken: false })
    }

    fn hold(self: &Arc<Self>, key: Arc<str>) -> LockGuard {
        LockGuard::new(Held { fence: self.next_fence(), locks: Arc::clone(self), key })
    }

    /// Grows with every call, and beyond what an earlier process gave out as long as clocks run forward: so
    /// nothing has to be remembered of a key that is free.
    fn next_fence(&self) -> FencingToken {
        let micros = self.clock.unix_ms().saturating_mul(1_000);
        let grow = |last: u64| Some(micros.max(last + 1));
        let last = self.last_fence.fetch_update(Ordering::SeqCst, Ordering::SeqCst, grow);
        FencingToken(micros.max(last.unwrap_or_default() + 1))
    }

    /// Hands the key to the first waiter who is still there.
    fn release(&self, key: &str) {
        let mut shard = self.shard(key).lock();
        let Some(queue) = shard.get_mut(key) else { return };
        while let Some(next) = queue.pop_front() {
            if next.wake.send(()).is_ok() {
                return;
            }
        }
        shard.remove(key);
    }
}

/// A place in a queue. Given up when dropped; a key that was handed over and not taken is passed on.
#[derive(Debug)]
struct Place {
    locks: Arc<Shared>,
    key: Arc<str>,
    id: u64,
    woken: oneshot::Receiver<()>,
    taken: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        {
            let mut shard = self.locks.shard(&self.key).lock();
            if let Some(queue) = shard.get_mut(&*self.key)
                && let Some(at) = queue.iter().position(|waiter| waiter.id == self.id)
            {
                queue.remove(at);
                return;
            }
        }
        // Not in the queue any more: the key was handed to us.
        self.locks.release(&self.key);
    }
}

#[derive(Debug)]
struct Held {
    locks: Arc<Shared>,
    key: Arc<str>,
    fence: FencingToken,
}

#[async_trait]
impl HeldLock for Held {
    fn key(&self) -> &str {
        &self.key
    }

    fn fence(&self) -> FencingToken {
        self.fence
    }

    async fn lost(&self) {
        std::future::pending::<()>().await;
    }

    async fn release(self: Box<Self>) -> Result<(), LockError> {
        // Dropping it does.
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.release(&self.key);
    }
}
