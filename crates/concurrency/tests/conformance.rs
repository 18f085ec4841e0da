//! The suite every lock backend must pass, in process.

use std::sync::Arc;

use concurrency::LocalConcurrencyService;
use conformance::lock::LockFixture;

async fn fixture() -> LockFixture {
    LockFixture::new(Arc::new(LocalConcurrencyService::new()))
}

conformance::lock_suite!(local, crate::fixture);
