//! Rate limits that a store counts for all instances, and what this process knows by itself: who was denied, and
//! what to do while the store is away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cache_core::gcra::{self, Count};
use cache_core::{Clock, Decision, OnUnavailable, Quota, RateLimitError, RateLimits, key};

use super::counts::{Counts, Ends};
use super::local::{LocalRateLimits, micros};
use super::meters::Meters;

/// How long a denial by a token bucket is believed without asking again, in microseconds. A fixed window is
/// believed until it ends.
const BELIEVED: u64 = 10_000_000;

/// [`RateLimits`] of a fleet: counted in a store that instances share. Clones share everything.
///
/// - **A caller who was denied is denied again from memory**, without asking the store, for as long as what the
///   store said then denies it: to the end of a fixed window, at most 10 s of a token bucket. Never longer than
///   the store would: its count can only have grown since, and time is counted from before it was asked. The wait
///   it is told counts from when the answer came, and so is enough.
/// - **While the store is away** ([`RateLimitError::Unavailable`]) a quota with [`OnUnavailable::Local`] is counted
///   in this process, so each instance grants the whole limit; one with [`OnUnavailable::FailClosed`] is an
///   error. Each such check is counted as `rate_limit_store_failures_total{name, outcome}`, with the outcome
///   `local` or `closed`.
///
/// ```
/// use std::sync::Arc;
/// use cache_core::{Quota, RateLimits};
/// use concurrency::{FleetRateLimits, LocalConcurrencyService};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = Arc::new(LocalConcurrencyService::new()); // in a fleet, one that all instances share
/// let limits = FleetRateLimits::new(store);
/// assert!(limits.check(&Quota::api(), "ann", 1).await?.allowed);
/// # Ok::<(), cache_core::RateLimitError>(()) }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct FleetRateLimits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Arc<dyn RateLimits>,
    denied: Counts<Denial>,
    local: LocalRateLimits,
    clock: Clock,
    meters: Meters,
}

/// What the store said when it denied, by this process's clock; in microseconds.
#[derive(Debug, Clone, Copy)]
struct Denial {
    /// As if it had been said when it was asked.
    count: Count,
    until: u64,
    /// How much later it may have been.
    late: u64,
}

impl Ends for Denial {
    fn ends(&self) -> u64 {
        self.until
    }
}

impl FleetRateLimits {
    /// Limits that `store` counts, with default bounds.
    #[must_use]
    pub fn new(store: Arc<dyn RateLimits>) -> Self {
        Self::builder(store).build()
    }

    /// Limits that `store` counts, with bounds of your own.
    pub fn builder(store: Arc<dyn RateLimits>) -> FleetRateLimitsBuilder {
        FleetRateLimitsBuilder {
            store,
            clock: Clock::system(),
            max_denied_keys: 10_000,
            max_local_keys: 100_000,
        }
    }

    /// Denials and counts kept in memory now; for tests and diagnostics.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.0.denied.kept(micros(self.0.clock.now())) + self.0.local.kept()
    }
}

/// Assembles [`FleetRateLimits`].
#[derive(Debug, Clone)]
#[must_use = "a builder builds nothing until `build` is called"]
pub struct FleetRateLimitsBuilder {
    store: Arc<dyn RateLimits>,
    clock: Clock,
    max_denied_keys: usize,
    max_local_keys: usize,
}

impl FleetRateLimitsBuilder {
    /// The clock by which denials are remembered and local counts are kept; for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Keys whose denial is remembered at the same time. Beyond, the denials that end soonest are forgotten, and
    /// the store is asked. Default 10 000.
    pub fn max_denied_keys(mut self, keys: usize) -> Self {
        self.max_denied_keys = keys;
        self
    }

    /// Keys counted here at the same time while the store is away. Beyond, the counts that end soonest are
    /// forgotten. Default 100 000.
    pub fn max_local_keys(mut self, keys: usize) -> Self {
        self.max_local_keys = keys;
        self
    }

    /// Assembles the limits.
    #[must_use]
    pub fn build(self) -> FleetRateLimits {
        FleetRateLimits(Arc::new(Shared {
            store: self.store,
            denied: Counts::new(self.max_denied_keys),
            local: LocalRateLimits::new(self.clock.clone(), self.max_local_keys),
            clock: self.clock,
            meters: Meters::default(),
        }))
    }
}

#[async_trait]
impl RateLimits for FleetRateLimits {
    async fn check(&self, quota: &Quota, key: &str, cost: u32) -> Result<Decision, RateLimitError> {
        quota.validate(cost)?;
        key::validate(key)?;
        let Shared { store, clock, meters, .. } = &*self.0;
        let started = clock.now();
        if let Some(decision) = self.0.denied(quota, key, micros(started), cost) {
            meters.unasked(quota, &decision, clock, started);
            return Ok(decision);
        }
        match store.check(quota, key, cost).await {
            Ok(decision) => {
                let took = clock.now().since(started);
                self.0.remember(quota, key, micros(started), took, &decision);
                meters.asked(quota, &decision, took);
                Ok(decision)
            }
            Err(error @ RateLimitError::Unavailable { .. }) => self.0.without_store(quota, key, cost, error),
            Err(error) => Err(error),
        }
    }
}

impl Shared {
    /// The decision, if what the store said still denies this cost; or nothing is left, and that is all that is asked.
    fn denied(&self, quota: &Quota, key: &str, now: u64, cost: u32) -> Option<Decision> {
        let denial = self.denied.get(quota, key).filter(|denial| now < denial.until)?;
        let (mut decision, _) = gcra::check(quota, Some(denial.count), now, cost);
        if decision.allowed && (cost > 0 || decision.remaining > 0) {
            return None;
        }
        // Denied no longer than the store would, and told to wait for no less than it would.
        let late = Duration::from_micros(denial.late);
        decision.retry_after = decision.retry_after.map(|wait| wait + late);
        decision.reset_after += late;
        decision.next_after += late;
        Some(decision)
    }

    /// Keeps what the store said of a caller it denies, or denied before: units taken since then count too.
    fn remember(&self, quota: &Quota, key: &str, asked: u64, took: Duration, decision: &Decision) {
        let count = Count::behind(quota, decision, asked);
        let until = match count {
            Count::Bucket(arrival) => arrival.min(asked.saturating_add(BELIEVED)),
            Count::Window { ends, .. } => ends,
        };
        self.denied.update(quota, key, asked, |denial| {
            if denial.is_some() || !decision.allowed {
                *denial = Some(Denial { count, until, late: gcra::micros(took) });
            }
        });
    }

    fn without_store(
        &self,
        quota: &Quota,
        key: &str,
        cost: u32,
        error: RateLimitError,
    ) -> Result<Decision, RateLimitError> {
        match quota.on_unavailable {
            OnUnavailable::Local => {
                self.meters.failed(quota, "local");
                self.local.check(quota, key, cost)
            }
            _ => {
                self.meters.failed(quota, "closed");
                Err(error)
            }
        }
    }
}
