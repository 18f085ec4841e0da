//! The suite every invalidation bus must pass, in process.

use std::sync::Arc;

use concurrency::LocalBus;
use conformance::bus::BusFixture;

async fn fixture() -> BusFixture {
    BusFixture::new(Arc::new(LocalBus::new()))
}

conformance::bus_suite!(local, crate::fixture);
