//! The door to Redis: one multiplexed connection for everything quick, a pool for what takes long,
//! subscriptions on their own.
//!
//! Why not the library's `ConnectionManager`: it does not reconnect after time-outs, so that on a half-open
//! link every call fails until the kernel gives up, and when its one attempt to reconnect has failed nothing
//! retries until somebody calls. Here a connection that broke, or timed out three times in a row, is dropped,
//! and the next call makes a new one; the circuit breaker keeps that from becoming a storm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use cache_core::{BackendError, BackendErrorKind, Clock, Tick};
use deadpool_redis::{Manager, Pool, PoolError, Runtime, Timeouts};
use parking_lot::RwLock;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult,
    RedisWrite, ToRedisArgs, ToSingleRedisArg,
};
use tokio::sync::Mutex;

use crate::error::CallError;
use crate::policy::{Admission, Breaker};
use crate::settings::{RedisSettings, SettingsError};

/// Time-outs in a row after which a connection is taken for dead. So is one on which calls were only given up
/// for as many response deadlines: callers may have less patience than the link.
const MAX_TIMEOUTS: u32 = 3;

/// Commands that may wait for the one connection before callers wait for each other; the library's 50 makes
/// them queue twice.
const PIPELINE_BUFFER: usize = 1_024;

/// The connections to one Redis, shared by every service that uses it. Clones share everything.
#[derive(Debug, Clone)]
pub struct RedisLink(Arc<Inner>);

struct Inner {
    settings: RedisSettings,
    client: Client,
    hot: RwLock<Option<Arc<Hot>>>,
    /// One task connects, the others wait for it and share its error.
    connecting: Mutex<Option<RedisError>>,
    /// Attempts to connect that ended: who waited through one does not make another.
    attempts: AtomicU64,
    connections: AtomicU32,
    pool: Pool,
    breaker: Breaker,
    clock: Clock,
}

/// The multiplexed connection, and how long it has been silent.
struct Hot {
    connection: MultiplexedConnection,
    /// Time-outs in a row.
    timeouts: AtomicU32,
    /// When a call was first given up without an answer since the last one that came; zero for none.
    silent_since: AtomicU64,
}

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
        self.query_async(connection).await
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

/// A key or channel with the deployment's prefix in front, put together on the way out.
#[derive(Clone, Copy)]
pub(crate) struct Prefixed<'a>(&'a str, &'a str);

impl ToRedisArgs for Prefixed<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut text = out.writer_for_next_arg();
        // Writing to memory cannot fail.
        let _ = std::io::Write::write_all(&mut text, self.0.as_bytes());
        let _ = std::io::Write::write_all(&mut text, self.1.as_bytes());
    }
}

