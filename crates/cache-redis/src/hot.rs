//! The one multiplexed connection that everything quick shares: made when it is needed, watched, made anew.
//!
//! Why not the library's `ConnectionManager`: it does not reconnect after time-outs, so that on a half-open
//! link every call fails until the kernel gives up, and when its one attempt to reconnect has failed nothing
//! retries until somebody calls. Here a connection that broke, or was silent for too long, is given up, and the
//! next call makes a new one; the circuit breaker keeps that from becoming a storm. So is one whose runtime ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cache_core::{Clock, Tick};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult,
};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

/// Time-outs in a row after which a connection is taken for dead. So is one on which calls were only given up
/// for as many response deadlines: callers may have less patience than the link.
const MAX_TIMEOUTS: u32 = 3;

/// Something quick to do on a connection, perhaps twice.
pub(crate) trait Work: Sync {
    /// Does it.
    fn perform<T: FromRedisValue + Send>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = RedisResult<T>> + Send;
}

impl Work for Cmd {
    async fn perform<T: FromRedisValue + Send>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<T> {
        // As `query_async`, without its box.
        let answer = connection.send_packed_command(self).await?;
        Ok(redis::from_redis_value(answer.extract_error()?)?)
    }
}

/// Several commands in one round trip; not atomic.
impl Work for Pipeline {
    async fn perform<T: FromRedisValue + Send>(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<T> {
        self.query_async(connection).await
    }
}

/// The shared connection, whichever it is at present.
pub(crate) struct Hot(Arc<Slot>);

struct Slot {
    client: Client,
    config: AsyncConnectionConfig,
    /// How long calls may be given up without an answer.
    patience: Duration,
    clock: Clock,
    current: ArcSwapOption<Kept>,
    /// One task connects, the others wait for it and share its error.
    connecting: Mutex<Option<RedisError>>,
    /// Attempts to connect that ended: who waited through one does not make another.
    attempts: AtomicU64,
    made: AtomicU32,
    silence: Silence,
}

/// One connection, with the number that tells it from its predecessors.
#[derive(Clone)]
struct Live {
    number: u32,
    connection: MultiplexedConnection,
}

/// The present connection. What a call needs of it is apart: cloning the rest would write to memory that all calls
/// share.
struct Kept {
    live: Live,
    runtime: Sentinel,
}

/// A task that does nothing and ends with its runtime, as the task does that drives a connection: on another runtime
/// nobody would answer.
struct Sentinel(AbortHandle);

impl Sentinel {
    fn new() -> Self {
        Self(tokio::spawn(std::future::pending::<()>()).abort_handle())
    }

