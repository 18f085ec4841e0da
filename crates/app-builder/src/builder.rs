//! Assembling an application's services from settings and from parts of your own.

use std::sync::Arc;

use cache_core::{CacheService, ConcurrencyService, InvalidationBus, Presence, RateLimits, Sealer};
use tenant_cache::{Caches, Policy};

use crate::assembly::{self, Foundation};
use crate::error::AppError;
use crate::plain_cache::PlainCache;
use crate::services::{AppService, Coordination, Parts};
use crate::{AppSettings, Backend, EnvSettings, SettingService};

/// Assembles an [`AppService`].
///
/// Without any call it reads the environment: `REDIS_URL` set means Redis, absent means this process's
/// memory. Each part can be replaced by one of your own; giving one twice is an error that names it.
///
/// ```
/// use std::sync::Arc;
/// use app_builder::{AppServiceBuilder, MapSettings};
/// use cache_core::prelude::*;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let settings = MapSettings::new([("CACHE_BACKEND", "memory")]);
/// let app = AppServiceBuilder::new().settings(Arc::new(settings)).build().await?;
/// app.cache_service().set("greeting", "hello", Some(300)).await?;
/// let greeting: Option<String> = app.cache_service().get("greeting").await?;
/// assert_eq!(greeting.as_deref(), Some("hello"));
/// app.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Debug, Default)]
#[must_use = "a builder builds nothing until `build` is awaited"]
pub struct AppServiceBuilder {
    settings: Option<Source>,
    cache: Option<Arc<dyn CacheService>>,
    bus: Option<Arc<dyn InvalidationBus>>,
    concurrency: Option<Arc<dyn ConcurrencyService>>,
    rate_limiter: Option<Arc<dyn RateLimits>>,
    presence: Option<Arc<dyn Presence>>,
    cache_defaults: Option<Policy>,
    sealer: Option<Arc<dyn Sealer>>,
    /// The first method that was called twice; told by `build`, so that calls can be chained.
    twice: Option<&'static str>,
}

#[derive(Debug)]
enum Source {
    Service(Arc<dyn SettingService>),
    Read(Box<AppSettings>),
}

impl AppServiceBuilder {
    /// A builder that reads the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where settings are read from, in place of the environment.
    pub fn settings(mut self, source: Arc<dyn SettingService>) -> Self {
        set(&mut self.settings, Source::Service(source), "settings", &mut self.twice);
        self
    }

    /// Settings that were read before, in place of reading any.
    pub fn app_settings(mut self, settings: AppSettings) -> Self {
        set(&mut self.settings, Source::Read(Box::new(settings)), "settings", &mut self.twice);
        self
    }

    /// Your own cache, in place of the one in memory or in Redis: the far tier of every cache domain. When several
    /// processes share it, it must be on a bus, or [`bus`](Self::bus) must give one: without, what another process
    /// invalidates is heard of after `near_ttl` only (and that is warned of).
    pub fn cache_service(mut self, cache: Arc<dyn CacheService>) -> Self {
        set(&mut self.cache, cache, "cache_service", &mut self.twice);
        self
    }

    /// Your own bus. A cache of your own that is on a bus of its own needs none, and may have no other.
    pub fn bus(mut self, bus: Arc<dyn InvalidationBus>) -> Self {
        set(&mut self.bus, bus, "bus", &mut self.twice);
        self
    }

    /// Your own locks, limits and presence.
    pub fn concurrency_service(mut self, service: Arc<dyn ConcurrencyService>) -> Self {
        set(&mut self.concurrency, service, "concurrency_service", &mut self.twice);
        self
    }

    /// Your own rate limits; everything else of the concurrency service stays.
    pub fn rate_limiter(mut self, limits: Arc<dyn RateLimits>) -> Self {
        set(&mut self.rate_limiter, limits, "rate_limiter", &mut self.twice);
        self
    }

    /// Your own presence; everything else of the concurrency service stays.
    pub fn presence(mut self, presence: Arc<dyn Presence>) -> Self {
        set(&mut self.presence, presence, "presence", &mut self.twice);
        self
    }

