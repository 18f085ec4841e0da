//! How a lookup that memory cannot answer is answered: the course of one flight.
//!
//! ```text
//! read ── fresh ───────────────────────────────────────────────► remember near ─► land
//!   │ ├── stale, may be served ─► refresh in the background ───► remember near ─► land
//!   │ └── stale, for failures only ─► replace it (`refresh`) ──► land; it, when the load fails or is slow
//!   │ missing, dead
//!   ▼
//! claim ─ hit (another filled it) ─────────────────────────────► remember near ─► land
//!   │ └── busy ─► wait 2→50 ms, claim again … until `lease_wait` ─► load, store nowhere
//!   │ granted
//!   ▼
//! load (renewing the lease) ─ value ─► fill ─ stored ──────────► remember near ─► land
//!   │                                    └── refused ─► land, stored nowhere
//!   └ error or cancelled ─► give the lease up ─► the fallback, or the error
//! ```
//! A far tier that fails or may not be believed is left out: load, store nowhere.

use std::sync::Arc;
use std::time::Duration;

use cache_core::cache::ClaimKind;
use cache_core::{CacheError, Claim, LoadError, Stamp, Ttl};
use futures_util::FutureExt;
use tokio::time::Instant;
use tracing::Instrument;

use crate::ambient::carry;
use crate::answer::{Found, Source};
use crate::far::{Alive, Asked, Claimed, FarTier, Held, LeaseGuard, Stamps};
use crate::flight::Landing;
use crate::generation::Chain;
use crate::inner::Inner;
use crate::key::{CacheKey, NearKey};
use crate::life::{Left, Life, Times};
use crate::load::{LoadFn, Loading};
use crate::loaded::{LoadRequest, Loaded, What};
use crate::near::{Remembered, Ticket};
use crate::policy::NegativeTier;
use crate::tags::Guard;

/// The first pause between two looks at a key that another instance loads.
const FIRST_POLL: Duration = Duration::from_millis(2);
/// The longest such pause.
const LAST_POLL: Duration = Duration::from_millis(50);

/// One lookup on its way past the near tier.
pub(crate) struct Fetch<K, V> {
    pub(crate) cache: Arc<Inner<K, V>>,
    pub(crate) key: NearKey<K>,
    pub(crate) text: Arc<str>,
    pub(crate) ticket: Ticket,
    pub(crate) above: Loading,
    /// Loads in place of the cache's own loader.
    pub(crate) instead: Option<Box<LoadFn<K, V>>>,
    /// Joins nothing that is already under way.
    pub(crate) anew: bool,
}

/// What the far tier's entry means, and the numbers to stamp a load with.
pub(crate) type Read<V> = (Sight<V>, Vec<u64>);

/// What an entry of the far tier means for a lookup.
pub(crate) enum Sight<V> {
    /// It answers.
    Answer(Found<V>),
    /// It is kept for when there is nothing better.
    Kept(Stale<V>),
    /// It does not count any more.
    Dead(Stamp),
    /// There is none.
    Nothing,
}

/// A value past its fresh life.
pub(crate) struct Stale<V> {
    pub(crate) value: Arc<V>,
    pub(crate) left: Left,
    pub(crate) tags: Chain,
    pub(crate) source: Source,
    /// What a new value would replace; none where memory is the only tier.
    pub(crate) stamp: Option<Stamp>,
}

