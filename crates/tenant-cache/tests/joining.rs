//! Which loads a lookup may join when nothing is heard from the bus: none from before the bound.

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cache_core::bus::Sinks;
use cache_core::{
    BusState, CacheError, Invalidation, InvalidationBus, InvalidationSink, ManualClock, Subscription, Tick,
    Trust,
};
use support::nodes::{NEW, OLD, key};
use support::{Origin, of, plain, versions_with};
use tenant_cache::Caches;

/// A bus from which nothing is heard any more.
#[derive(Debug)]
struct Deaf {
    sinks: Sinks,
    trust: Arc<Trust>,
    bound: Option<Duration>,
}

#[async_trait]
impl InvalidationBus for Deaf {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.sinks.apply(message);
        Ok(())
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        self.sinks.subscribe(sink)
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust)
    }

    fn state(&self) -> BusState {
        BusState::default()
    }

    fn staleness_bound(&self) -> Option<Duration> {
        self.bound
    }
}

fn deaf() -> Arc<Deaf> {
    let trust = Trust::none();
    trust.extend_far(Tick::NEVER);
    Arc::new(Deaf { sinks: Sinks::default(), trust: Arc::new(trust), bound: None })
}

/// PROTOCOLS 3, P2: a load that is older than the bound is not joined: what it brings may have been changed by somebody
/// whose message did not come.
#[tokio::test]
async fn a_load_older_than_the_bound_is_not_joined() {
    let (hand, origin) = (ManualClock::new(), Origin::gated());
    let caches = Caches::builder().bus(deaf()).clock(hand.clock()).build().unwrap();
    let cache = versions_with(&caches, &origin, |domain| domain);
    let read = || {
        let cache = cache.clone();
        tokio::spawn(async move { plain(of("acme", cache.get(&key())).await.unwrap()) })
    };
    origin.commit("k", OLD);
    let first = read();
    origin.at_gate(1).await;
    // Somebody else changes the row, and nobody hears of it.
    origin.commit("k", NEW);
    hand.advance(Duration::from_millis(3_001));
    let second = read();
    origin.at_gate(2).await;
    origin.release(2);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (Some(OLD), Some(NEW)));
}

/// P2: the bound is the bus's: where it is shorter than the default, loads are joined for less long.
#[tokio::test]
async fn the_bus_says_how_old_a_joined_load_may_be() {
    let (hand, origin) = (ManualClock::new(), Origin::gated());
    let bus = Deaf { bound: Some(Duration::from_millis(600)), ..Arc::into_inner(deaf()).unwrap() };
    let caches = Caches::builder().bus(Arc::new(bus)).clock(hand.clock()).build().unwrap();
    let cache = versions_with(&caches, &origin, |domain| domain);
    let read = || {
        let cache = cache.clone();
        tokio::spawn(async move { plain(of("acme", cache.get(&key())).await.unwrap()) })
    };
    origin.commit("k", OLD);
    let first = read();
    origin.at_gate(1).await;
    origin.commit("k", NEW);
    hand.advance(Duration::from_millis(600));
    let second = read();
    origin.at_gate(2).await;
    origin.release(2);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (Some(OLD), Some(NEW)));
}

/// SE6, P2: a load that goes on in the background is as old as when it began, not as when its caller left it.
#[tokio::test]
async fn a_load_left_to_the_background_does_not_grow_young() {
    let (hand, origin) = (ManualClock::new(), Origin::gated());
    let caches = Caches::builder().bus(deaf()).clock(hand.clock()).build().unwrap();
    let cache = versions_with(&caches, &origin, |domain| domain.hard_timeout(Duration::from_millis(200)));
    let read = || {
        let cache = cache.clone();
        tokio::spawn(async move { of("acme", cache.get(&key())).await })
    };
    origin.commit("k", OLD);
    let first = read();
    origin.at_gate(1).await;
    origin.commit("k", NEW);
    // The caller was patient for ten seconds, and leaves.
    hand.advance(Duration::from_secs(10));
    first.await.unwrap().unwrap_err();
    let second = read();
    origin.at_gate(2).await;
    origin.release(2);
    assert_eq!(plain(second.await.unwrap().unwrap()), Some(NEW));
}

/// SE6, P2: who joined a load in the background is joined in turn: both together reach back no further than the bound.
#[tokio::test]
async fn who_joined_a_load_is_not_joined_beyond_the_bound() {
    for pauses in [[1_400, 1_700], [1_700, 1_400]] {
        let (hand, origin) = (ManualClock::new(), Origin::gated());
        let caches = Caches::builder().bus(deaf()).clock(hand.clock()).build().unwrap();
        let patience = Duration::from_millis(300);
        let cache = versions_with(&caches, &origin, |domain| domain.hard_timeout(patience));
        origin.commit("k", OLD);
        of("acme", cache.get(&key())).await.unwrap_err();
        origin.at_gate(1).await;
        origin.commit("k", NEW);
        let mut last = None;
        for pause in pauses {
            hand.advance(Duration::from_millis(pause));
            let cache = cache.clone();
            last = Some(tokio::spawn(async move { of("acme", cache.get(&key())).await }));
            // It looks round, joins what it may, or stands at the gate.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        origin.release(3);
        let found = last.unwrap().await.unwrap().unwrap();
        assert_eq!(plain(found), Some(NEW), "{pauses:?}: 3.1 s after the first load began");
    }
}
