//! How a cache behaves: plain data with reasoned defaults.

use std::time::Duration;

use cache_core::{CacheError, Scope};

use crate::load::Resilience;

/// Which tiers a cache uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Mode {
    /// Near tier in front of the far tier in front of the loader.
    #[default]
    Tiered,
    /// Near tier in front of the loader: for values that are cheap, or cannot be serialised.
    Local,
}

/// Where "there is no such thing" is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum NegativeTier {
    /// In both tiers, so that one instance's answer saves the others the question.
    #[default]
    Both,
    /// In this process only: for keys that anybody can invent, which must not fill the far tier.
    Near,
}

/// The options of a cache domain. Part of its definition: two definitions of a domain must agree.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// Whose entries they are. Default [`Scope::Request`].
    pub scope: Scope,
    /// Which tiers are used. Default [`Mode::Tiered`].
    pub mode: Mode,
    /// Life of an entry. Default 5 min.
    pub ttl: Duration,
    /// Life in the near tier, never beyond the far entry's remaining life. Default 10 s: it bounds staleness
    /// towards writers who do not announce their changes. Not used in [`Mode::Local`].
    pub near_ttl: Duration,
    /// Life of "not found". Default 30 s: shorter, because what is missing is often about to be made.
    pub negative_ttl: Duration,
    /// Where "not found" is remembered. Default [`NegativeTier::Both`].
    pub negative_tier: NegativeTier,
    /// Entries in the near tier. Default 1 000.
    pub capacity: usize,
    /// Remembered "not found" in the near tier; separate, so that inventing keys evicts no values.
    /// Default 1 000.
    pub negative_capacity: usize,
    /// How much of a life is cut off at random, against synchronised expiry: 0 to 1, default 0.1.
    pub jitter: f64,
    /// The share of its fresh life after which a hit refreshes an entry in the background: between 0 and 1.
    /// Default: none.
    pub refresh_ahead: Option<f64>,
    /// How long after its [`ttl`](Self::ttl) an entry is still served, while it is refreshed in the background.
    /// Default 0: not at all.
    pub stale_while_revalidate: Duration,
    /// How long after its [`ttl`](Self::ttl) an entry is kept, to be served when the load fails. Default 0: a
    /// failed load is an error.
    pub stale_if_error: Duration,
    /// How long a value that is served because the load failed goes on being served without another load, so
    /// that an origin in trouble is not hammered. Default 5 s.
    pub error_throttle: Duration,
    /// How long a lookup waits for the load while there is a stale value to give; the load then goes on in the
    /// background. Default: as long as the load takes.
    pub soft_timeout: Option<Duration>,
    /// How long a lookup waits for anything; the load then goes on in the background. Default: as long as the
    /// load takes.
    pub hard_timeout: Option<Duration>,
    /// The share of the near tier that one tenant can fill: over 0, up to 1. Default: none, one tenant can
    /// evict all others.
    pub tenant_share: Option<f64>,
    /// Compresses what is longer than so many bytes in the far tier. Default: nothing. Entries written with and
    /// without it are read alike.
    pub compress_over: Option<usize>,
    /// The longest encoded value, in bytes, that is stored in or taken from the far tier; a longer one is loaded
    /// each time. Default 8 MiB.
    pub max_value_bytes: usize,
    /// How long a lease outlives a crashed loader; renewed at a third while loading. Default 3 s.
    pub lease_for: Duration,
    /// How long to wait for another instance's load before loading without storing. Default 1 s.
    pub lease_wait: Duration,
    /// How old a running load may be and still be joined: 3 s, or less where the bus has a shorter
    /// [bound](cache_core::InvalidationBus::staleness_bound). Under lost messages a reader could otherwise be handed
    /// an answer from before an invalidation.
    pub join_within: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            scope: Scope::Request,
            mode: Mode::Tiered,
            ttl: Duration::from_secs(5 * 60),
            near_ttl: Duration::from_secs(10),
            negative_ttl: Duration::from_secs(30),
            negative_tier: NegativeTier::Both,
            capacity: 1_000,
            negative_capacity: 1_000,
            jitter: 0.1,
            refresh_ahead: None,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            error_throttle: Duration::from_secs(5),
            soft_timeout: None,
            hard_timeout: None,
            tenant_share: None,
            compress_over: None,
            max_value_bytes: 8 << 20,
            lease_for: Duration::from_secs(3),
            lease_wait: Duration::from_secs(1),
            join_within: Duration::from_secs(3),
        }
    }
}

impl Policy {
    /// The shortest lease: below it a renewal could not be on time.
    pub const MIN_LEASE: Duration = Duration::from_millis(30);

