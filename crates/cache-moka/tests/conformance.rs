//! The suite every cache backend must pass, on mini-moka.

use std::sync::Arc;

use cache_core::ManualClock;
use cache_moka::MokaCacheService;
use conformance::cache::{CacheFixture, MAX_VALUE_BYTES, Time};

async fn fixture() -> CacheFixture {
    let hand = ManualClock::new();
    let service = MokaCacheService::builder().clock(hand.clock()).max_value_bytes(MAX_VALUE_BYTES).build();
    CacheFixture::new(Arc::new(service.expect("the options work")), Time::Manual(hand))
}

conformance::cache_suite!(moka, crate::fixture);