    fn is_alive(&self) -> bool {
        !self.0.is_finished()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Live {
    async fn perform<T: FromRedisValue + Send>(mut self, slot: &Slot, work: &impl Work) -> RedisResult<T> {
        let waiting = Waiting { slot, number: self.number, answered: false };
        let answer = work.perform(&mut self.connection).await;
        waiting.ended(answer.as_ref().err());
        answer
    }
}

/// How long the present connection has been silent. Beside it and not in it, so that a call that is answered
/// writes to no memory that others write to: this is the hot path.
#[derive(Default)]
struct Silence {
    /// Time-outs in a row.
    timeouts: AtomicU32,
    /// When a call was first given up without an answer since the last one that came; zero for none.
    since: AtomicU64,
}

impl Hot {
    pub(crate) fn new(client: Client, config: AsyncConnectionConfig, response_timeout: Duration) -> Self {
        Self(Arc::new(Slot {
            client,
            config,
            patience: response_timeout * MAX_TIMEOUTS,
            clock: Clock::system(),
            current: ArcSwapOption::empty(),
            connecting: Mutex::new(None),
            attempts: AtomicU64::new(0),
            made: AtomicU32::new(0),
            silence: Silence::default(),
        }))
    }

    /// How many connections were made so far.
    pub(crate) fn made(&self) -> u32 {
        self.0.made.load(Ordering::Relaxed)
    }

    /// The connection there is, or a new one.
    pub(crate) async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        Ok(self.live().await?.connection)
    }

    /// Does some work. When the connection turns out to be gone, once more on a new one: an idle connection
    /// that the server closed is found out by the next command.
    pub(crate) async fn perform<T: FromRedisValue + Send>(&self, work: &impl Work) -> RedisResult<T> {
        let mut once_more = true;
        loop {
            match self.live().await?.perform(&self.0, work).await {
                Err(error) if once_more && error.is_connection_dropped() => once_more = false,
                answer => return answer,
            }
        }
    }

    /// Does some work, once.
    pub(crate) async fn perform_once<T: FromRedisValue + Send>(&self, work: &impl Work) -> RedisResult<T> {
        self.live().await?.perform(&self.0, work).await
    }

    async fn live(&self) -> RedisResult<Live> {
        match self.0.current() {
            Some(live) => Ok(live),
            // Boxed, since it is rare, and would make the future of every call large.
            None => Box::pin(self.new_one()).await,
        }
    }

    async fn new_one(&self) -> RedisResult<Live> {
        let slot = &self.0;
        let seen = slot.attempts.load(Ordering::Acquire);
        let mut failure = slot.connecting.lock().await;
        if let Some(live) = slot.current() {
            return Ok(live);
        }
        if let Some(error) = &*failure
            && slot.attempts.load(Ordering::Acquire) != seen
        {
            return Err(error.clone());
        }
        // A task of its own, so that callers with little patience do not keep everybody from connecting. It
        // ends with the connect deadline.
        let connected = tokio::spawn(Arc::clone(slot).connect()).await.unwrap_or_else(|_| {
            Err(RedisError::from((ErrorKind::Io, "the runtime ended while a connection was made")))
        });
        *failure = connected.as_ref().err().cloned();
        slot.attempts.fetch_add(1, Ordering::Release);
        connected
    }
}

impl Slot {
    fn current(&self) -> Option<Live> {
        self.current.load().as_ref().filter(|kept| kept.runtime.is_alive()).map(|kept| kept.live.clone())
    }

    async fn connect(self: Arc<Self>) -> RedisResult<Live> {
        let connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        self.silence.end();
        let live = Live { number, connection };
        self.current.store(Some(Arc::new(Kept { live: live.clone(), runtime: Sentinel::new() })));
        Ok(live)
    }

    fn is_current(&self, number: u32) -> bool {
        self.current.load().as_ref().is_some_and(|kept| kept.live.number == number)
    }

    /// Lets go of a connection, unless another has taken its place already.
    fn give_up(&self, number: u32) {
        self.current.rcu(|current| current.clone().filter(|kept| kept.live.number != number));
    }
}

impl Silence {
    /// Written only when there is something to forget.
    fn end(&self) {
        if self.timeouts.load(Ordering::Relaxed) != 0 {
            self.timeouts.store(0, Ordering::Relaxed);
        }
        if self.since.load(Ordering::Relaxed) != 0 {
            self.since.store(0, Ordering::Relaxed);
        }
    }
}

/// A call that has not ended. Watches over its connection: one that is broken, or silent for too long, is given
/// up, and the next call makes another.
struct Waiting<'a> {
    slot: &'a Slot,
    number: u32,
    answered: bool,
}

impl Waiting<'_> {
    fn ended(mut self, error: Option<&RedisError>) {
        let slot = self.slot;
        match error {
            // Of a connection that was given up already it says nothing about the present one.
            Some(error) if error.is_timeout() && slot.is_current(self.number) => {
                if slot.silence.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_TIMEOUTS {
                    slot.give_up(self.number);
                }
            }
            Some(error) if error.is_timeout() => {}
            Some(error) if error.is_connection_dropped() || error.is_unrecoverable_error() => {
                self.answered = true;
                slot.give_up(self.number);
            }
            _ => {
                self.answered = true;
                slot.silence.end();
            }
        }
    }
}

impl Drop for Waiting<'_> {
    /// Without an answer: the deadline passed, or the caller left.
    fn drop(&mut self) {
        let slot = self.slot;
        if self.answered || !slot.is_current(self.number) {
            return;
        }
        let now = slot.clock.now();
        let since = slot.silence.since.load(Ordering::Relaxed);
        if since == 0 {
            slot.silence.since.store(now.as_nanos(), Ordering::Relaxed);
        } else if now.since(Tick::from_nanos(since)) >= slot.patience {
            slot.give_up(self.number);
        }
    }
}
