//! Why an application could not be assembled.

use cache_core::{BackendError, CacheError};

use crate::SettingError;

/// The error of [`AppServiceBuilder::build`](crate::AppServiceBuilder::build). No message carries a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// A setting is wrong, contradicts another, or cannot be read.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A part was given twice: which of the two was meant?
    #[error("`{part}` is set twice: remove one of the two calls")]
    SetTwice {
        /// The builder's method.
        part: &'static str,
    },
    /// The parts do not fit together.
    #[error(transparent)]
    Parts(#[from] CacheError),
    /// Redis is away, and `REDIS_ON_UNAVAILABLE` is `fail`.
    #[error(
        "Redis at {server} is not available: {source}. Start it, or set REDIS_ON_UNAVAILABLE=degrade to start without"
    )]
    RedisUnavailable {
        /// The server, without credentials.
        server: String,
        /// What went wrong.
        source: BackendError,
    },
    /// Settings ask for Redis, and this build carries no Redis.
    #[error("{setting} asks for Redis, and this program was built without the feature `redis`")]
    NoRedis {
        /// The setting that asks for it.
        setting: &'static str,
    },
}
