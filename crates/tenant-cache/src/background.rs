//! Loads that go on after whoever began them has an answer: refreshes, and loads that outlived a lookup's limit. One
//! refresh per key; bounded in number and in time.
//!
//! What a refresh ends with is nobody's answer, unless it is the value that a lookup would have loaded itself: a lookup
//! that waited for a refresh which found nothing to do, or failed, goes on by itself.

use std::sync::Arc;
use std::time::Duration;

use cache_core::LoadError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::Found;
use crate::fetch::Fetch;
use crate::key::CacheKey;
use crate::load_stack::LoadStack;
use crate::near::Ticket;
use crate::single_flight::{Flight, JoinRule, LookupResult, Part, Passenger, SingleFlight};

/// Loads of one cache in the background at the same time; beyond, a refresh is left to a later hit, and a load whose
/// callers have all left ends with the last of them.
const MAX_LOADS: usize = 256;

/// The longest a load goes on in the background when the cache's own time-out does not end it before.
const LONGEST: Duration = Duration::from_secs(60);

/// A waiter of a refresh, which ends with an answer for lookups or with nothing.
type RefreshPassenger<K, V> = Passenger<Fetch<K, V>, Option<Found<V>>>;

type Refreshes<K, V> = SingleFlight<Fetch<K, V>, Option<Found<V>>>;

/// The background loads of one cache.
pub(crate) struct Background<K, V> {
    refreshes: Arc<Refreshes<K, V>>,
    permits: Arc<Semaphore>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Background<K, V> {
    pub(crate) fn new() -> Self {
        Self { refreshes: Arc::new(SingleFlight::new()), permits: Arc::new(Semaphore::new(MAX_LOADS)) }
    }

    /// What a refresh of this key that is going on brings, if the lookup may have its answer.
    pub(crate) async fn answer_of(
        &self,
        fetch: &Fetch<K, V>,
        flight: &Flight<Fetch<K, V>, LookupResult<V>>,
    ) -> Option<Found<V>> {
        let refresh = if fetch.anew { None } else { self.join(fetch) }?;
        // Where the refresh waits for this lookup the load is done here.
        let _waiting = LoadStack::current().wait_for(|| refresh.flight.load.node()).ok()?;
        flight.ages_to(refresh.flight.started());
        refresh.flight.load.outcome().await?
    }

    fn join(&self, fetch: &Fetch<K, V>) -> Option<RefreshPassenger<K, V>> {
        let stands = |ticket: &Ticket| fetch.cache.near.stands(ticket);
        self.refreshes.join(&fetch.key, &join_rule(fetch, &stands))
    }

    /// Begins a refresh unless one is going on, or too many are; `false` when it did not.
    pub(crate) fn begin(&self, fetch: Fetch<K, V>) -> bool {
        let Some(permit) = self.permit() else { return false };
        let cache = Arc::clone(&fetch.cache);
        let stands = |ticket: &Ticket| cache.near.stands(ticket);
        let rule = join_rule(&fetch, &stands);
        let Part::Started(started, landing) = self.refreshes.join_or_start(fetch, &rule) else {
            return false;
        };
        let flight = Arc::clone(&started.flight);
        let own = Arc::clone(&flight);
        let refresh = flight.question.as_load(flight.load.node(), async move {
            let refresh = own.question.refresh_quietly();
            let after = LONGEST;
            let given_up = |_| LoadError::TimedOut { domain: Arc::clone(&own.question.cache.domain), after };
            tokio::time::timeout(LONGEST, refresh).await.map_err(given_up)
        });
        let land = move |refreshed: Result<Option<Found<V>>, LoadError>| {
            landing.land(refreshed.unwrap_or_else(|error| {
                tracing::warn!(%error, "a refresh in the background failed");
                None
            }));
            // Until now it was waited for: it ends with nobody.
            drop((started, permit));
        };
        cache.shared.tasks.load(&cache.domain, refresh, land).is_ok()
    }

    /// Goes on with a load whose caller's limit is over. `false` when too many go on already.
    pub(crate) fn adopt(&self, left: &Passenger<Fetch<K, V>, LookupResult<V>>) -> bool {
        let Some(permit) = self.permit() else { return false };
        // It has ended meanwhile: there is nothing to go on with.
        let Some(waiting) = left.another() else { return true };
        let domain = Arc::clone(&left.flight.question.cache.domain);
        left.flight.question.cache.shared.tasks.settle(async move {
            match tokio::time::timeout(LONGEST, waiting.flight.load.outcome()).await {
                Ok(Some(Err(error))) => tracing::warn!(domain = &*domain, %error, "a load in the background failed"),
                Ok(_) => {}
                Err(_) => tracing::warn!(domain = &*domain, after = ?LONGEST, "a load in the background was given up"),
            }
            drop(permit);
        });
        true
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }
}

fn join_rule<'a, K: CacheKey, V: Send + Sync + 'static>(
    fetch: &Fetch<K, V>,
    stands: &'a dyn Fn(&Ticket) -> bool,
) -> JoinRule<'a> {
    let now = fetch.cache.shared.clock.coarse();
    JoinRule { now, join_within: fetch.cache.policy.join_within, in_task: false, stands }
}
