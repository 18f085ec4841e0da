//! # Assembly: the whole layer, in memory or on Redis
//!
//! One question decides: is `REDIS_URL` set? Everything else has a default, and every part can be replaced.
//!
//! | you look for | module |
//! |---|---|
//! | where settings come from | [`setting_service`]: [`SettingService`], [`EnvSettings`], [`MapSettings`] |
//! | which settings there are, typed | [`settings`]: [`AppSettings`] |

pub mod setting_service;
pub mod settings;

pub use setting_service::{EnvSettings, MapSettings, SettingError, SettingService, SettingServiceExt};
pub use settings::{AppSettings, Backend, OnUnavailable, RateLimitPresets, RedisMode, RedisSettings};