    /// Checks that the options can work.
    ///
    /// # Errors
    /// [`CacheError::Configuration`] that names the option.
    pub fn validate(&self, domain: &str) -> Result<(), CacheError> {
        cache_core::key::validate_domain(domain, self.scope == Scope::Global)?;
        let refuse =
            |reason: &'static str| Err(CacheError::configuration(format!("cache domain `{domain}`"), reason));
        if self.capacity == 0 {
            return refuse("`capacity` is zero");
        }
        if self.negative_capacity == 0 {
            return refuse("`negative_capacity` is zero");
        }
        if self.ttl.is_zero() {
            return refuse("`ttl` is zero: nothing would ever be cached");
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return refuse("`jitter` is not between 0 and 1");
        }
        if self.max_value_bytes == 0 {
            return refuse("`max_value_bytes` is zero: nothing could be stored");
        }
        if self.lease_for < Self::MIN_LEASE {
            return refuse("`lease_for` is under 30 ms");
        }
        if self.refresh_ahead.is_some_and(|share| !(0.0..1.0).contains(&share) || share == 0.0) {
            return refuse("`refresh_ahead` is not between 0 and 1");
        }
        if self.tenant_share.is_some_and(|share| !(0.0..=1.0).contains(&share) || share == 0.0) {
            return refuse("`tenant_share` is not over 0 and up to 1");
        }
        if self.soft_timeout.is_some_and(|limit| limit.is_zero()) {
            return refuse("`soft_timeout` is zero: use `stale_while_revalidate`");
        }
        if self.soft_timeout.is_some() && self.stale_if_error.is_zero() {
            return refuse("`soft_timeout` without `stale_if_error`: there is never anything stale to serve");
        }
        if self.hard_timeout.is_some_and(|limit| limit.is_zero()) {
            return refuse("`hard_timeout` is zero: no lookup could load");
        }
        if self.soft_timeout.zip(self.hard_timeout).is_some_and(|(soft, hard)| soft > hard) {
            return refuse("`soft_timeout` is over `hard_timeout`: it would never be reached");
        }
        Ok(())
    }

    /// How long an entry is kept after its fresh life.
    pub(crate) fn grace(&self) -> Duration {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    /// Whether lookups end at some time whatever their loads do.
    pub(crate) fn limits_lookups(&self) -> bool {
        self.hard_timeout.is_some() || self.soft_timeout.is_some()
    }

    /// How long a lookup waits for a load while it has a stale value to give.
    pub(crate) fn stale_patience(&self) -> Option<Duration> {
        self.soft_timeout.or(self.hard_timeout)
    }

    /// A life shortened by a random part of at most [`jitter`](Self::jitter).
    pub(crate) fn jittered(&self, life: Duration) -> Duration {
        if self.jitter == 0.0 {
            return life;
        }
        life.mul_f64(1.0 - rand::random::<f64>() * self.jitter)
    }
}

/// Checks that what is done about a failing loader can work.
///
/// # Errors
/// [`CacheError::Configuration`] that names the option.
pub(crate) fn validate_resilience(domain: &str, resilience: &Resilience) -> Result<(), CacheError> {
    let refuse =
        |reason: &'static str| Err(CacheError::configuration(format!("cache domain `{domain}`"), reason));
    let Resilience { retry, attempt_timeout, timeout } = resilience;
    if timeout.is_some_and(|limit| limit.is_zero()) {
        return refuse("`timeout` is zero: no load could end in time");
    }
    if attempt_timeout.is_some_and(|limit| limit.is_zero()) {
        return refuse("`attempt_timeout` is zero: no load could end in time");
    }
    if attempt_timeout.zip(*timeout).is_some_and(|(attempt, all)| attempt > all) {
        return refuse("`attempt_timeout` is over `timeout`: it would never be reached");
    }
    if retry.is_some_and(|retry| retry.max_delay < retry.min_delay) {
        return refuse("`retry` has a longest pause that is shorter than its first");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E5, SB9: jitter only shortens, and by no more than its share.
    #[test]
    fn jitter_stays_within_its_bounds() {
        let policy = Policy { jitter: 0.1, ..Policy::default() };
        let life = Duration::from_secs(100);
        for _ in 0..1_000 {
            let jittered = policy.jittered(life);
            assert!(jittered <= life && jittered >= Duration::from_secs(90), "{jittered:?}");
        }
        assert_eq!(Policy { jitter: 0.0, ..policy }.jittered(life), life);
    }

    /// E5: the documented defaults.
    #[test]
    fn defaults_are_as_documented() {
        let policy = Policy::default();
        assert_eq!(policy.ttl, Duration::from_secs(300));
        assert_eq!(policy.near_ttl, Duration::from_secs(10));
        assert_eq!(policy.negative_ttl, Duration::from_secs(30));
        assert_eq!((policy.capacity, policy.jitter), (1_000, 0.1));
        assert_eq!(policy.scope, Scope::Request);
    }

    /// A7: a policy that cannot work is refused with the option's name.
    #[test]
    fn impossible_policies_are_refused_by_name() {
        for (policy, name) in [
            (Policy { capacity: 0, ..Policy::default() }, "`capacity`"),
            (Policy { ttl: Duration::ZERO, ..Policy::default() }, "`ttl`"),
            (Policy { jitter: 1.5, ..Policy::default() }, "`jitter`"),
            (Policy { jitter: f64::NAN, ..Policy::default() }, "`jitter`"),
            (Policy { max_value_bytes: 0, ..Policy::default() }, "`max_value_bytes`"),
            (Policy { lease_for: Duration::ZERO, ..Policy::default() }, "`lease_for`"),
            (Policy { refresh_ahead: Some(1.0), ..Policy::default() }, "`refresh_ahead`"),
            (Policy { refresh_ahead: Some(0.0), ..Policy::default() }, "`refresh_ahead`"),
            (Policy { tenant_share: Some(0.0), ..Policy::default() }, "`tenant_share`"),
            (Policy { tenant_share: Some(f64::NAN), ..Policy::default() }, "`tenant_share`"),
            (Policy { soft_timeout: Some(Duration::ZERO), ..Policy::default() }, "`soft_timeout`"),
            (Policy { soft_timeout: Some(Duration::from_secs(1)), ..Policy::default() }, "`stale_if_error`"),
            (Policy { hard_timeout: Some(Duration::ZERO), ..Policy::default() }, "`hard_timeout`"),
        ] {
            let error = policy.validate("d").unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