impl<V> Clone for Stale<V> {
    fn clone(&self) -> Self {
        let (value, tags, stamp) = (Arc::clone(&self.value), self.tags.clone(), self.stamp.clone());
        Self { value, left: self.left, tags, source: self.source, stamp }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Fetch<K, V> {
    /// As [`run`](Self::run), unless memory knows by now: an earlier flight may have landed after this lookup
    /// found nothing and before it took off.
    pub(crate) async fn take_off(self: Arc<Self>, read: Option<Read<V>>) -> Landing<V> {
        let unknown = read.is_some() || self.anew;
        let near = if unknown { None } else { self.cache.near_answer(&self.key.query()) };
        match near {
            Some(near) => Ok(near.found),
            None => self.run(read).await,
        }
    }

    /// Answers the lookup; `read` is what the far tier was already found to hold.
    ///
    /// What comes after a read that does not answer is boxed: it is as large as a dozen reads, and rare.
    async fn run(self: Arc<Self>, read: Option<Read<V>>) -> Landing<V> {
        let Some(far) = &self.cache.far else {
            return self.run_locally().boxed().await;
        };
        if !far.trusted() {
            return self.load_uncached_patiently().boxed().await;
        }
        let (sight, numbers) = match read {
            Some(read) => read,
            None => match far.read(self.asked()).await {
                Ok((held, numbers)) => (self.sight(held), numbers),
                Err(error) => {
                    self.note_far_failure(&error);
                    return self.load_uncached_patiently().boxed().await;
                }
            },
        };
        match sight {
            Sight::Answer(found) => Ok(found),
            Sight::Kept(stale) => self.replace_patiently(stale).boxed().await,
            Sight::Dead(stamp) => self.claim_patiently(Some(stamp), numbers).boxed().await,
            Sight::Nothing => self.claim_patiently(None, numbers).boxed().await,
        }
    }

    async fn claim_patiently(self: &Arc<Self>, dead: Option<Stamp>, numbers: Vec<u64>) -> Landing<V> {
        let this = Arc::clone(self);
        let work = async move { this.claim_and_fill(dead, numbers).await };
        self.patiently(self.cache.policy.hard_timeout, work, || self.too_slow()).await
    }

    async fn load_uncached_patiently(self: &Arc<Self>) -> Landing<V> {
        let this = Arc::clone(self);
        let work = async move { this.load_uncached(None).await };
        self.patiently(self.cache.policy.hard_timeout, work, || self.too_slow()).await
    }

    /// Does `work`, or joins the same work that goes on in the background; after `limit` it goes on there, and
    /// the lookup ends with what `instead` says.
    pub(crate) async fn patiently(
        self: &Arc<Self>,
        limit: Option<Duration>,
        work: impl Future<Output = Landing<V>> + Send + 'static,
        instead: impl FnOnce() -> Landing<V>,
    ) -> Landing<V> {
        let background = &self.cache.background;
        let running = if self.anew { None } else { background.find(self) };
        let Some(limit) = limit else {
            return match running {
                Some(flight) => flight.await,
                None => work.await,
            };
        };
        let (joined, began) = (running.is_some(), self.cache.shared.clock.coarse());
        // It may go on outside of this request, and still works for it.
        let flight = running.unwrap_or_else(|| carry(work).boxed().shared());
        match tokio::time::timeout(limit, flight.clone()).await {
            Ok(landing) => landing,
            Err(_) if joined || background.adopt(self, flight.clone(), began) => instead(),
            // Too much goes on in the background already.
            Err(_) => flight.await,
        }
    }

    fn too_slow(&self) -> Landing<V> {
        let after = self.cache.policy.hard_timeout.unwrap_or_default();
        Err(LoadError::TimedOut { domain: Arc::clone(&self.cache.domain), after }.into())
    }

    /// Takes the lease of a key that holds nothing (or nothing but `dead`), loads and stores.
    async fn claim_and_fill(&self, mut dead: Option<Stamp>, mut numbers: Vec<u64>) -> Landing<V> {
        let Some(far) = &self.cache.far else { return self.load_uncached(None).await };
        let lease_for = self.cache.policy.lease_for;
        let mut polls = Polls::until(self.cache.policy.lease_wait);
        loop {
            let claimed = match far.claim(self.asked(), dead.take(), &mut numbers, lease_for).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    self.note_far_failure(&error);
                    return self.load_uncached(None).await;
                }
            };
            match claimed {
                Claimed::Granted(claim) => {
                    let lease = LeaseGuard::new(&far.service, &self.text, claim.clone());
                    let loaded = self.load_and_fill(far, Hold { claim, lease }, numbers, None).await;
                    return loaded.or_else(|error| self.rescue(error, None));
                }
                Claimed::Hit(alive) => match self.sight(Held::Live(alive)) {
                    Sight::Answer(found) => return Ok(found),
                    Sight::Kept(stale) => return self.replace(stale).await,
                    Sight::Dead(stamp) => dead = Some(stamp),
                    Sight::Nothing => {}
                },
                Claimed::Busy => {}
            }
            if !polls.pause().await {
                return self.load_uncached(None).await;
            }
        }
    }

