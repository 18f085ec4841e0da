//! The door to Redis: one multiplexed connection for everything quick, a pool for what takes long,
//! subscriptions on their own; one circuit breaker for all.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{BackendError, BackendErrorKind, Clock};
use deadpool_redis::{Manager, Pool, PoolError, Runtime, Timeouts};
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisError, RedisResult};

use crate::error::CallError;
use crate::hot::{Hot, Work};
use crate::keyspace::Prefixed;
use crate::policy::{Admission, Breaker};
use crate::settings::{RedisSettings, SettingsError};

/// Commands that may wait for the one connection before callers wait for each other; the library's 50 makes
/// them queue twice.
const PIPELINE_BUFFER: usize = 1_024;

/// The connections to one Redis, shared by every service that uses it. Clones share everything.
#[derive(Debug, Clone)]
pub struct RedisLink(Arc<Inner>);

struct Inner {
    settings: RedisSettings,
    client: Client,
    hot: Hot,
    pool: Pool,
    breaker: Breaker,
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
        let manager = Manager::new_with_config(settings.info.clone(), config.clone()).map_err(malformed)?;
        let limit = Some(settings.connect_timeout);
        let pool = Pool::builder(manager)
            .max_size(settings.pool_size.max(1))
            .timeouts(Timeouts { wait: limit, create: limit, recycle: limit })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|_| SettingsError::Malformed)?;
        Ok(Self(Arc::new(Inner {
            hot: Hot::new(client.clone(), config, settings.response_timeout),
            settings,
            client,
            pool,
            breaker: Breaker::new(Clock::system()),
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
        let made = self.0.hot.connection().await;
        settle(admission, made.map_err(|error| CallError::new(OPERATION, &error, limit)))
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
        self.0.hot.made()
    }

    /// A key or channel with the deployment's prefix.
    pub(crate) fn prefixed(&self, key: &str) -> String {
        [&self.0.settings.key_prefix, key].concat()
    }

    /// A key with the deployment's prefix, as an argument.
    pub(crate) fn key<'a>(&'a self, key: &'a str) -> Prefixed<'a> {
        Prefixed { prefix: &self.0.settings.key_prefix, key }
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

    /// As [`call`](Self::call), for work that must not be done twice: when the connection turns out to be gone,
    /// that is the outcome.
    pub(crate) async fn call_once<T: FromRedisValue + Send>(
        &self,
        operation: &'static str,
        work: &impl Work,
    ) -> Result<T, CallError> {
        let admission = self.0.breaker.admit().map_err(|wait| circuit_open(operation, wait))?;
        let answer = self.0.hot.perform_once(work).await;
        settle(admission, self.named(operation, answer))
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
        self.named(operation, self.0.hot.perform(work).await)
    }

    fn named<T>(&self, operation: &'static str, answer: RedisResult<T>) -> Result<T, CallError> {
        answer.map_err(|error| CallError::new(operation, &error, self.0.settings.response_timeout))
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
