//! Loads that go on after whoever began them has an answer: refreshes, and loads that outlived a lookup's
//! patience. One per key; bounded in number and in time.

use std::sync::Arc;
use std::time::Duration;

use cache_core::Tick;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::fetch::Fetch;
use crate::flight::{Boarding, Flight, Flights, Landing};
use crate::key::CacheKey;

/// Loads of one cache in the background at the same time; a refresh beyond is left to a later hit, a slow load
/// is waited for.
const MAX_LOADS: usize = 256;

/// The longest a load goes on in the background when the cache's own time-out does not end it before.
const LONGEST: Duration = Duration::from_secs(60);

/// The background loads of one cache.
pub(crate) struct Background<K, V> {
    flights: Arc<Flights<K, V>>,
    permits: Arc<Semaphore>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Background<K, V> {
    pub(crate) fn new() -> Self {
        Self { flights: Arc::new(Flights::new()), permits: Arc::new(Semaphore::new(MAX_LOADS)) }
    }

    /// The load of this key that is going on, if the lookup may have its answer.
    pub(crate) fn find(&self, fetch: &Fetch<K, V>) -> Option<Flight<V>> {
        if self.flights.is_empty() {
            return None;
        }
        let near = &fetch.cache.near;
        let stands = |ticket: &_| near.stands(ticket);
        self.flights.find(&fetch.key, &boarding(fetch, &stands))
    }

    /// Begins a load unless one is going on; `false` when it did not.
    pub(crate) fn begin(
        &self,
        fetch: &Fetch<K, V>,
        course: impl FnOnce() -> BoxFuture<'static, Landing<V>>,
    ) -> bool {
        let near = &fetch.cache.near;
        let stands = |ticket: &_| near.stands(ticket);
        let boarding = boarding(fetch, &stands);
        let (flight, joined) = self.flights.board(fetch.key.clone(), fetch.ticket.clone(), &boarding, course);
        !joined && self.spawn(flight)
    }

    /// Goes on with a load whose caller has lost patience, and which began at `began`: it is no younger for having
    /// been left. `false` when too many go on already.
    pub(crate) fn adopt(&self, fetch: &Fetch<K, V>, flight: Flight<V>, began: Tick) -> bool {
        let course = || Box::pin(flight) as BoxFuture<'static, Landing<V>>;
        let flight = self.flights.board_anew(fetch.key.clone(), fetch.ticket.clone(), began, course);
        self.spawn(flight)
    }

    fn spawn(&self, flight: Flight<V>) -> bool {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return false };
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(LONGEST, flight).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "a load in the background failed"),
                Err(_) => tracing::warn!(after = ?LONGEST, "a load in the background was given up"),
            }
        });
        true
    }
}

fn boarding<'a, K: CacheKey, V: Send + Sync + 'static>(
    fetch: &Fetch<K, V>,
    stands: &'a dyn Fn(&crate::near::Ticket) -> bool,
) -> Boarding<'a> {
    let now = fetch.cache.shared.clock.coarse();
    // Half, because who joins may be joined in turn: both together stay within the bound.
    Boarding { now, join_within: fetch.cache.policy.join_within / 2, stands }
}