    /// What an entry of the far tier means, remembered near when it answers.
    pub(crate) fn sight(&self, held: Held) -> Sight<V> {
        let alive = match held {
            Held::Missing => return Sight::Nothing,
            Held::Dead(stamp) => return Sight::Dead(stamp),
            Held::Live(alive) => alive,
        };
        let cache = &self.cache;
        let Alive { payload, left, stamp, tags } = alive;
        let value = match payload.map(|payload| cache.codec.decode(&payload)).transpose() {
            Ok(value) => value.map(Arc::new),
            Err(error) => {
                cache.counters.damaged.one();
                tracing::warn!(domain = &*cache.domain, %error, "a stored value does not decode and will be replaced");
                return Sight::Dead(stamp);
            }
        };
        let revalidate = left.stale < cache.policy.stale_while_revalidate;
        match value {
            None if !left.is_fresh() => Sight::Dead(stamp),
            value if left.is_fresh() || revalidate => {
                let due = self.remember(value.as_ref(), left, &tags);
                if due && value.is_some() {
                    self.refresh_in_background();
                }
                Sight::Answer(Found { value, source: Source::Far, stale: !left.is_fresh() })
            }
            Some(value) if left.stale < cache.policy.stale_if_error => {
                Sight::Kept(Stale { value, left, tags, source: Source::Far, stamp: Some(stamp) })
            }
            _ => Sight::Dead(stamp),
        }
    }

    /// Loads, and stores under `hold` unless something came between.
    pub(crate) async fn load_and_fill(
        &self,
        far: &FarTier,
        hold: Hold,
        numbers: Vec<u64>,
        stale: Option<Arc<V>>,
    ) -> Result<Found<V>, LoadError> {
        let guard = self.guard_tags(far).await;
        let loaded = tokio::select! {
            loaded = self.load(stale.clone()) => loaded?,
            never = hold.lease.keep_renewing(self.cache.policy.lease_for) => match never {},
        };
        let (value, life) = self.judge(&loaded, stale);
        let found = Found { value, source: Source::Origin, stale: false };
        let near_only = found.value.is_none() && self.cache.policy.negative_tier == NegativeTier::Near;
        let stored = (!near_only && !life.is_zero()).then(|| (numbers, life.whole()));
        let near_only = stored.is_none();
        let Some(tags) = self.late_tags(&loaded.tags, guard, stored).await else {
            self.cache.counters.refused_fills.one();
            return Ok(found);
        };
        if near_only {
            self.remember(found.value.as_ref(), life.into(), &tags.chain);
            return Ok(found);
        }
        let stamps = Stamps { numbers: tags.numbers, tags: tags.stamped };
        match self.fill(far, &hold.claim, found.value.as_deref(), stamps, life).await {
            Ok(true) => {
                hold.filled();
                self.remember(found.value.as_ref(), life.into(), &tags.chain);
            }
            Ok(false) => {
                hold.filled();
                self.cache.counters.refused_fills.one();
            }
            Err(error) => self.cache.counters.not_stored(&error),
        }
        Ok(found)
    }

    async fn fill(
        &self,
        far: &FarTier,
        claim: &Claim,
        value: Option<&V>,
        stamps: Stamps,
        life: Life,
    ) -> Result<bool, CacheError> {
        let payload = value.map(|value| self.cache.codec.encode(value)).transpose()?;
        far.fill(&self.text, claim, far.frame(self.asked(), payload, stamps, life)?, life).await
    }

