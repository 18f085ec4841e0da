//! The connections that clients keep alive through this instance, so that they can be released when it stops.

use std::collections::HashMap;
use std::time::Duration;

use app_builder::AppService;
use cache_core::{Clock, PresenceOptions, TenantId, Tick};
use parking_lot::Mutex;
use tokio::task::JoinSet;

/// Connections known at the same time. Those beyond end by their TTL, as all do when the process is killed.
const MAX: usize = 100_000;
/// Connections released at the same time.
const AT_ONCE: usize = 256;

/// Who beat here lately. A client that has not for half of its life is served by another instance, or gone: it is
/// not ours to release.
#[derive(Debug)]
pub struct Connections {
    known: Mutex<Known>,
    clock: Clock,
    lately: Duration,
}

#[derive(Debug)]
struct Known {
    until: HashMap<(TenantId, Box<str>), Tick>,
    swept: Tick,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(Clock::system())
    }
}

impl Connections {
    /// None, by this clock.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let known = Known { until: HashMap::new(), swept: Tick::ZERO };
        Self { known: Mutex::new(known), clock, lately: PresenceOptions::default().ttl / 2 }
    }

    /// A connection joined or beat here.
    pub fn beat(&self, tenant: &TenantId, id: &str) {
        let now = self.clock.now();
        let mut known = self.known.lock();
        // Once in the time that one is known, which is a constant cost per beat.
        if now.since(known.swept) >= self.lately {
            known.until.retain(|_, until| now < *until);
            known.swept = now;
        }
        let key = (tenant.clone(), Box::from(id));
        if known.until.len() < MAX || known.until.contains_key(&key) {
            known.until.insert(key, now + self.lately);
        }
    }

    /// A connection left.
    pub fn left(&self, tenant: &TenantId, id: &str) {
        self.known.lock().until.remove(&(tenant.clone(), Box::from(id)));
    }

    /// How many are known; for tests and diagnostics.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.lock().until.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the presence of those who beat here lately, as far as the store allows; the others end by their TTL.
    ///
    /// # Cancel safety
    /// Those not yet released end by their TTL.
    pub async fn release(&self, app: &AppService) {
        let now = self.clock.now();
        let known = std::mem::take(&mut self.known.lock().until);
        let mut ours = known.into_iter().filter(|(_, until)| now < *until).map(|(key, _)| key).peekable();
        while ours.peek().is_some() {
            let mut leaving = JoinSet::new();
            for (tenant, id) in ours.by_ref().take(AT_ONCE) {
                let presence = app.presence();
                leaving.spawn(async move { presence.leave(&tenant, &id).await });
            }
            // Without the store each would wait for its deadline.
            if leaving.join_all().await.iter().any(Result::is_err) {
                tracing::warn!("not every connection could be released: the rest end by their time");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::ManualClock;

    /// L4: what is known is bounded, and forgotten when it is no longer ours.
    #[test]
    fn what_is_known_is_bounded_and_forgotten() {
        let hand = ManualClock::new();
        let (known, acme) = (Connections::new(hand.clock()), TenantId::new("acme").unwrap());
        for n in 0..150_000 {
            known.beat(&acme, &n.to_string());
        }
        assert_eq!(known.len(), MAX);
        hand.advance(PresenceOptions::default().ttl / 2);
        known.beat(&acme, "new");
        assert_eq!(known.len(), 1);
        known.left(&acme, "new");
        assert!(known.is_empty());
    }
}
