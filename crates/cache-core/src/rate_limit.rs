//! Rate limits: how much of something a caller may still do.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::{BackendError, KeyError};

/// Counts what callers do against a quota. Object safe.
#[async_trait]
pub trait RateLimits: fmt::Debug + Send + Sync {
    /// Takes `cost` units of `quota` for `key`, if there are as many, and says how it stands.
    ///
    /// A refusal is an answer, not an error: see [`Decision::allowed`], and [`Decision::into_result`] to make
    /// it one. A refused attempt takes nothing. A cost of zero asks without taking. Different quotas (by
    /// name) never share a count.
    ///
    /// # Errors
    /// [`RateLimitError::CostExceedsLimit`] when no waiting could ever help; [`RateLimitError::InvalidQuota`];
    /// [`RateLimitError::InvalidKey`]; [`RateLimitError::Unavailable`] when the store is away and the quota
    /// fails closed.
    ///
    /// # Cancel safety
    /// A dropped check may have taken its units.
    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError>;
}

/// How a quota is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// `limit` units at once, refilled evenly over `per` (GCRA: one number per key).
    TokenBucket,
    /// `limit` units in each window of `per`, which starts with its first use. Around an edge up to
    /// `2 × limit − 1` units can pass in a short time.
    FixedWindow,
}

/// What a limit does while its store is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnUnavailable {
    /// Refuse: [`RateLimitError::Unavailable`].
    FailClosed,
    /// Count in this process; each instance then grants the whole limit.
    Local,
}

/// A limit: so many units in so much time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Quota {
    /// Its name: part of every key, and the policy's name in HTTP fields.
    pub name: Cow<'static, str>,
    /// How it is counted.
    pub algorithm: Algorithm,
    /// Units per [`per`](Self::per).
    pub limit: u32,
    /// The time the limit refers to.
    pub per: Duration,
    /// Units that one ordinary operation costs. Default 1.
    pub cost: u32,
    /// What happens while the store is away. Default [`OnUnavailable::Local`].
    pub on_unavailable: OnUnavailable,
}

impl Quota {
    /// The longest time a limit may refer to: 366 days.
    pub const MAX_PER: Duration = Duration::from_secs(366 * 24 * 60 * 60);

    /// A token bucket.
    pub fn token_bucket(name: impl Into<Cow<'static, str>>, limit: u32, per: Duration) -> Self {
        let (algorithm, on_unavailable) = (Algorithm::TokenBucket, OnUnavailable::Local);
        Self { name: name.into(), algorithm, limit, per, cost: 1, on_unavailable }
    }

    /// A fixed window.
    pub fn fixed_window(name: impl Into<Cow<'static, str>>, limit: u32, per: Duration) -> Self {
        Self { algorithm: Algorithm::FixedWindow, ..Self::token_bucket(name, limit, per) }
    }

    /// Preset for ordinary requests: token bucket, 100 per minute; local while the store is away.
    #[must_use]
    pub fn api() -> Self {
        Self::token_bucket("api", 100, Duration::from_secs(60))
    }

    /// Preset for log-in attempts: fixed window, 5 per 15 minutes; closed while the store is away.
    #[must_use]
    pub fn auth() -> Self {
        Self::fixed_window("auth", 5, Duration::from_secs(15 * 60)).fail_closed()
    }

    /// Preset for second factors: as [`auth`](Self::auth), counted apart.
    #[must_use]
    pub fn mfa() -> Self {
        Self { name: "mfa".into(), ..Self::auth() }
    }

    /// Preset for writes: token bucket, 100 per minute, 5 units each; local while the store is away.
    #[must_use]
    pub fn mutation() -> Self {
        Self { name: "mutation".into(), cost: 5, ..Self::api() }
    }

    /// Refuses while the store is away.
    #[must_use]
    pub fn fail_closed(mut self) -> Self {
        self.on_unavailable = OnUnavailable::FailClosed;
        self
    }