    /// Stores a value over whatever the far tier holds.
    pub(crate) async fn store(&self, far: &FarTier, value: &V, life: Life) -> Result<(), CacheError> {
        let payload = self.cache.codec.encode(value)?;
        let (_, mut numbers) = far.read(self.asked()).await?;
        far.settle(&self.ticket.chain, &mut numbers, life.whole()).await?;
        let frame = far.frame(self.asked(), Some(payload), Stamps { numbers, tags: Vec::new() }, life)?;
        far.service.set_bytes(&self.text, frame, Ttl::For(life.whole())).await
    }

    /// A cache whose only tier is memory.
    async fn run_locally(self: &Arc<Self>) -> Landing<V> {
        let policy = &self.cache.policy;
        let this = Arc::clone(self);
        match self.kept_near() {
            None => {
                let work = async move { this.load_locally(None).await };
                self.patiently(policy.hard_timeout, work, || self.too_slow()).await
            }
            Some(stale) => {
                let kept = stale.clone();
                let work = async move { this.load_locally(Some(stale)).await };
                self.patiently(policy.stale_patience(), work, || Ok(self.hold_over(kept))).await
            }
        }
    }

    async fn load_locally(&self, stale: Option<Stale<V>>) -> Landing<V> {
        let loaded = self.load_and_keep(stale.as_ref().map(|stale| Arc::clone(&stale.value))).await;
        loaded.or_else(|error| self.rescue(error, stale))
    }

    /// Loads, and stores in memory only.
    pub(crate) async fn load_and_keep(&self, stale: Option<Arc<V>>) -> Result<Found<V>, LoadError> {
        let guard = Guard::of(self);
        let loaded = self.load(stale.clone()).await?;
        let (value, life) = self.judge(&loaded, stale);
        match self.late_tags(&loaded.tags, Some(guard), None).await {
            Some(tags) => {
                self.remember(value.as_ref(), life.into(), &tags.chain);
            }
            None => self.cache.counters.refused_fills.one(),
        }
        Ok(Found { value, source: Source::Origin, stale: false })
    }

    /// Loads without storing: still one flight per key and process.
    pub(crate) async fn load_uncached(&self, stale: Option<Stale<V>>) -> Landing<V> {
        self.cache.counters.uncached_loads.one();
        let known = stale.as_ref().map(|stale| Arc::clone(&stale.value));
        match self.load(known.clone()).await {
            Ok(loaded) => {
                Ok(Found { value: self.judge(&loaded, known).0, source: Source::Origin, stale: false })
            }
            Err(error) => self.rescue(error, stale),
        }
    }

    async fn load(&self, stale: Option<Arc<V>>) -> Result<Loaded<Arc<V>>, LoadError> {
        let cache = &self.cache;
        cache.counters.loads.one();
        let span = tracing::debug_span!("cache_load", domain = &*cache.domain);
        let request = LoadRequest { key: self.key.key.clone(), stale };
        let load = cache.loader.run(self.instead.as_deref(), request, &self.text, self.above.clone());
        let loaded = load.instrument(span).await.and_then(|loaded| self.check_tags(loaded));
        if loaded.is_err() {
            cache.counters.load_failures.one();
        }
        loaded
    }

    /// What a load means: the value, and how long it lives.
    fn judge(&self, loaded: &Loaded<Arc<V>>, stale: Option<Arc<V>>) -> (Option<Arc<V>>, Life) {
        let value = match &loaded.what {
            What::Value(value) => Some(Arc::clone(value)),
            What::Absent => None,
            What::NotModified => stale,
        };
        let life = self.cache.life(&self.key.key, value.as_deref(), loaded.ttl);
        (value, life)
    }

