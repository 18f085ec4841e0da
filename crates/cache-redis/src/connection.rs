//! The door to Redis: one multiplexed connection for everything quick, a pool for what takes long,
//! subscriptions on their own.
//!
//! Why not the library's `ConnectionManager`: it does not reconnect after time-outs, so that on a half-open
//! link every call fails until the kernel gives up, and when its one attempt to reconnect has failed nothing
//! retries until somebody calls. Here a connection that broke, or timed out three times in a row, is dropped,
//! and the next call makes a new one; the circuit breaker keeps that from becoming a storm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cache_core::{BackendError, BackendErrorKind, Clock};
use deadpool_redis::{Manager, Pool, PoolError, Runtime, Timeouts};
use parking_lot::RwLock;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisError, RedisResult};
use tokio::sync::Mutex;

use crate::error::CallError;
use crate::policy::Breaker;
use crate::settings::{RedisSettings, SettingsError};

/// Time-outs in a row after which a connection is taken for dead.
const MAX_TIMEOUTS: u32 = 3;

/// The connections to one Redis, shared by every service that uses it. Clones share everything.
#[derive(Debug, Clone)]
pub struct RedisLink(Arc<Inner>);

struct Inner {
    settings: RedisSettings,
    client: Client,
    hot: RwLock<Option<Hot>>,
    /// One task connects, the others wait for it.
    connecting: Mutex<()>,
    connections: AtomicU32,
    pool: Pool,
    breaker: Breaker,
}

/// The multiplexed connection, with the number that tells it from its predecessors.
#[derive(Clone)]
struct Hot {
    id: u32,
    connection: MultiplexedConnection,
    timeouts: Arc<AtomicU32>,
}

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
            connecting: Mutex::new(()),
            connections: AtomicU32::new(0),
            pool,
            breaker: Breaker::new(Clock::system()),
        })))
    }

    /// Asks for a sign of life, and says how long the answer took.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn ping(&self) -> Result<Duration, CallError> {
        let started = std::time::Instant::now();
        let _: redis::Value = self.call("ping", &redis::cmd("PING")).await?;
        Ok(started.elapsed())
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
        let prefix = &self.0.settings.key_prefix;
        let mut text = String::with_capacity(prefix.len() + key.len());
        text.push_str(prefix);
        text.push_str(key);
        text
    }

    /// Runs a quick command on the shared connection.
    pub(crate) async fn call<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T, CallError> {
        self.guarded(operation, async |mut connection| command.query_async(&mut connection).await).await
    }

    /// Runs several quick commands in one round trip on the shared connection; not atomic.
    pub(crate) async fn call_pipeline<T: FromRedisValue>(
        &self,
        operation: &'static str,
        pipeline: &Pipeline,
    ) -> Result<T, CallError> {
        self.guarded(operation, async |mut connection| pipeline.query_async(&mut connection).await).await
    }

    /// Runs work on the shared connection, counting its outcome.
    pub(crate) async fn guarded<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, CallError> {
        let admission = self.0.breaker.admit().map_err(|wait| circuit_open(operation, wait))?;
        let answer = match self.hot().await {
            Ok(hot) => {
                let answer = work(hot.connection.clone()).await;
                self.look_after(&hot, answer.as_ref().err());
                answer
            }
            Err(error) => Err(error),
        };
        let answer =
            answer.map_err(|error| CallError::new(operation, &error, self.0.settings.response_timeout));
        match &answer {
            Err(error) if error.is_outage() => admission.failed(),
            _ => admission.succeeded(),
        }
        answer
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
        match &answer {
            Err(error) if error.is_outage() => admission.failed(),
            _ => admission.succeeded(),
        }
        answer
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

    /// The deadline of a command.
    pub(crate) fn deadline(&self) -> Duration {
        self.0.settings.response_timeout
    }

    async fn hot(&self) -> RedisResult<Hot> {
        if let Some(hot) = &*self.0.hot.read() {
            return Ok(hot.clone());
        }
        let _one_at_a_time = self.0.connecting.lock().await;
        if let Some(hot) = &*self.0.hot.read() {
            return Ok(hot.clone());
        }
        let config = connection_config(&self.0.settings);
        let connection = self.0.client.get_multiplexed_async_connection_with_config(&config).await?;
        let id = self.0.connections.fetch_add(1, Ordering::Relaxed);
        let hot = Hot { id, connection, timeouts: Arc::default() };
        *self.0.hot.write() = Some(hot.clone());
        Ok(hot)
    }

    /// Drops a connection that is broken, or silent for too long.
    fn look_after(&self, hot: &Hot, error: Option<&RedisError>) {
        let dead = match error {
            None => {
                // Written only when there is something to forget: this is the hot path.
                if hot.timeouts.load(Ordering::Relaxed) != 0 {
                    hot.timeouts.store(0, Ordering::Relaxed);
                }
                false
            }
            Some(error) if error.is_timeout() => {
                hot.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_TIMEOUTS
            }
            Some(error) => error.is_connection_dropped() || error.is_unrecoverable_error(),
        };
        if dead {
            let mut current = self.0.hot.write();
            if current.as_ref().is_some_and(|current| current.id == hot.id) {
                *current = None;
            }
        }
    }
}

fn circuit_open(operation: &'static str, wait: Duration) -> CallError {
    let detail = format!("not asked; next try in about {} ms", wait.as_millis());
    BackendError::new(BackendErrorKind::CircuitOpen, operation, detail).into()
}

fn connection_config(settings: &RedisSettings) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.connect_timeout))
        .set_response_timeout(Some(settings.response_timeout))
}

/// The TLS library is built without one, and panics at the first `rediss://` connection if none is installed.
/// A provider the program installed before stays.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