    /// Sets what one ordinary operation costs.
    #[must_use]
    pub fn with_cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    /// Checks the quota; for backends.
    ///
    /// # Errors
    /// [`RateLimitError::InvalidQuota`] when the limit is zero, or the time is under a microsecond per unit
    /// or over [`Quota::MAX_PER`]; [`RateLimitError::InvalidKey`] when the name is no key segment;
    /// [`RateLimitError::CostExceedsLimit`].
    pub fn validate(&self, cost: u32) -> Result<(), RateLimitError> {
        let refuse = |reason| Err(RateLimitError::InvalidQuota { reason });
        crate::key::validate(&self.name)?;
        if self.limit == 0 {
            return refuse("the limit is zero");
        }
        if self.per > Self::MAX_PER {
            return refuse("the time is over 366 days");
        }
        if self.per.as_micros() < u128::from(self.limit) {
            return refuse("the time is under a microsecond per unit");
        }
        if cost > self.limit {
            return Err(RateLimitError::CostExceedsLimit { cost, limit: self.limit });
        }
        Ok(())
    }
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether the units were taken.
    pub allowed: bool,
    /// The quota's limit.
    pub limit: u32,
    /// Units left now.
    pub remaining: u32,
    /// Until the whole limit is there again.
    pub reset_after: Duration,
    /// Until more units than now are there; zero when none are missing.
    pub next_after: Duration,
    /// When refused: how long to wait before the same cost can be allowed.
    pub retry_after: Option<Duration>,
}

impl Decision {
    /// Makes a refusal an error.
    ///
    /// # Errors
    /// [`RateLimited`] when it was refused.
    pub fn into_result(self) -> Result<Self, RateLimited> {
        match self.allowed {
            true => Ok(self),
            false => Err(RateLimited { decision: self }),
        }
    }
}

/// Over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rate limited: try again in {:?}", decision.retry_after.unwrap_or_default())]
pub struct RateLimited {
    /// The refusal.
    pub decision: Decision,
}

/// Why a check could not be made.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RateLimitError {
    /// The cost is more than the limit ever holds.
    #[error("a cost of {cost} can never be allowed by a limit of {limit}")]
    CostExceedsLimit {
        /// The units asked for.
        cost: u32,
        /// The quota's limit.
        limit: u32,
    },
    /// The quota cannot work.
    #[error("invalid quota: {reason}")]
    InvalidQuota {
        /// Why.
        reason: &'static str,
    },
    /// The key is not acceptable.
    #[error("invalid rate limit key: {0}")]
    InvalidKey(#[from] KeyError),
    /// Over the limit; from the helpers that make a refusal an error.
    #[error(transparent)]
    Limited(#[from] RateLimited),
    /// The store is away and the quota fails closed.
    #[error("the rate limit cannot be checked now: {source}")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
        /// What the store said.
        source: BackendError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G1, G4: the presets are what they are documented to be.
    #[test]
    fn presets_have_their_documented_values() {
        let values = |quota: Quota| (quota.limit, quota.per.as_secs(), quota.cost, quota.algorithm);
        assert_eq!(values(Quota::api()), (100, 60, 1, Algorithm::TokenBucket));
        assert_eq!(values(Quota::mutation()), (100, 60, 5, Algorithm::TokenBucket));
        assert_eq!(values(Quota::auth()), (5, 900, 1, Algorithm::FixedWindow));
        assert_eq!(values(Quota::mfa()), (5, 900, 1, Algorithm::FixedWindow));
        for (quota, mode) in [
            (Quota::api(), OnUnavailable::Local),
            (Quota::mutation(), OnUnavailable::Local),
            (Quota::auth(), OnUnavailable::FailClosed),
            (Quota::mfa(), OnUnavailable::FailClosed),
        ] {
            assert_eq!(quota.on_unavailable, mode, "{}", quota.name);
        }
    }

    /// SH6: a cost over the limit is refused at once, by name.
    #[test]
    fn impossible_quotas_are_refused() {
        assert!(matches!(
            Quota::auth().validate(6),
            Err(RateLimitError::CostExceedsLimit { cost: 6, limit: 5 })
        ));
        let zero = Quota::token_bucket("x", 0, Duration::from_secs(1));
        assert!(matches!(zero.validate(0), Err(RateLimitError::InvalidQuota { .. })));
        let fast = Quota::token_bucket("x", 2, Duration::from_micros(1));
        assert!(matches!(fast.validate(1), Err(RateLimitError::InvalidQuota { .. })));
        assert!(Quota::api().validate(100).is_ok());
    }
}
