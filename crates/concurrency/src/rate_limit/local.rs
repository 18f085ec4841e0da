//! Rate limits of this process.

use std::sync::Arc;

use cache_core::gcra::{self, Count};
use cache_core::{Clock, Decision, Quota, RateLimitError, Tick, key};

use super::counts::{Counts, Ends};
use super::meters::Meters;

/// The counts. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct LocalRateLimits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    counts: Counts<Count>,
    clock: Clock,
    meters: Meters,
}

impl Ends for Count {
    fn ends(&self) -> u64 {
        Self::ends(*self)
    }
}

impl Default for LocalRateLimits {
    fn default() -> Self {
        Self::new(Clock::system(), 100_000)
    }
}

impl LocalRateLimits {
    pub(crate) fn new(clock: Clock, max_keys: usize) -> Self {
        Self(Arc::new(Shared { counts: Counts::new(max_keys), clock, meters: Meters::default() }))
    }

    pub(crate) fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        quota.validate(cost)?;
        key::validate(key)?;
        let Shared { counts, clock, meters } = &*self.0;
        let started = clock.now();
        let now = micros(started);
        let decision = counts.update(quota, key, now, |count| {
            let (decision, new) = gcra::check(quota, *count, now, cost);
            *count = new.or(*count);
            decision
        });
        meters.unasked(quota, &decision, clock, started);
        Ok(decision)
    }

    pub(crate) fn kept(&self) -> usize {
        self.0.counts.kept(micros(self.0.clock.now()))
    }
}

/// A point in time in microseconds.
pub(super) fn micros(at: Tick) -> u64 {
    at.as_nanos() / 1_000
}
