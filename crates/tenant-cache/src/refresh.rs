//! Loading a value while an older one stands: forced, in the background, or because it is too old to be served.
//!
//! The older value stays readable meanwhile. What is stored in its place is compared with the stamp that was seen
//! before the load: an invalidation, an insert or another refresh in between refuses it. That only one instance
//! loads is seen to by a lease beside the entry.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Claim};
use futures_util::FutureExt;

use crate::ambient::carry;
use crate::answer::{Found, Source};
use crate::far::{Alive, Claimed, FarTier, Held, LeaseGuard};
use crate::fetch::{Fetch, Hold, Polls, Sight, Stale, is_lease};
use crate::flight::Landing;
use crate::key::CacheKey;

/// When to look again whether another instance has refreshed an entry.
const OTHERS_REFRESH: Duration = Duration::from_millis(100);

impl<K: CacheKey, V: Send + Sync + 'static> Fetch<K, V> {
    /// A forced load: replaces what is there, and gives way to whatever changes it meanwhile.
    pub(crate) async fn refresh(&self) -> Landing<V> {
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

    async fn refresh_through(&self, far: &FarTier) -> Result<Landing<V>, CacheError> {
        let (held, mut numbers) = far.read(self.asked()).await?;
        let (held, claimed) = match held {
            Held::Missing => match far.claim(self.asked(), None, &mut numbers, self.lease_for()).await? {
                Claimed::Hit(alive) => (Held::Live(alive), None),
                Claimed::Granted(claim) => (Held::Missing, Some(claim)),
                Claimed::Busy => return Ok(self.load_uncached(None).await),
            },
            held => (held, None),
        };
        let (claim, known) = match held {
            Held::Live(Alive { stamp, payload, .. }) => {
                let known = payload.and_then(|payload| self.cache.codec.decode(&payload).ok());
                (Claim::replacing(stamp), known.map(Arc::new))
            }
            Held::Dead(stamp) => (Claim::replacing(stamp), None),
            Held::Missing => (claimed.expect("a missing entry was claimed"), None),
        };
        let lease = LeaseGuard::new(&far.service, &self.text, claim.clone());
        Ok(self.load_and_fill(far, Hold { claim, lease }, numbers, known).await.map_err(Into::into))
    }

    /// Begins to refresh the entry, unless that is already being done.
    pub(crate) fn refresh_in_background(&self) {
        let cache = &self.cache;
        // Until it is done, or has failed, hits need not begin it again.
        let until = cache.shared.clock.coarse() + self.lease_for();
        cache.near.defer(&self.key.query(), until);
        let fetch = Arc::new(self.for_background());
        let course = || {
            let fetch = Arc::clone(&fetch);
            carry(async move { fetch.refresh_quietly().await }).boxed()
        };
        if cache.background.begin(&fetch, course) {
            cache.counters.refreshes.one();
        }
    }

    /// Refreshes an entry that nobody waits for. A failure leaves it as it is, for a while.
    async fn refresh_quietly(&self) -> Landing<V> {
        let Some(far) = &self.cache.far else {
            let stale = self.kept_near();
            let known = stale.as_ref().map(|stale| Arc::clone(&stale.value));
            return self.load_and_keep(known).await.or_else(|error| self.rescue(error, stale));
        };
        match self.refresh_once(far).await {
            Ok(landing) => landing,
            Err(error) => {
                self.note_far_failure(&error);
                Err(error)
            }
        }
    }

    /// One instance loads; the others look again a little later.
    async fn refresh_once(&self, far: &FarTier) -> Result<Landing<V>, CacheError> {
        let lease = far.lease_refresh(&self.text, self.lease_for()).await?;
        // After the lease: who had it before may have stored by now.
        let (held, numbers) = far.read(self.asked()).await?;
        let Held::Live(Alive { payload: Some(payload), left, stamp, tags }) = held else {
            // Invalidated meanwhile: the next lookup loads.
            return Ok(Ok(Found { value: None, source: Source::Far, stale: true }));
        };
        let value = Arc::new(self.cache.codec.decode(&payload)?);
        let due = self.remember(Some(&value), left, &tags);
        let Some(lease) = lease.filter(|_| due) else {
            if due {
                let until = self.cache.shared.clock.coarse() + OTHERS_REFRESH;
                self.cache.near.defer(&self.key.query(), until);
            }
            return Ok(Ok(Found { value: Some(value), source: Source::Far, stale: !left.is_fresh() }));
        };
        let hold = Hold { claim: Claim::replacing(stamp.clone()), lease };
        let loaded = self.load_and_fill(far, hold, numbers, Some(Arc::clone(&value))).await;
        let stale = Stale { value, left, tags, source: Source::Far, stamp: Some(stamp) };
        Ok(loaded.or_else(|error| self.rescue(error, Some(stale))))
    }

    /// Loads in place of a value that is kept for failures only; it is the answer when the load fails, or takes
    /// longer than the lookup is willing to wait.
    pub(crate) async fn replace_patiently(self: &Arc<Self>, stale: Stale<V>) -> Landing<V> {
        let (this, kept) = (Arc::clone(self), stale.clone());
        let work = async move { this.replace(stale).await };
        let limit = self.cache.policy.stale_patience();
        self.patiently(limit, work, || Ok(self.hold_over(kept))).await
    }

    pub(crate) async fn replace(&self, stale: Stale<V>) -> Landing<V> {
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

    async fn replace_through(&self, far: &FarTier) -> Result<Option<Landing<V>>, CacheError> {
        let mut polls = Polls::until(self.cache.policy.lease_wait);
        loop {
            let lease = far.lease_refresh(&self.text, self.lease_for()).await?;
            // After the lease: who had it before may have stored by now.
            let (held, mut numbers) = far.read(self.asked()).await?;
            let (claim, known) = match self.sight(held) {
                Sight::Answer(found) => return Ok(Some(Ok(found))),
                Sight::Kept(now) => (now.stamp.clone().map(Claim::replacing), Some(now)),
                Sight::Dead(_) | Sight::Nothing => {
                    match far.claim(self.asked(), None, &mut numbers, self.lease_for()).await? {
                        Claimed::Granted(claim) => (Some(claim), None),
                        _ => (None, None),
                    }
                }
            };
            if let (Some(lease), Some(claim)) = (lease, claim) {
                let lease = if is_lease(&claim) {
                    LeaseGuard::new(&far.service, &self.text, claim.clone())
                } else {
                    lease
                };
                let value = known.as_ref().map(|known| Arc::clone(&known.value));
                let loaded = self.load_and_fill(far, Hold { claim, lease }, numbers, value).await;
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
        let (key, text) = (self.key.clone(), Arc::clone(&self.text));
        Self { cache, key, text, ticket, above: Default::default(), instead: None, anew: false }
    }
}
