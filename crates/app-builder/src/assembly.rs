//! What stands under the services: everything in this process, or everything in Redis.

use std::sync::Arc;

use cache_core::{CacheError, CacheService, ConcurrencyService, InvalidationBus};
use cache_moka::{Capacity, MokaCacheService};
use concurrency::{LocalBus, LocalConcurrencyService};

use crate::error::AppError;
use crate::services::{Coordination, Far};
use crate::shutdown::Tasks;
use crate::{AppSettings, Backend};

/// The parts a backend brings.
#[derive(Debug)]
pub(crate) struct Foundation {
    pub(crate) cache: Arc<dyn CacheService>,
    pub(crate) far: Far,
    pub(crate) bus: Option<Arc<dyn InvalidationBus>>,
    pub(crate) concurrency: Arc<dyn ConcurrencyService>,
    pub(crate) coordination: Coordination,
    pub(crate) tasks: Tasks,
    #[cfg(feature = "redis")]
    pub(crate) redis: Option<cache_redis::RedisLink>,
}

/// Lays the foundation that the settings ask for, with the caller's own cache and bus where given.
pub(crate) async fn lay(
    settings: &AppSettings,
    cache: Option<Arc<dyn CacheService>>,
    bus: Option<Arc<dyn InvalidationBus>>,
) -> Result<Foundation, AppError> {
    if let (Some(own), Some(given)) = (cache.as_ref().and_then(CacheService::bus), &bus)
        && !Arc::ptr_eq(&own, given)
    {
        let reason = "the cache service is on another bus than the one given";
        return Err(CacheError::configuration("bus", reason).into());
    }
    match &settings.backend {
        Backend::Memory => in_memory(settings, cache, bus),
        #[cfg(feature = "redis")]
        Backend::Redis(redis) => crate::redis::lay(settings, redis, cache, bus).await,
        #[cfg(not(feature = "redis"))]
        Backend::Redis(_) => Err(AppError::NoRedis { setting: "REDIS_URL" }),
    }
}

fn in_memory(
    settings: &AppSettings,
    cache: Option<Arc<dyn CacheService>>,
    bus: Option<Arc<dyn InvalidationBus>>,
) -> Result<Foundation, AppError> {
    if cache.as_ref().is_some_and(|own| own.bus().is_none()) && bus.is_none() {
        tracing::warn!(
            "the cache service is on no bus, and none was given: what other processes on it invalidate is heard of after \
             `near_ttl` only"
        );
    }
    let bus = bus.unwrap_or_else(|| Arc::new(LocalBus::new()));
    let mut tasks = Tasks::default();
    let (cache, far): (Arc<dyn CacheService>, _) = match cache {
        Some(own) => (own, Far::Own),
        None => {
            let moka = MokaCacheService::builder()
                .capacity(Capacity::Entries(settings.capacity))
                .default_ttl(settings.default_ttl)
                .bus(Arc::clone(&bus))
                .build()?;
            let moka = Arc::new(moka);
            tasks.sweep(Arc::downgrade(&moka));
            (moka, Far::Memory)
        }
    };
    Ok(Foundation {
        cache,
        far,
        bus: Some(bus),
        concurrency: Arc::new(LocalConcurrencyService::default()),
        coordination: Coordination::Process,
        tasks,
        #[cfg(feature = "redis")]
        redis: None,
    })
}