    /// What cache domains start from, in place of `CACHE_NEAR_TTL` and `CACHE_NEAR_CAPACITY`.
    pub fn cache_defaults(mut self, policy: Policy) -> Self {
        set(&mut self.cache_defaults, policy, "cache_defaults", &mut self.twice);
        self
    }

    /// Seals what cache domains keep in the far tier, bound to `REDIS_KEY_PREFIX`; see
    /// [`CachesBuilder::sealer`](tenant_cache::CachesBuilder::sealer). The plain
    /// [`cache_service`](AppService::cache_service) stays as it is. Default: none.
    pub fn sealer(mut self, sealer: Arc<dyn Sealer>) -> Self {
        set(&mut self.sealer, sealer, "sealer", &mut self.twice);
        self
    }

    /// Reads the settings and assembles the services. With Redis one attempt to reach it is made, so that it
    /// being away is said now: a warning, or an error with `REDIS_ON_UNAVAILABLE=fail`.
    ///
    /// # Errors
    /// [`AppError`] by kind: a setting, a part given twice, parts that do not fit, Redis away. Nothing keeps
    /// running then.
    ///
    /// # Cancel safety
    /// Dropping the future drops what was assembled.
    pub async fn build(self) -> Result<AppService, AppError> {
        if let Some(part) = self.twice {
            return Err(AppError::SetTwice { part });
        }
        let settings = match self.settings {
            None => AppSettings::read(&EnvSettings)?,
            Some(Source::Service(source)) => AppSettings::read(&*source)?,
            Some(Source::Read(settings)) => *settings,
        };
        let foundation = assembly::lay(&settings, self.cache, self.bus).await?;
        let caches = caches(&settings, self.cache_defaults, self.sealer, &foundation)?;
        let (concurrency, coordination) = match self.concurrency {
            Some(own) => (own, Coordination::Own),
            None => (foundation.concurrency, foundation.coordination),
        };
        Ok(AppService::new(Parts {
            rate_limiter: self
                .rate_limiter
                .unwrap_or_else(|| Arc::<dyn ConcurrencyService>::clone(&concurrency)),
            presence: self.presence.unwrap_or_else(|| Arc::<dyn ConcurrencyService>::clone(&concurrency)),
            cache: Arc::new(PlainCache(foundation.cache)),
            far: foundation.far,
            concurrency,
            coordination,
            caches,
            settings,
            tasks: foundation.tasks,
            #[cfg(feature = "redis")]
            redis: foundation.redis,
        }))
    }
}

fn set<T>(slot: &mut Option<T>, value: T, name: &'static str, twice: &mut Option<&'static str>) {
    if slot.replace(value).is_some() {
        twice.get_or_insert(name);
    }
}

fn caches(
    settings: &AppSettings,
    defaults: Option<Policy>,
    sealer: Option<Arc<dyn Sealer>>,
    foundation: &Foundation,
) -> Result<Caches, AppError> {
    let defaults = defaults.unwrap_or_else(|| {
        let mut policy = Policy::default();
        policy.near_ttl = settings.near_ttl.unwrap_or(policy.near_ttl);
        policy.capacity = settings.near_capacity.unwrap_or(policy.capacity);
        policy
    });
    let caches = Caches::builder().far(Arc::clone(&foundation.cache)).defaults(defaults);
    let caches = match sealer {
        Some(sealer) => caches.sealer(sealer).namespace(key_prefix(settings)),
        None => caches,
    };
    let caches = match &foundation.bus {
        // A cache that is on a bus brings it along.
        Some(bus) if foundation.cache.bus().is_none() => caches.bus(Arc::clone(bus)),
        _ => caches,
    };
    Ok(caches.build()?)
}

/// What separates this deployment's keys from those of others on the same server.
fn key_prefix(settings: &AppSettings) -> &str {
    match &settings.backend {
        Backend::Memory => "",
        Backend::Redis(redis) => &redis.key_prefix,
    }
}
