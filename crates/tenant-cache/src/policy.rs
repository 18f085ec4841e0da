//! How a cache behaves: plain data with reasoned defaults.

use std::time::Duration;

use cache_core::{CacheError, Scope};

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
    /// How long a lease outlives a crashed loader; renewed at a third while loading. Default 3 s.
    pub lease_for: Duration,
    /// How long to wait for another instance's load before loading without storing. Default 1 s.
    pub lease_wait: Duration,
    /// How old a running load may be and still be joined. Default 3 s, the staleness bound of the bus: under
    /// lost messages a reader could otherwise be handed an answer from before an invalidation.
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
        if self.lease_for < Self::MIN_LEASE {
            return refuse("`lease_for` is under 30 ms");
        }
        Ok(())
    }

    /// A life shortened by a random part of at most [`jitter`](Self::jitter).
    pub(crate) fn jittered(&self, life: Duration) -> Duration {
        if self.jitter == 0.0 {
            return life;
        }
        life.mul_f64(1.0 - rand::random::<f64>() * self.jitter)
    }
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
            (Policy { lease_for: Duration::ZERO, ..Policy::default() }, "`lease_for`"),
        ] {
            let error = policy.validate("d").unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
