//! What an application gets.

use std::sync::Arc;
use std::time::Duration;

use cache_core::bus::BusHealth;
use cache_core::{CacheService, ConcurrencyService, Locks, Presence, RateLimits};
use tenant_cache::Caches;

use crate::plain_cache::PlainCache;
use crate::shutdown::Tasks;
use crate::{AppSettings, RateLimitPresets};

/// How long the end of an application waits for the leases of loads in flight. Beyond they end by themselves.
const LEASES_WITHIN: Duration = Duration::from_secs(5);

/// The assembled services. Clones share everything.
///
/// Made by [`AppServiceBuilder`](crate::AppServiceBuilder).
///
/// ```
/// use std::sync::Arc;
/// use app_builder::{AppServiceBuilder, MapSettings};
/// use cache_core::prelude::*;
/// use cache_core::{Member, Quota, TenantId, UserId};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// # let settings = MapSettings::new([("CACHE_BACKEND", "memory")]);
/// # let app = AppServiceBuilder::new().settings(Arc::new(settings)).build().await?;
/// let sum = app.locks().with_lock("ledger/7", async { 1 + 1 }).await?;
/// let taken = app.rate_limiter().check(&Quota::api(), "acme:ann", 1).await?.into_result()?;
/// let (acme, ann) = (TenantId::new("acme")?, Member { user_id: UserId::new("ann")?, connected_at: 0 });
/// app.presence().join(&acme, "socket-7", &ann).await?;
/// assert_eq!((sum, taken.remaining, app.presence().count(&acme).await?), (2, 99, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct AppService(Arc<Parts>);

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) cache: Arc<PlainCache>,
    pub(crate) far: Far,
    pub(crate) concurrency: Arc<dyn ConcurrencyService>,
    pub(crate) coordination: Coordination,
    pub(crate) rate_limiter: Arc<dyn RateLimits>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) caches: Caches,
    pub(crate) settings: AppSettings,
    pub(crate) tasks: Tasks,
    #[cfg(feature = "redis")]
    pub(crate) redis: Option<cache_redis::RedisLink>,
}

/// What the far tier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    Memory,
    #[cfg(feature = "redis")]
    Redis,
    Own,
}

/// How far locks, limits and presence reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coordination {
    /// This process: a lock excludes nobody elsewhere, each instance grants a whole limit.
    Process,
    /// All instances that share the Redis.
    Fleet,
    /// The application's own service; it knows.
    Own,
}

impl Coordination {
    /// A short stable name for health answers and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Fleet => "fleet",
            Self::Own => "own",
        }
    }
}

/// How the services are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Memory: there while the process answers.
    pub l1: TierHealth,
    /// The store that instances share; absent without one.
    pub l2: Option<TierHealth>,
    /// Whether this process hears what others change. While it is not [`Trusted`](BusHealth::Trusted), values come from
    /// the store or the origin, not from memory. Of a cache service of your own without a bus it says `Trusted`: there is
    /// nobody to hear.
    pub bus: BusHealth,
    /// How far locks, limits and presence reach.
    pub coordination: Coordination,
}

impl Health {
    /// Whether something is away without which the services still work, only slower: the store, or the trust in memory
    /// ([`Down`](BusHealth::Down) and [`Recovering`](BusHealth::Recovering)). A bus that is
    /// [`Starting`](BusHealth::Starting) is none: that passes, or becomes one of the others.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        let untrusted = matches!(self.bus, BusHealth::Down | BusHealth::Recovering);
        untrusted || self.l2.as_ref().is_some_and(|l2| !l2.up)
    }
}

/// How a tier is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierHealth {
    /// Whether it answers.
    pub up: bool,
    /// How long its answer took; `None` when there was none.
    pub latency: Option<Duration>,
}

impl AppService {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The cache of bytes: in memory, in Redis, or your own; with its bus.
    ///
    /// Keys of what the services keep beside it are refused ([`KeyError::Reserved`](cache_core::KeyError::Reserved)):
    /// those that begin with `gen:`, `refresh:`, `lock:`, `limit:`, `presence:` or `cache:`. Those of the caches' entries
    /// are not; to invalidate them is what [`Caches::invalidate_keys`] does, too.
    #[must_use]
    pub fn cache_service(&self) -> Arc<dyn CacheService> {
        Arc::<PlainCache>::clone(&self.0.cache)
    }

    /// Locks, limits and presence as one; upcasts to each.
    #[must_use]
    pub fn concurrency_service(&self) -> Arc<dyn ConcurrencyService> {
        Arc::clone(&self.0.concurrency)
    }

    /// The locks alone.
    #[must_use]
    pub fn locks(&self) -> Arc<dyn Locks> {
        self.concurrency_service()
    }

    /// The rate limits.
    #[must_use]
    pub fn rate_limiter(&self) -> Arc<dyn RateLimits> {
        Arc::clone(&self.0.rate_limiter)
    }

    /// The presence of users.
    #[must_use]
    pub fn presence(&self) -> Arc<dyn Presence> {
        Arc::clone(&self.0.presence)
    }

    /// The registry of typed caches, on the cache service and its bus.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.0.caches
    }

    /// The quotas of the rate limit presets, as the settings have them.
    #[must_use]
    pub fn quotas(&self) -> &RateLimitPresets {
        &self.0.settings.rate_limits
    }

    /// The settings the services were made from.
    #[must_use]
    pub fn settings(&self) -> &AppSettings {
        &self.0.settings
    }

    /// The shared connections to Redis, for services of your own; `None` without Redis.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis(&self) -> Option<&cache_redis::RedisLink> {
        self.0.redis.as_ref()
    }

    /// Asks every tier for a sign of life. Never an error: what is away is told as not up, by the deadline
    /// of the store.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn health(&self) -> Health {
        let parts = &self.0;
        let asked = parts.cache.health().await.ok();
        let answered = TierHealth { up: asked.is_some(), latency: asked };
        // Memory is up by itself; the time is that of a read which needs no connection.
        let memory = TierHealth { up: true, latency: Some(Duration::ZERO) };
        let (l1, l2) = match parts.far {
            Far::Memory => (answered, None),
            _ => (memory, Some(answered)),
        };
        Health { l1, l2, bus: parts.caches.bus().state().health, coordination: parts.coordination }
    }

    /// Ends the background work of the services, and the loads in flight, which give up their leases: nobody in the
    /// fleet waits for them. Takes at most 5 s. Values stay readable, and nothing is loaded any more; what only Redis can
    /// do fails once the last clone is gone. Idempotent.
    ///
    /// # Cancel safety
    /// Safe; call it again to wait for the rest.
    pub async fn shutdown(&self) {
        if !self.0.caches.shut_down(LEASES_WITHIN).await {
            tracing::warn!("leases of loads in flight were not given up in time; they end by themselves");
        }
        self.0.tasks.end().await;
    }
}
