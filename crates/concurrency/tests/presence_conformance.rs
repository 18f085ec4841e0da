//! The suite every presence backend must pass, in process.

use std::sync::Arc;

use cache_core::{ManualClock, PresenceOptions};
use concurrency::LocalConcurrencyService;
use conformance::presence::PresenceFixture;

async fn fixture() -> PresenceFixture {
    let hand = ManualClock::new();
    let service = Arc::new(LocalConcurrencyService::builder().clock(hand.clock()).build());
    let pass = move |time| {
        hand.advance(time);
        Box::pin(std::future::ready(())) as _
    };
    let peer = Arc::new(LocalConcurrencyService::clone(&service));
    PresenceFixture::new(service, PresenceOptions::default().ttl, Arc::new(pass)).with_peer(peer)
}

conformance::presence_suite!(local, crate::fixture);
