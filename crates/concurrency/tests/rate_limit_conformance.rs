//! The suite every backend of rate limits must pass, in process.

use std::sync::Arc;

use concurrency::{FleetRateLimits, LocalConcurrencyService};
use conformance::faults::ChaosConcurrency;
use conformance::rate_limit::RateLimitFixture;

async fn local() -> RateLimitFixture {
    RateLimitFixture::new(Arc::new(LocalConcurrencyService::new()))
}

/// Two instances with one store, behind open gates.
async fn two_instances() -> RateLimitFixture {
    let store = Arc::new(ChaosConcurrency::new(Arc::new(LocalConcurrencyService::new())));
    let instance = || Arc::new(FleetRateLimits::new(store.clone()));
    RateLimitFixture::new(instance()).with_peer(instance())
}

conformance::rate_limit_suite!(local, crate::local);
conformance::rate_limit_suite!(two_instances, crate::two_instances);
