//! Loading a value while an older one stands: forced, in the background, or because it is too old to be served.
//!
//! The older value stays readable meanwhile. What is stored in its place is compared with the stamp that was seen
//! before the load: an invalidation, an insert or another refresh in between refuses it. That only one instance
//! loads is seen to by a lease beside the entry.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Claim, LoadError};

use crate::answer::{Found, Source};
use crate::far::{Alive, Claimed, FarTier, Held};
use crate::fetch::{Fetch, Hold, Polls, Sight, Stale};
use crate::key::CacheKey;
use crate::load_stack::LoadStack;
use crate::single_flight::LookupResult;

/// When to look again whether another instance has refreshed an entry.
const OTHERS_REFRESH: Duration = Duration::from_millis(100);

impl<K: CacheKey, V: Send + Sync + 'static> Fetch<K, V> {
    /// A forced load: replaces what is there, and gives way to whatever changes it meanwhile.
    pub(crate) async fn refresh(&self) -> LookupResult<V> {
        let Some(far) = &self.cache.far else {
            return Ok(self.load_and_keep(self.current()).await?);
        };
        if !far.trusted() {
            return self.load_uncached(None).await;
        }
        match self.refresh_through(far).await {
            Ok(landing) => landing,
            Err(error) => {
                self.note_far_failure(&error);
                self.load_uncached(None).await
            }
        }
    }

    async fn refresh_through(&self, far: &FarTier) -> Result<LookupResult<V>, CacheError> {
        let (held, mut numbers) = far.read(self.asked()).await?;
        let held = match held {
            Held::Missing => match far.claim(self.asked(), None, &mut numbers, self.lease_for()).await? {
                Claimed::Hit(alive) => Held::Live(alive),
                Claimed::Granted(lease) => {
                    let loaded = self.load_and_fill(far, Hold::Lease(lease), numbers, None).await;
                    return Ok(loaded.map_err(Into::into));
                }
                Claimed::Busy => return Ok(self.load_uncached(None).await),
            },
            held => held,
        };
        let (stamp, known) = match held {
            Held::Live(Alive { stamp, payload, .. }) => {
                (stamp, payload.and_then(|payload| self.cache.codec.decode(&payload).ok()))
            }
            Held::Dead(stamp) => (stamp, None),
            Held::Missing => return Ok(self.load_uncached(None).await),
        };
        let hold = Hold::Replacing(Claim::replacing(stamp), None);
        Ok(self.load_and_fill(far, hold, numbers, known.map(Arc::new)).await.map_err(Into::into))
    }

    /// Begins to refresh the entry, unless that is already being done.
    pub(crate) fn refresh_in_background(&self) {
        let cache = &self.cache;
        // Until it is done, or has failed, hits need not begin it again.
        let until = cache.shared.clock.coarse() + self.lease_for();
        cache.near.defer(&self.key.query(), until);
        if cache.background.begin(self.for_background()) {
            cache.counters.refreshes.one();
        }
    }

    /// Refreshes an entry in the background: what a lookup that waits for it may answer, if there is such a thing. A
    /// failure leaves the entry as it is, for a while.
    pub(crate) async fn refresh_quietly(&self) -> Option<Found<V>> {
        let Some(far) = &self.cache.far else {
            let stale = self.kept_near();
            let known = stale.as_ref().map(|stale| Arc::clone(&stale.value));
            let loaded = self.load_and_keep(known).await;
            return loaded.map_err(|error| self.hold_on(&error, stale)).ok();
        };
        self.refresh_once(far).await.unwrap_or_else(|error| {
            self.note_far_failure(&error);
            None
        })
    }

    /// One instance loads; the others look again a little later.
    async fn refresh_once(&self, far: &FarTier) -> Result<Option<Found<V>>, CacheError> {
        let lease = far.lease_refresh(&self.text, self.lease_for()).await?;
        // After the lease: who had it before may have stored by now.
        let (held, numbers) = far.read(self.asked()).await?;
        let Held::Live(Alive { payload: Some(payload), left, stamp, tags }) = held else {
            // Invalidated meanwhile: the next lookup loads.
            return Ok(None);
        };
        let value = Arc::new(self.cache.codec.decode(&payload)?);
        let due = self.remember(Some(&value), left, &tags);
        let Some(lease) = lease.filter(|_| due) else {
            if due {
                let until = self.cache.shared.clock.coarse() + OTHERS_REFRESH;
                self.cache.near.defer(&self.key.query(), until);
            }
            let found = Found { value: Some(value), source: Source::Far, stale: false };
            return Ok(left.is_fresh().then_some(found));
        };
        let hold = Hold::Replacing(Claim::replacing(stamp.clone()), Some(lease));
        let loaded = self.load_and_fill(far, hold, numbers, Some(Arc::clone(&value))).await;
        let stale = Stale { value, left, tags, source: Source::Far, stamp: Some(stamp) };
        Ok(loaded.map_err(|error| self.hold_on(&error, Some(stale))).ok())
    }

    /// A refresh failed: what stands goes on being served, and is not refreshed for a while.
    fn hold_on(&self, error: &LoadError, stale: Option<Stale<V>>) {
        tracing::warn!(domain = &*self.cache.domain, %error, "a refresh in the background failed");
        if let Some(stale) = stale {
            self.hold_over(stale);
        }
    }

    /// Loads in place of a value that is kept for failures only; it is the answer when the load fails.
    pub(crate) async fn replace(&self, stale: Stale<V>) -> LookupResult<V> {
        let Some(far) = &self.cache.far else { return self.load_uncached(Some(stale)).await };
        match self.replace_through(far).await {
            Ok(Some(landing)) => landing,
            // Gone, or another instance takes long.
            Ok(None) => self.load_uncached(Some(stale)).await,
            Err(error) => {
                self.note_far_failure(&error);
                self.load_uncached(Some(stale)).await
            }
        }
    }

    async fn replace_through(&self, far: &FarTier) -> Result<Option<LookupResult<V>>, CacheError> {
        let mut polls = Polls::until(self.cache.policy.lease_wait);
        loop {
            let lease = far.lease_refresh(&self.text, self.lease_for()).await?;
            // After the lease: who had it before may have stored by now.
            let (held, mut numbers) = far.read(self.asked()).await?;
            let (hold, known) = match self.sight(held) {
                Sight::Answer(found) => return Ok(Some(Ok(found))),
                Sight::Kept(now) => {
                    let replacing =
                        |stamp| lease.map(|lease| Hold::Replacing(Claim::replacing(stamp), Some(lease)));
                    (now.stamp.clone().and_then(replacing), Some(now))
                }
                Sight::Dead(_) | Sight::Nothing => {
                    match far.claim(self.asked(), None, &mut numbers, self.lease_for()).await? {
                        Claimed::Granted(own) => (lease.map(|_| Hold::Lease(own)), None),
                        _ => (None, None),
                    }
                }
            };
            if let Some(hold) = hold {
                let value = known.as_ref().map(|known| Arc::clone(&known.value));
                let loaded = self.load_and_fill(far, hold, numbers, value).await;
                // Only what the far tier still holds: what is gone was invalidated.
                return Ok(Some(loaded.or_else(|error| self.rescue(error, known))));
            }
            if !polls.pause().await {
                return Ok(None);
            }
        }
    }

    /// The value that is there, for a conditional request.
    fn current(&self) -> Option<Arc<V>> {
        self.kept_near().map(|kept| kept.value)
    }

    fn lease_for(&self) -> Duration {
        self.cache.policy.lease_for
    }

    /// The same question, asked by nobody in particular.
    fn for_background(&self) -> Self {
        let cache = Arc::clone(&self.cache);
        let ticket = cache.ticket(&self.key.query());
        Self::new(cache, self.key.clone(), Arc::clone(&self.text), ticket, LoadStack::default())
    }
}
