//! Rate limits that all instances share: one script per check, timed by the server's clock.
//!
//! | key | holds | ends |
//! |---|---|---|
//! | `limit:bucket:<quota>:<key>` | when the bucket would be full again, in microseconds since 1970 | then |
//! | `limit:window:<quota>:<key>` | units taken, and when the window ends | then |
//!
//! The arithmetic is that of [`gcra`]: the scripts take a price and answer a count, and what follows from it is
//! worked out here.

use std::time::Duration;

use async_trait::async_trait;
use cache_core::gcra::{self, micros};
use cache_core::key::{push_segment, validate};
use cache_core::{Algorithm, Decision, Quota, RateLimitError, RateLimits};

use crate::connection::RedisLink;
use crate::error::CallError;
use crate::script::{LIMIT_BUCKET, LIMIT_WINDOW};

/// When to come back while the store is away: as soon as the circuit breaker tries again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// [`RateLimits`] in Redis, and nothing beside: every check is one round trip, and every failure is
/// [`RateLimitError::Unavailable`], also of quotas that need not fail closed. To deny from memory, and to count
/// locally while Redis is away, put it behind [`FleetRateLimits`](https://docs.rs/concurrency), as the builder of
/// applications does. Clones share everything.
///
/// A check is sent once: one that is lost on its way back may have taken its units, and asked again would take
/// them twice.
///
/// ```no_run
/// use cache_core::{Quota, RateLimits};
/// use cache_redis::{RedisLink, RedisRateLimits, RedisSettings};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let link = RedisLink::lazy(RedisSettings::from_url("redis://localhost")?)?;
/// let limits = RedisRateLimits::on(link);
/// let decision = limits.check(&Quota::api(), "acme:ann", 1).await?.into_result()?;
/// assert!(decision.remaining < 100);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RedisRateLimits {
    link: RedisLink,
}

impl RedisRateLimits {
    /// Limits on a link that others share.
    #[must_use]
    pub fn on(link: RedisLink) -> Self {
        Self { link }
    }

    async fn bucket(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, CallError> {
        let (price, per) = (gcra::price(quota, cost).to_string(), micros(quota.per).to_string());
        let arguments = [price.as_bytes(), per.as_bytes()];
        let (allowed, used): (bool, u64) = LIMIT_BUCKET.with(&[key], &arguments).run_once(&self.link).await?;
        Ok(gcra::bucket(quota, cost, allowed, used))
    }

    async fn window(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, CallError> {
        let (cost, limit) = (cost.to_string(), quota.limit.to_string());
        let per = micros(quota.per).to_string();
        let arguments = [cost.as_bytes(), limit.as_bytes(), per.as_bytes()];
        let (allowed, taken, left): (bool, u32, u64) =
            LIMIT_WINDOW.with(&[key], &arguments).run_once(&self.link).await?;
        Ok(gcra::window(quota, allowed, taken, left))
    }
}

#[async_trait]
impl RateLimits for RedisRateLimits {
    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        quota.validate(cost)?;
        validate(key)?;
        let decision = match quota.algorithm {
            Algorithm::FixedWindow => self.window(quota, &self.name("window", quota, key), cost).await,
            _ => self.bucket(quota, &self.name("bucket", quota, key), cost).await,
        };
        decision.map_err(|error| RateLimitError::Unavailable {
            retry_after: RETRY_AFTER,
            source: error.into_backend(),
        })
    }
}

impl RedisRateLimits {
    /// The key on the server. A quota that changes its algorithm begins anew.
    fn name(&self, algorithm: &str, quota: &Quota, key: &str) -> String {
        let mut name = self.link.prefixed("limit:");
        name.reserve(algorithm.len() + quota.name.len() + key.len() + 2);
        name.push_str(algorithm);
        name.push(':');
        push_segment(&mut name, &quota.name);
        name.push(':');
        name.push_str(key);
        name
    }
}