    /// What a lookup gets whose load failed: the stale value, the fallback's, or the error.
    pub(crate) fn rescue(&self, error: LoadError, stale: Option<Stale<V>>) -> Landing<V> {
        if let Some(stale) = stale {
            tracing::warn!(domain = &*self.cache.domain, %error, "a load failed; a stale value is served");
            return Ok(self.hold_over(stale));
        }
        match self.cache.loader.fall_back(&self.key.key, &error) {
            Some(value) => Ok(Found { value: Some(Arc::new(value)), source: Source::Fallback, stale: false }),
            None => Err(error.into()),
        }
    }

    /// Serves a stale value, now and for a while.
    pub(crate) fn hold_over(&self, stale: Stale<V>) -> Found<V> {
        let now = self.cache.shared.clock.coarse();
        let times = Times::held_over(stale.left, self.cache.policy.error_throttle, now);
        self.keep(Remembered::Value(Arc::clone(&stale.value)), times, &stale.tags);
        Found { value: Some(stale.value), source: stale.source, stale: !stale.left.is_fresh() }
    }

    /// Keeps an answer in memory, if memory may be trusted and nothing was invalidated since the question.
    /// `true` when it is already time to refresh it.
    pub(crate) fn remember(&self, value: Option<&Arc<V>>, left: Left, tags: &Chain) -> bool {
        let (policy, now) = (&self.cache.policy, self.cache.shared.clock.coarse());
        let keep = if self.cache.far.is_some() { policy.near_ttl } else { Duration::MAX };
        let times = Times::of(left, keep, policy, now);
        let answer = match value {
            Some(value) => Remembered::Value(Arc::clone(value)),
            None => Remembered::Absent,
        };
        self.keep(answer, times, tags);
        left.is_due(policy.refresh_ahead)
    }

    fn keep(&self, answer: Remembered<V>, times: Times, tags: &Chain) {
        let now = self.cache.shared.clock.coarse();
        if now < times.expires && self.cache.shared.trust.near(now) {
            let ticket = self.ticket.with_tags(tags);
            self.cache.near.insert(self.key.clone(), answer, times, now, &ticket);
        }
    }

    pub(crate) fn kept_near(&self) -> Option<Stale<V>> {
        let now = self.cache.shared.clock.coarse();
        let trusted = self.cache.shared.trust.near(now);
        let (value, left) = trusted.then(|| self.cache.near.kept(&self.key.query(), now)).flatten()?;
        let tags = Chain::default();
        Some(Stale { value, left, tags, source: Source::Near, stamp: None })
    }

    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked { text: &self.text, tenant: self.tenant(), chain: &self.ticket.chain }
    }

    pub(crate) fn tenant(&self) -> Option<&str> {
        self.key.tenant.as_ref().map(cache_core::TenantId::as_str)
    }

    pub(crate) fn note_far_failure(&self, error: &CacheError) {
        self.cache.counters.far_failures.one();
        tracing::debug!(domain = &*self.cache.domain, %error, "the far tier failed; loading from the origin");
    }
}

/// The right to store a loaded value, and the lease that keeps others from loading it too. They differ when a
/// value that stands is refreshed.
pub(crate) struct Hold {
    pub(crate) claim: Claim,
    pub(crate) lease: LeaseGuard,
}

impl Hold {
    /// A lease in the entry's own place ended with the fill.
    fn filled(self) {
        if is_lease(&self.claim) {
            self.lease.disarm();
        }
    }
}

pub(crate) fn is_lease(claim: &Claim) -> bool {
    matches!(claim.kind(), ClaimKind::Lease(_))
}

/// Pauses that grow with what was waited already, with jitter, until a deadline: who waits for another instance's load
/// waits at most a quarter longer than it takes.
pub(crate) struct Polls {
    began: Instant,
    wait: Duration,
}

impl Polls {
    pub(crate) fn until(wait: Duration) -> Self {
        Self { began: Instant::now(), wait }
    }

    /// `false` when the deadline would pass.
    pub(crate) async fn pause(&mut self) -> bool {
        let waited = self.began.elapsed();
        let pause = (waited / 4).clamp(FIRST_POLL, LAST_POLL);
        if waited + pause > self.wait {
            return false;
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        true
    }
}
