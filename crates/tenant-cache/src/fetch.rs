//! The miss path: what one single-flight load does after a near miss. Reading the far tier is done in passing; what
//! comes after a read that does not answer is done in a task.
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
//! A far tier that fails or may not be believed is left out: load, store nowhere. A load that goes on in the background
//! already is waited for in place of another one, if what it brings is an answer.

use std::convert::Infallible;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, Claim, LeaseToken, LoadError, Stamp};
use tokio::time::Instant;
use tracing::Instrument;

use crate::ambient;
use crate::answer::{Found, Source};
use crate::far::{Alive, Asked, Claimed, FarTier, Held, Stamps};
use crate::generation::Chain;
use crate::inner::Inner;
use crate::key::{CacheKey, NearKey};
use crate::lease::LeaseGuard;
use crate::life::{Left, Life, Times};
use crate::load::LoadFn;
use crate::load_stack::{Frame, LoadStack};
use crate::loaded::{LoadRequest, Loaded, What};
use crate::near::{Remembered, Ticket};
use crate::policy::NegativeTier;
use crate::single_flight::{Flight, LookupResult, Question};
use crate::tags::Guard;
use crate::tasks;

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
    /// The loads it was asked for by.
    pub(crate) above: LoadStack,
    /// Loads in place of the cache's own loader.
    pub(crate) instead: Option<Arc<LoadFn<K, V>>>,
    /// Joins nothing that is already under way.
    pub(crate) anew: bool,
    /// What can be served in place of what is being loaded.
    pub(crate) kept: OnceLock<Stale<V>>,
    /// The load goes on in the background when all have left.
    pub(crate) adopted: AtomicBool,
}

impl<K: CacheKey, V> Question for Fetch<K, V> {
    type Key = NearKey<K>;

    fn key(&self) -> &NearKey<K> {
        &self.key
    }

    fn ticket(&self) -> &Ticket {
        &self.ticket
    }
}

/// How far a read in passing came.
pub(crate) enum Read<V> {
    Answered(LookupResult<V>),
    Unanswered(Work<V>),
}

/// What is left to do after a read that does not answer.
pub(crate) enum Work<V> {
    /// Take the lease of a key that holds nothing, or nothing but a dead entry, and load.
    Claim(Option<Stamp>, Vec<u64>),
    /// Load in place of a value that is kept for failures only.
    Replace(Stale<V>),
    /// Load, and store nowhere.
    Uncached,
    /// Load into a cache whose only tier is memory.
    Locally(Option<Stale<V>>),
}

