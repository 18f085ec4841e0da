//! The foundation in Redis: one link for cache, bus, locks, limits and presence.

use std::sync::Arc;

use cache_core::{CacheService, ConcurrencyService, InvalidationBus};
use cache_redis::{
    RedisBus, RedisCacheOptions, RedisCacheService, RedisConcurrencyService, RedisLink, RedisLocks,
    RedisPresence, RedisRateLimits,
};
use concurrency::FleetRateLimits;
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
    let concurrency = coordinate(&own_bus);
    Ok(Foundation {
        cache,
        far,
        bus: Some(bus.unwrap_or(own_bus)),
        concurrency,
        coordination: Coordination::Fleet,
        tasks: Tasks::default(),
        redis: Some(link),
    })
}

/// Locks, limits and presence in Redis, for all instances. Limits that need not fail closed are counted in this
/// process while Redis is away.
fn coordinate(bus: &Arc<RedisBus>) -> Arc<dyn ConcurrencyService> {
    let (locks, link) = (RedisLocks::on(Arc::clone(bus)), bus.link());
    let limits = FleetRateLimits::new(Arc::new(RedisRateLimits::on(link.clone())));
    Arc::new(RedisConcurrencyService::new(locks, Arc::new(limits), RedisPresence::on(link.clone())))
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
