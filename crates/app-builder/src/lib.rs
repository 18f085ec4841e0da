//! # Assembly: the whole layer, in memory or on Redis
//!
//! One question decides: is `REDIS_URL` set? Everything else has a default, and every part can be replaced.
//!
//! | you look for | module |
//! |---|---|
//! | putting an application together | [`builder`]: [`AppServiceBuilder`] |
//! | what you get, how it is, how it ends | [`services`]: [`AppService`], [`Health`] |
//! | which settings there are, typed | [`settings`]: [`AppSettings`] |
//! | where settings come from | [`setting_service`]: [`SettingService`], [`EnvSettings`], [`MapSettings`] |
//! | what can go wrong | [`error`]: [`AppError`] |
//!
//! Inside: `assembly` (in this process), `redis` (in Redis; feature `redis`), `plain_cache` (what is handed out of the
//! cache service), `shutdown` (background work).

mod assembly;
pub mod builder;
pub mod error;
mod plain_cache;
#[cfg(feature = "redis")]
mod redis;
pub mod services;
pub mod setting_service;
pub mod settings;
mod shutdown;

pub use builder::AppServiceBuilder;
pub use error::AppError;
pub use services::{AppService, Coordination, Health, TierHealth};
pub use setting_service::{EnvSettings, MapSettings, SettingError, SettingService, SettingServiceExt};
pub use settings::{AppSettings, Backend, OnUnavailable, RateLimitPresets, RedisMode, RedisSettings};