/// What the far tier's entry means, and the numbers to stamp a load with.
pub(crate) type FarRead<V> = (Sight<V>, Vec<u64>);

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
    /// Reads the far tier, unless memory knows by now: an earlier load may have landed after this lookup found nothing and
    /// before it began. `read` is what the far tier was already found to hold.
    pub(crate) async fn read_or_work(&self, read: Option<FarRead<V>>) -> Read<V> {
        let unknown = read.is_some() || self.anew;
        if let Some(near) = (!unknown).then(|| self.cache.near_answer(&self.key.query())).flatten() {
            return Read::Answered(Ok(near.found));
        }
        let Some(far) = &self.cache.far else { return Read::Unanswered(Work::Locally(self.kept_near())) };
        // Asking the far tier takes timers.
        if let Err(error) = tasks::runtime(&self.cache.domain) {
            return Read::Answered(Err(error.into()));
        }
        if !far.trusted() {
            return Read::Unanswered(Work::Uncached);
        }
        let (sight, numbers) = match read {
            Some(read) => read,
            None => match far.read(self.asked()).await {
                Ok((held, numbers)) => (self.sight(held), numbers),
                Err(error) => {
                    self.note_far_failure(&error);
                    return Read::Unanswered(Work::Uncached);
                }
            },
        };
        Read::Unanswered(match sight {
            Sight::Answer(found) => return Read::Answered(Ok(found)),
            Sight::Kept(stale) => Work::Replace(stale),
            Sight::Dead(stamp) => Work::Claim(Some(stamp), numbers),
            Sight::Nothing => Work::Claim(None, numbers),
        })
    }

    /// Does what a read left to do.
    pub(crate) async fn work(
        &self,
        flight: &Flight<Self, LookupResult<V>>,
        work: Work<V>,
    ) -> LookupResult<V> {
        if let Some(found) = self.cache.background.answer_of(self, flight).await {
            return Ok(found);
        }
        match work {
            Work::Claim(dead, numbers) => self.claim_and_fill(dead, numbers).await,
            Work::Replace(stale) => self.replace(stale).await,
            Work::Uncached => self.load_uncached(None).await,
            Work::Locally(stale) => {
                let loaded = self.load_and_keep(stale.as_ref().map(|stale| Arc::clone(&stale.value))).await;
                loaded.or_else(|error| self.rescue(error, stale))
            }
        }
    }

    /// Runs a load of this key: in the scope of its entry, and as part of the loads that asked for it. It sees nothing
    /// else of the request that happened to come first, since what it brings is for all who may read the entry.
    pub(crate) fn as_load<F: Future>(
        &self,
        node: u64,
        work: F,
    ) -> impl Future<Output = F::Output> + use<F, K, V> {
        let frame = Frame::new(node, &self.cache.domain, &self.text);
        let work = ambient::in_scope(self.key.tenant.as_ref(), self.key.user.as_ref(), work);
        self.above.with(vec![frame]).scope(work)
    }

    /// The same lookup once more.
    pub(crate) fn again(&self) -> Self {
        let (cache, key, ticket) = (Arc::clone(&self.cache), self.key.clone(), self.ticket.clone());
        let (text, above, instead) = (Arc::clone(&self.text), self.above.clone(), self.instead.clone());
        Self { anew: self.anew, instead, ..Self::new(cache, key, text, ticket, above) }
    }

    pub(crate) fn new(
        cache: Arc<Inner<K, V>>,
        key: NearKey<K>,
        text: Arc<str>,
        ticket: Ticket,
        above: LoadStack,
    ) -> Self {
        let (kept, adopted) = (OnceLock::new(), AtomicBool::new(false));
        Self { cache, key, text, ticket, above, instead: None, anew: false, kept, adopted }
    }

    pub(crate) fn too_slow(&self) -> LookupResult<V> {
        let after = self.cache.policy.hard_timeout.unwrap_or_default();
        Err(LoadError::TimedOut { domain: Arc::clone(&self.cache.domain), after }.into())
    }

    /// Takes the lease of a key that holds nothing (or nothing but `dead`), loads and stores.
    async fn claim_and_fill(&self, mut dead: Option<Stamp>, mut numbers: Vec<u64>) -> LookupResult<V> {
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
                Claimed::Granted(lease) => {
                    let loaded = self.load_and_fill(far, Hold::Lease(lease), numbers, None).await;
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
            never = hold.keep_renewing(self.cache.policy.lease_for) => match never {},
        };
        let (value, life) = self.judge(&loaded, stale);
        let found = Found { value, source: Source::Origin, stale: false };
        let near_only = found.value.is_none() && self.cache.policy.negative_tier == NegativeTier::Near;
        let stored_life = (!near_only && !life.is_zero()).then(|| life.whole());
        let stored = stored_life.map(|life| (numbers, life));
        let Some(tags) = self.late_tags(&loaded.tags, guard, stored).await else {
            self.cache.counters.refused_fills.one();
            return Ok(found);
        };
        let stored = match stored_life {
            Some(_) => {
                let stamps = Stamps { numbers: tags.numbers, tags: tags.stamped };
                self.fill(far, hold.claim(), found.value.as_deref(), stamps, life).await
            }
            // Nothing in place of what the claim saw: an older value that a refresh began with must not outlive it.
            None => far.fill(&self.text, hold.claim(), Bytes::new(), Life::ZERO).await,
        };
        match stored {
            Ok(true) => {
                if life.is_zero() {
                    hold.replaced(|| self.cache.near.remove(&self.key.query()));
                }
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

    /// Stores a value over whatever the far tier holds, unless it is invalidated meanwhile. When that fails, or is
    /// dropped, the key is removed.
    pub(crate) async fn store(&self, far: &FarTier, value: &V, life: Life) -> Result<(), CacheError> {
        let cache = &self.cache;
        let payload = cache.guarded(|| cache.codec.encode(value))??;
        far.wrapping.check_size(payload.len())?;
        let removal = RemoveOnDrop { cache: Some(Arc::clone(cache)), text: Arc::clone(&self.text) };
        match self.store_fenced(far, payload, life).await {
            Ok(stored) => {
                removal.disarm();
                if !stored {
                    // Something came between, and is newer.
                    cache.counters.refused_fills.one();
                }
                Ok(())
            }
            Err(error) => {
                let removed = cache.announce_keys(vec![Arc::clone(&self.text)]).await;
                removal.disarm();
                if let Err(error) = removed {
                    tracing::debug!(domain = &*cache.domain, %error, "a failed insert was not removed yet");
                }
                Err(error)
            }
        }
    }

    async fn store_fenced(&self, far: &FarTier, payload: Bytes, life: Life) -> Result<bool, CacheError> {
        let mut numbers = far.numbers(&self.ticket.chain).await?;
        far.settle(&self.ticket.chain, &mut numbers, life.whole()).await?;
        let frame = far.frame(self.asked(), Some(payload), Stamps { numbers, tags: Vec::new() }, life)?;
        let lease_for = self.cache.policy.lease_for;
        let claim = far.service.take_lease(&self.text, LeaseToken::random(), lease_for).await?;
        far.fill(&self.text, &claim, frame, life).await
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
    pub(crate) async fn load_uncached(&self, stale: Option<Stale<V>>) -> LookupResult<V> {
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
        let load = cache.loader.run(self.instead.as_deref(), request);
        let loaded = load.instrument(span).await.and_then(|loaded| self.check_tags(loaded));
        let loaded = LoadStack::current().end(loaded);
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
    pub(crate) fn rescue(&self, error: LoadError, stale: Option<Stale<V>>) -> LookupResult<V> {
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

/// The right to store a loaded value.
pub(crate) enum Hold {
    /// By the lease in the entry's own place.
    Lease(LeaseGuard),
    /// In place of a value that stands; the lease beside it keeps others from loading it in the background, too.
    Replacing(Claim, Option<LeaseGuard>),
}

impl Hold {
    fn claim(&self) -> &Claim {
        match self {
            Self::Lease(lease) => lease.claim(),
            Self::Replacing(claim, _) => claim,
        }
    }

    /// Keeps the lease for as long as this is polled.
    async fn keep_renewing(&self, lease_for: Duration) -> Infallible {
        match self {
            Self::Lease(lease) | Self::Replacing(_, Some(lease)) => lease.keep_renewing(lease_for).await,
            Self::Replacing(_, None) => std::future::pending().await,
        }
    }

    fn replaced(&self, then: impl FnOnce()) {
        if let Self::Replacing(..) = self {
            then();
        }
    }

    /// A lease in the entry's own place ended with the fill.
    fn filled(self) {
        if let Self::Lease(lease) = self {
            lease.disarm();
        }
    }
}

/// Removes a key in the background when an insert is dropped half-way.
struct RemoveOnDrop<K: CacheKey, V: Send + Sync + 'static> {
    cache: Option<Arc<Inner<K, V>>>,
    text: Arc<str>,
}

impl<K: CacheKey, V: Send + Sync + 'static> RemoveOnDrop<K, V> {
    fn disarm(mut self) {
        self.cache = None;
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Drop for RemoveOnDrop<K, V> {
    fn drop(&mut self) {
        let Some(cache) = self.cache.take() else { return };
        let text = Arc::clone(&self.text);
        let tasks = Arc::clone(&cache.shared.tasks);
        tasks.settle(async move {
            if let Err(error) = cache.announce_keys(vec![text]).await {
                tracing::debug!(domain = &*cache.domain, %error, "an insert that was dropped was not removed yet");
            }
        });
    }
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