impl ToSingleRedisArg for Prefixed<'_> {}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisLink").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl RedisLink {
    /// A link that connects when it is first used: Redis need not be there yet.
    ///
    /// # Errors
    /// [`SettingsError::Malformed`] for settings the library refuses.
    pub fn lazy(settings: RedisSettings) -> Result<Self, SettingsError> {
        install_crypto_provider();
        let malformed = |_: RedisError| SettingsError::Malformed;
        let client = Client::open(settings.info.clone()).map_err(malformed)?;
        let config = connection_config(&settings);
        let manager = Manager::new_with_config(settings.info.clone(), config).map_err(malformed)?;
        let limit = Some(settings.connect_timeout);
        let pool = Pool::builder(manager)
            .max_size(settings.pool_size.max(1))
            .timeouts(Timeouts { wait: limit, create: limit, recycle: limit })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|_| SettingsError::Malformed)?;
        Ok(Self(Arc::new(Inner {
            settings,
            client,
            hot: RwLock::new(None),
            connecting: Mutex::new(None),
            attempts: AtomicU64::new(0),
            connections: AtomicU32::new(0),
            pool,
            breaker: Breaker::new(Clock::system()),
            clock: Clock::system(),
        })))
    }

    /// Asks for a sign of life, and says how long the answer took. Asked also while the circuit breaker is
    /// open, which closes when the answer comes.
    ///
    /// # Errors
    /// [`CallError`].
    ///
    /// # Cancel safety
    /// Dropping it leaves nothing behind.
    pub async fn ping(&self) -> Result<Duration, CallError> {
        let started = std::time::Instant::now();
        let admission = self.0.breaker.admit_anyway();
        let answer = self.run("ping", &redis::cmd("PING")).await;
        let _: redis::Value = settle(admission, answer)?;
        Ok(started.elapsed())
    }

    /// The shared connection, for services of your own that need what no contract here offers. Cheap to
    /// clone, and for quick commands only: a blocking one stands in front of everybody's reads. Ask for it
    /// anew for each piece of work: a connection that broke stays broken, this answers with the present one.
    ///
    /// Commands sent on it carry no key prefix, and are not counted by the circuit breaker.
    ///
    /// # Errors
    /// [`CallError`] when no connection can be made.
    ///
    /// # Cancel safety
    /// Dropping it leaves nothing behind.
    pub async fn connection(&self) -> Result<MultiplexedConnection, CallError> {
        const OPERATION: &str = "connect";
        let admission = self.0.breaker.admit().map_err(|wait| circuit_open(OPERATION, wait))?;
        let limit = self.0.settings.connect_timeout;
        let hot = self.hot().await.map_err(|error| CallError::new(OPERATION, &error, limit));
        settle(admission, hot).map(|hot| hot.connection.clone())
    }

    /// What this link was made from.
    #[must_use]
    pub fn settings(&self) -> &RedisSettings {
        &self.0.settings
    }

    /// Whether the circuit breaker keeps calls from being made.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.breaker.is_open()
    }

    /// How many multiplexed connections were made so far; for tests and diagnostics.
    #[must_use]
    pub fn connections_made(&self) -> u32 {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// A key or channel with the deployment's prefix.
    pub(crate) fn prefixed(&self, key: &str) -> String {
        [&self.0.settings.key_prefix, key].concat()
    }

    /// A key with the deployment's prefix, as an argument.
    pub(crate) fn key<'a>(&'a self, key: &'a str) -> Prefixed<'a> {
        Prefixed(&self.0.settings.key_prefix, key)
    }

    /// Runs quick work on the shared connection, if the circuit breaker lets it, and counts its outcome.
    ///
    /// When the connection turns out to be gone the work is done **once more** on a new one: an idle
    /// connection that the server closed is found out by the next command. So the work must be such that
    /// twice does no harm.
    pub(crate) async fn call<T: FromRedisValue + Send>(
        &self,
        operation: &'static str,
        work: &impl Work,
    ) -> Result<T, CallError> {
        let admission = self.0.breaker.admit().map_err(|wait| circuit_open(operation, wait))?;
        let answer = self.run(operation, work).await;
        settle(admission, answer)
    }

    /// As [`call`](Self::call), whatever the breaker says: for heartbeats, which have a pace of their own and
    /// find a server that is back.
    pub(crate) async fn sign_of_life<T: FromRedisValue + Send>(
        &self,
        operation: &'static str,
        work: &impl Work,
    ) -> Result<T, CallError> {
        let admission = self.0.breaker.admit_anyway();
        let answer = self.run(operation, work).await;
        settle(admission, answer)
    }

    async fn run<T: FromRedisValue + Send>(
        &self,
        operation: &'static str,
        work: &impl Work,
    ) -> Result<T, CallError> {
        let mut once_more = true;
        let error = loop {
            let hot = match self.hot().await {
                Ok(hot) => hot,
                Err(error) => break error,
            };
            let waiting = Waiting { link: self, hot: &hot, answered: false };
            let answer = work.perform(&mut hot.connection.clone()).await;
            waiting.ended(answer.as_ref().err());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if once_more && error.is_connection_dropped() => once_more = false,
                Err(error) => break error,
            }
        };
        Err(CallError::new(operation, &error, self.0.settings.response_timeout))
    }

    /// A connection for long work, so that it never stands in front of a quick command.
    pub(crate) async fn pooled(
        &self,
        operation: &'static str,
    ) -> Result<deadpool_redis::Connection, CallError> {
        let admission = self.0.breaker.admit().map_err(|wait| circuit_open(operation, wait))?;
        let limit = self.0.settings.connect_timeout;
        let answer = self.0.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => CallError::new(operation, &error, limit),
            PoolError::Timeout(_) => CallError::Timeout { operation, after: limit },
            _ => BackendError::new(BackendErrorKind::Closed, operation, "the pool is closed").into(),
        });
        settle(admission, answer)
    }

    /// A connection of its own for subscriptions. Not subject to the breaker: whoever keeps a subscription
    /// alive has its own patience.
    pub(crate) async fn subscriber(&self) -> Result<PubSub, CallError> {
        let limit = self.0.settings.connect_timeout;
        match tokio::time::timeout(limit, self.0.client.get_async_pubsub()).await {
            Ok(connected) => connected.map_err(|error| CallError::new("subscribe", &error, limit)),
            Err(_) => Err(CallError::Timeout { operation: "subscribe", after: limit }),
        }
    }

    async fn hot(&self) -> RedisResult<Arc<Hot>> {
        if let Some(hot) = &*self.0.hot.read() {
            return Ok(Arc::clone(hot));
        }
        let seen = self.0.attempts.load(Ordering::Acquire);
        let mut failure = self.0.connecting.lock().await;
        if let Some(hot) = &*self.0.hot.read() {
            return Ok(Arc::clone(hot));
        }
        if let Some(error) = &*failure
            && self.0.attempts.load(Ordering::Acquire) != seen
        {
            return Err(error.clone());
        }
        // A task of its own, so that callers with little patience do not keep everybody from connecting. It
        // ends with the connect deadline.
        let connected = tokio::spawn(connect(Arc::clone(&self.0))).await;
        let connected = connected.unwrap_or_else(|_| {
            Err(RedisError::from((ErrorKind::Io, "the runtime ended while a connection was made")))
        });
        *failure = connected.as_ref().err().cloned();
        self.0.attempts.fetch_add(1, Ordering::Release);
        connected
    }

    fn replace(&self, hot: &Arc<Hot>) {
        let mut current = self.0.hot.write();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, hot)) {
            *current = None;
        }
    }
}

