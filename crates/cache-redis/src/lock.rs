//! Locks across instances: one holder per key in the whole fleet, with a fencing token.
//!
//! Each step is one script on the server, timed by the server's clock. A waiter stands in a queue there, is woken
//! by a message for its instance alone, and asks again by itself when the holder's time would end, at least every
//! second: a lost message costs no more. A holder is watched over by a task of its own, which renews, tells the
//! holder when that failed, and lets go when the guard is dropped.
//!
//! | you look for | module |
//! |---|---|
//! | keys on the server, ids of attempts | `names` |
//! | the scripts, called | `server` |
//! | an attempt, and how it is settled when dropped | `place` |
//! | waking | `waiters` |
//! | holding, renewing, letting go | `keeper` |
//!
//! Why no majority of several masters (Redlock): it rests on the same clocks and pauses, and gives no fencing
//! token; after a pause only the resource itself can refuse.

mod keeper;
mod names;
mod place;
mod server;
mod waiters;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backon::BackoffBuilder;
use cache_core::key::validate;
use cache_core::{InvalidationBus, LockError, LockGuard, LockOptions, Locks, Subscription};
use metrics::{counter, histogram};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::bus::RedisBus;
use crate::connection::RedisLink;
use crate::error::CallError;
use crate::lock::names::{Id, Names};
use crate::lock::place::{Attempt, Place};
use crate::lock::waiters::Waiters;

/// A TTL or a wait beyond this is taken for this: what a server and a clock can still add.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Numbers the attempts of this process, whichever locks they are made on: several may share a bus, and with it the
/// name of the instance. The same id twice would be the same holder.
static ATTEMPTS: AtomicU64 = AtomicU64::new(0);

/// What could not be settled at once and is tried again, at the same time. Beyond, the server's own expiry does
/// it.
const MAX_SETTLING: usize = 1_024;

/// [`Locks`] in Redis. Clones share everything.
///
/// Exclusive while one server answers and clocks run forward; after a failover two may hold for a moment, and a
/// holder that was paused does not know yet: let the resource check the [fence](LockGuard::fence).
///
/// ```no_run
/// use cache_core::prelude::*;
/// use cache_redis::{RedisBus, RedisLink, RedisLocks, RedisSettings};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let link = RedisLink::lazy(RedisSettings::from_url("redis://localhost")?)?;
/// let locks = RedisLocks::on(RedisBus::on(link));
/// let sum = locks.with_lock("ledger/7", async { 1 + 1 }).await?;
/// # assert_eq!(sum, 2);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RedisLocks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: RedisLink,
    bus: Arc<RedisBus>,
    waiters: Arc<Waiters>,
    settling: Semaphore,
    /// Wake-ups, and the news that some may have been missed.
    _listening: Mutex<[Subscription; 2]>,
}

impl RedisLocks {
    /// Locks on a link that others share, with waiters woken over the link's bus.
    #[must_use]
    pub fn on(bus: Arc<RedisBus>) -> Self {
        let waiters = Arc::new(Waiters::new(bus.instance()));
        let woken = Arc::clone(&waiters);
        let listening =
            [bus.on_wake(move |payload| woken.wake(payload)), bus.subscribe(Arc::clone(&waiters) as Arc<_>)];
        Self(Arc::new(Shared {
            link: bus.link().clone(),
            bus,
            waiters,
            settling: Semaphore::new(MAX_SETTLING),
            _listening: Mutex::new(listening),
        }))
    }

    /// Attempts of this instance that are under way now; for tests and diagnostics.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiters.len()
    }
}

#[async_trait]
impl Locks for RedisLocks {
    #[tracing::instrument(name = "lock_wait", level = "debug", skip_all)]
    async fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, LockError> {
        let (started, wait) = (Instant::now(), options.wait.min(LONGEST));
        let mut place = self.0.place(key, options)?;
        loop {
            let pause = match place.ask(!wait.is_zero()).await? {
                Attempt::Held(lease) => {
                    histogram!("lock_wait_seconds").record(started.elapsed().as_secs_f64());
                    return Ok(place.hold(lease));
                }
                Attempt::Busy { pause } => pause,
            };
            if started.elapsed() >= wait {
                counter!("lock_timeouts_total").increment(1);
                return Err(LockError::Timeout { waited: started.elapsed() });
            }
            place.wait((Instant::now() + pause).min(started + wait)).await;
        }
    }

    #[tracing::instrument(name = "lock_try", level = "debug", skip_all)]
    async fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, LockError> {
        let mut place = self.0.place(key, options)?;
        Ok(match place.ask(false).await? {
            Attempt::Held(lease) => Some(place.hold(lease)),
            Attempt::Busy { .. } => None,
        })
    }
}

impl Shared {
    fn place(self: &Arc<Self>, key: &str, options: &LockOptions) -> Result<Place, LockError> {
        validate(key)?;
        options.validate()?;
        // Without a runtime when this was made, listening begins here.
        self.bus.listen();
        let id = Id::new(self.bus.instance(), ATTEMPTS.fetch_add(1, Ordering::Relaxed));
        Ok(Place::new(Arc::clone(self), Names::of(&self.link, key), id, options.ttl.min(LONGEST)))
    }

    /// Ends whatever an id has on the server. Tried again until it is done, or the server has forgotten the id by
    /// itself.
    async fn settle(&self, names: &Names, id: &Id, ttl: Duration) {
        let until = Instant::now() + ttl.max(server::PATIENCE);
        let Err(mut failed) = server::give_up(&self.link, names, id).await else { return };
        let pauses = backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(20))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build();
        let turn = self.settling.try_acquire();
        for pause in pauses {
            if turn.is_err() || Instant::now() + pause >= until || !is_transient(&failed) {
                break;
            }
            tokio::time::sleep(pause).await;
            match server::give_up(&self.link, names, id).await {
                Ok(()) => return,
                Err(error) => failed = error,
            }
        }
        tracing::debug!(error = %failed, "a lock could not be given up: it ends by its TTL");
    }
}

fn is_transient(error: &CallError) -> bool {
    error.clone().into_backend().kind.is_transient()
}

fn refused(error: CallError) -> LockError {
    LockError::Backend(error.into_backend())
}
