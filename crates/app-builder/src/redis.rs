//! The foundation in Redis: one link for cache, bus and locks.

use std::sync::Arc;

use cache_core::{CacheService, ConcurrencyService, InvalidationBus};
use cache_redis::{
    RedisBus, RedisCacheOptions, RedisCacheService, RedisConcurrencyService, RedisLink, RedisLocks,
    RedisRateLimits,
};
use concurrency::{FleetRateLimits, LocalConcurrencyService};
use secrecy::ExposeSecret;

use crate::assembly::Foundation;
use crate::error::AppError;
use crate::services::{Coordination, Far};
use crate::shutdown::Tasks;
use crate::{AppSettings, OnUnavailable, RedisMode, RedisSettings, SettingError};

pub(crate) async fn lay(
    settings: &AppSettings,
    redis: &RedisSettings,
    cache: Option<Arc<dyn CacheService>>,
    bus: Option<Arc<dyn InvalidationBus>>,
) -> Result<Foundation, AppError> {
    let link = connect(redis)?;
    greet(&link, redis.on_unavailable).await?;
    let own_bus = RedisBus::on(link.clone());
    let (cache, far): (Arc<dyn CacheService>, _) = match cache {
        Some(own) => (own, Far::Own),
        None => {
            let options = RedisCacheOptions::default().with_default_ttl(settings.default_ttl);
            (Arc::new(RedisCacheService::on(Arc::clone(&own_bus), options)), Far::Redis)
        }
    };
    let (concurrency, coordination) = coordinate(&own_bus);
    Ok(Foundation {
        cache,
        far,
        bus: Some(bus.unwrap_or(own_bus)),
        concurrency,
        coordination,
        tasks: Tasks::default(),
        redis: Some(link),
    })
}

/// Locks and limits in Redis, for all instances; while Redis is away, limits that need not fail closed are counted
/// in this process. Presence is this process's own so far: said at the start and in health.
fn coordinate(bus: &Arc<RedisBus>) -> (Arc<dyn ConcurrencyService>, Coordination) {
    tracing::warn!("presence is kept per process: Redis carries cache, bus, locks and rate limits only");
    let locks = RedisLocks::on(Arc::clone(bus));
    let limits = FleetRateLimits::new(Arc::new(RedisRateLimits::on(bus.link().clone())));
    let presence = Arc::new(LocalConcurrencyService::default());
    let all = RedisConcurrencyService::new(locks, Arc::new(limits), presence);
    (Arc::new(all), Coordination::Locks)
}

fn connect(redis: &RedisSettings) -> Result<RedisLink, AppError> {
    let mode = match redis.mode {
        RedisMode::Standalone => cache_redis::settings::RedisMode::Standalone,
        RedisMode::Sentinel => cache_redis::settings::RedisMode::Sentinel,
        RedisMode::Cluster => cache_redis::settings::RedisMode::Cluster,
    };
    let url = redis.url.as_ref().map(ExposeSecret::expose_secret).unwrap_or_default();
    let settings = cache_redis::RedisSettings::for_mode(mode, url)
        .and_then(|settings| settings.with_key_prefix(redis.key_prefix.clone()))
        .and_then(RedisLink::lazy);
    settings.map_err(|refused| AppError::Setting(refusal(refused)))
}

/// The refusals of the backend begin with the setting's name.
fn refusal(refused: cache_redis::SettingsError) -> SettingError {
    let text = refused.to_string();
    match text.split_once(": ") {
        Some((name, reason)) => SettingError::contradiction(name, reason.to_owned()),
        None => SettingError::contradiction("REDIS_URL", text),
    }
}

/// One attempt to reach the server, so that its absence is said at the start and not by the first request.
async fn greet(link: &RedisLink, on_unavailable: OnUnavailable) -> Result<(), AppError> {
    let server = link.settings().shown().to_owned();
    let Err(error) = link.ping().await else {
        tracing::info!(server, "Redis is there");
        return Ok(());
    };
    let source = error.into_backend();
    match on_unavailable {
        OnUnavailable::Fail => Err(AppError::RedisUnavailable { server, source }),
        OnUnavailable::Degrade => {
            tracing::warn!(
                server,
                error = %source,
                "Redis is away: starting without it; values come from their origin until it is there"
            );
            Ok(())
        }
    }
}