/// A call on the shared connection that has not ended. Watches over the connection: one that is broken, or
/// silent for too long, is dropped, and the next call makes another.
struct Waiting<'a> {
    link: &'a RedisLink,
    hot: &'a Arc<Hot>,
    answered: bool,
}

impl Waiting<'_> {
    fn ended(mut self, error: Option<&RedisError>) {
        let hot = self.hot;
        match error {
            Some(error) if error.is_timeout() => {
                if hot.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_TIMEOUTS {
                    self.link.replace(hot);
                }
            }
            Some(error) if error.is_connection_dropped() || error.is_unrecoverable_error() => {
                self.answered = true;
                self.link.replace(hot);
            }
            _ => {
                self.answered = true;
                // Written only when there is something to forget: this is the hot path.
                if hot.timeouts.load(Ordering::Relaxed) != 0 {
                    hot.timeouts.store(0, Ordering::Relaxed);
                }
                if hot.silent_since.load(Ordering::Relaxed) != 0 {
                    hot.silent_since.store(0, Ordering::Relaxed);
                }
            }
        }
    }
}

impl Drop for Waiting<'_> {
    /// Without an answer: the deadline passed, or the caller left.
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let now = self.link.0.clock.now();
        let since = self.hot.silent_since.load(Ordering::Relaxed);
        if since == 0 {
            self.hot.silent_since.store(now.as_nanos(), Ordering::Relaxed);
        } else if now.since(Tick::from_nanos(since)) >= self.link.0.settings.response_timeout * MAX_TIMEOUTS {
            self.link.replace(self.hot);
        }
    }
}

async fn connect(link: Arc<Inner>) -> RedisResult<Arc<Hot>> {
    let config = connection_config(&link.settings);
    let connection = link.client.get_multiplexed_async_connection_with_config(&config).await?;
    link.connections.fetch_add(1, Ordering::Relaxed);
    let hot = Arc::new(Hot { connection, timeouts: AtomicU32::new(0), silent_since: AtomicU64::new(0) });
    *link.hot.write() = Some(Arc::clone(&hot));
    Ok(hot)
}

/// Tells the breaker how a call ended.
fn settle<T>(admission: Admission<'_>, answer: Result<T, CallError>) -> Result<T, CallError> {
    match &answer {
        Err(error) if error.is_outage() => admission.failed(),
        _ => admission.succeeded(),
    }
    answer
}

fn circuit_open(operation: &'static str, wait: Duration) -> CallError {
    let detail = format!("not asked; next try in about {} ms", wait.as_millis());
    BackendError::new(BackendErrorKind::CircuitOpen, operation, detail).into()
}

fn connection_config(settings: &RedisSettings) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.connect_timeout))
        .set_response_timeout(Some(settings.response_timeout))
        .set_pipeline_buffer_size(PIPELINE_BUFFER)
}

/// The TLS library is built without one, and panics at the first `rediss://` connection if none is installed.
/// A provider the program installed before stays.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
