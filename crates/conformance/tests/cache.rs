//! The suite on what is believed without it: the model, and the chaos twin with open gates.

use std::sync::Arc;

use cache_core::ManualClock;
use conformance::cache::{CacheFixture, MAX_VALUE_BYTES, Time};
use conformance::faults::ChaosCache;
use conformance::model::ModelCache;

async fn plain() -> CacheFixture {
    let hand = ManualClock::new();
    CacheFixture::new(Arc::new(ModelCache::new(hand.clock(), MAX_VALUE_BYTES)), Time::Manual(hand))
}

async fn twin() -> CacheFixture {
    let CacheFixture { service, time, .. } = plain().await;
    CacheFixture::new(Arc::new(ChaosCache::new(service)), time)
}

conformance::cache_suite!(model, crate::plain);
conformance::cache_suite!(chaos, crate::twin);
