//! The suite every lock backend must pass, in process.

use std::sync::Arc;

use concurrency::LocalConcurrencyService;
use conformance::faults::ChaosConcurrency;
use conformance::lock::LockFixture;

async fn local() -> LockFixture {
    LockFixture::new(Arc::new(LocalConcurrencyService::new()))
}

/// With open gates a twin is what it is a twin of.
async fn twin() -> LockFixture {
    LockFixture::new(Arc::new(ChaosConcurrency::new(Arc::new(LocalConcurrencyService::new()))))
}

conformance::lock_suite!(local, crate::local);
conformance::lock_suite!(twin, crate::twin);
