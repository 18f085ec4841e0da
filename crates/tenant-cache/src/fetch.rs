//! How a lookup that memory cannot answer is answered: the course of one flight.
//!
//! ```text
//! read ── live ──────────────────────────────────────────────► remember near ─► land
//!   │ missing, dead
//!   ▼
//! claim ─ hit (another filled it) ──────────────────────────► remember near ─► land
//!   │ └── busy ─► wait 2→50 ms, claim again … until `lease_wait` ─► load, store nowhere
//!   │ granted
//!   ▼
//! load (renewing the lease) ─ value ─► fill ─ stored ───────► remember near ─► land
//!   │                                    └── refused ─► land, stored nowhere
//!   └ error or cancelled ─► give the lease up
//! ```
//! A far tier that fails or may not be believed is left out: load, store nowhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, Claim, LoadError, Stamp, Ttl};
use tracing::Instrument;

use crate::cache::{Found, Inner, Source};
use crate::far::{Claimed, FarTier, Held, LeaseGuard};
use crate::flight::Landing;
use crate::key::{CacheKey, NearKey};
use crate::load::{LoadFn, Loaded, Loading};
use crate::near::{Remembered, Ticket};
use crate::policy::NegativeTier;

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
}

impl<K: CacheKey, V: Send + Sync + 'static> Fetch<K, V> {
    /// As [`run`](Self::run), unless memory knows by now: an earlier flight may have landed after this lookup
    /// found nothing and before it took off.
    pub(crate) async fn run_unless_known(self) -> Landing<V> {
        match self.cache.near_answer(&self.key.query()) {
            Some(found) => Ok(found),
            None => self.run().await,
        }
    }

    pub(crate) async fn run(self) -> Landing<V> {
        let cache = Arc::clone(&self.cache);
        let Some(far) = &cache.far else {
            return self.load_locally().await;
        };
        if !far.trusted() {
            return self.load_uncached().await;
        }
        match self.through(far).await {
            Ok(landing) => landing,
            Err(error) => {
                cache.counters.far_failures.one();
                tracing::debug!(domain = &*cache.domain, %error, "the far tier failed; loading from the origin");
                self.load_uncached().await
            }
        }
    }

    /// The way through the far tier. The outer error is the far tier's, the inner one the load's.
    async fn through(&self, far: &FarTier) -> Result<Landing<V>, CacheError> {
        let (held, mut numbers) = far.read(&self.text, &self.ticket.chain).await?;
        let mut dead = match held {
            Held::Missing => None,
            Held::Dead(stamp) => Some(stamp),
            Held::Live { payload, remaining, stamp } => match self.arrive(payload, remaining) {
                Some(found) => return Ok(Ok(found)),
                None => Some(stamp),
            },
        };
        let deadline = tokio::time::Instant::now() + self.cache.policy.lease_wait;
        let mut pause = FIRST_POLL;
        loop {
            let lease_for = self.cache.policy.lease_for;
            let chain = &self.ticket.chain;
            match far.claim(&self.text, dead.take(), chain, &mut numbers, lease_for).await? {
                Claimed::Granted(claim) => return Ok(self.load_and_fill(far, claim, &numbers).await),
                Claimed::Hit { payload, remaining, stamp } => match self.arrive(payload, remaining) {
                    Some(found) => return Ok(Ok(found)),
                    None => dead = Some(stamp),
                },
                Claimed::Busy => {}
            }
            if tokio::time::Instant::now() + pause > deadline {
                return Ok(self.load_uncached().await);
            }
            tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
            pause = (pause * 2).min(LAST_POLL);
        }
    }

    /// An entry of the far tier becomes the answer; `None` when it does not decode.
    fn arrive(&self, payload: Option<Bytes>, remaining: Duration) -> Option<Found<V>> {
        let cache = &self.cache;
        let value = match payload.map(|payload| cache.codec.decode(&payload)).transpose() {
            Ok(value) => value.map(Arc::new),
            Err(error) => {
                cache.counters.damaged.one();
                tracing::warn!(domain = &*cache.domain, %error, "a stored value does not decode and will be replaced");
                return None;
            }
        };
        self.remember(value.as_ref(), remaining.min(cache.policy.near_ttl));
        Some(Found { value, source: Source::Far })
    }

    async fn load_and_fill(&self, far: &FarTier, claim: Claim, numbers: &[u64]) -> Landing<V> {
        let lease = LeaseGuard::new(&far.service, &self.text, claim.clone());
        let loaded = tokio::select! {
            loaded = self.load() => loaded?,
            never = self.keep_renewing(far, &claim) => match never {},
        };
        let Loaded::Value(value) = loaded else { return Ok(self.land(loaded)) };
        let life = self.cache.life(&self.key.key, value.as_ref());
        let near_only = value.is_none() && self.cache.policy.negative_tier == NegativeTier::Near;
        let value = value.map(Arc::new);
        if near_only || life.is_zero() {
            self.remember(value.as_ref(), life);
            return Ok(Found { value, source: Source::Origin });
        }
        match self.fill(far, &claim, value.as_deref(), numbers, life).await {
            Ok(true) => {
                lease.disarm();
                self.remember(value.as_ref(), life.min(self.cache.policy.near_ttl));
            }
            Ok(false) => {
                lease.disarm();
                self.cache.counters.refused_fills.one();
            }
            Err(error) => {
                self.cache.counters.far_failures.one();
                tracing::debug!(domain = &*self.cache.domain, %error, "a loaded value was not stored");
            }
        }
        Ok(Found { value, source: Source::Origin })
    }

    async fn fill(
        &self,
        far: &FarTier,
        claim: &Claim,
        value: Option<&V>,
        numbers: &[u64],
        life: Duration,
    ) -> Result<bool, CacheError> {
        let payload = value.map(|value| self.cache.codec.encode(value)).transpose()?;
        far.fill(&self.text, claim, far.frame(&self.text, payload, numbers, life), life).await
    }

    /// Keeps the lease while the load runs. A lease that is gone is not taken again: somebody invalidated,
    /// and the fill will be refused.
    async fn keep_renewing(&self, far: &FarTier, claim: &Claim) -> std::convert::Infallible {
        let lease_for = self.cache.policy.lease_for;
        loop {
            tokio::time::sleep(lease_for / 3).await;
            if let Ok(false) = far.service.renew(&self.text, claim, lease_for).await {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Loads for a cache without a far tier.
    async fn load_locally(&self) -> Landing<V> {
        let loaded = self.load().await?;
        if let Loaded::Value(value) = &loaded {
            let life = self.cache.life(&self.key.key, value.as_ref());
            let found = self.land(loaded);
            self.remember(found.value.as_ref(), life);
            return Ok(found);
        }
        Ok(self.land(loaded))
    }

    /// Loads without storing: still one flight per key and process.
    async fn load_uncached(&self) -> Landing<V> {
        self.cache.counters.uncached_loads.one();
        Ok(self.land(self.load().await?))
    }

    async fn load(&self) -> Result<Loaded<V>, LoadError> {
        let cache = &self.cache;
        cache.counters.loads.one();
        let span = tracing::debug_span!("cache_load", domain = &*cache.domain);
        let load =
            cache.loader.run(self.instead.as_deref(), self.key.key.clone(), &self.text, self.above.clone());
        let loaded = load.instrument(span).await;
        if loaded.is_err() {
            cache.counters.load_failures.one();
        }
        loaded
    }

    fn land(&self, loaded: Loaded<V>) -> Found<V> {
        match loaded {
            Loaded::Value(value) => Found { value: value.map(Arc::new), source: Source::Origin },
            Loaded::Fallback(value) => Found { value: Some(Arc::new(value)), source: Source::Fallback },
        }
    }

    /// Keeps an answer in memory, if memory may be trusted and nothing was invalidated since the question.
    fn remember(&self, value: Option<&Arc<V>>, life: Duration) {
        let now = self.cache.shared.clock.coarse();
        if life.is_zero() || !self.cache.shared.trust.near(now) {
            return;
        }
        let answer = match value {
            Some(value) => Remembered::Value(Arc::clone(value)),
            None => Remembered::Absent,
        };
        self.cache.near.insert(self.key.clone(), answer, now + life, &self.ticket);
    }
}

/// A forced load: replaces what is there, and gives way to whatever changes it meanwhile.
impl<K: CacheKey, V: Send + Sync + 'static> Fetch<K, V> {
    pub(crate) async fn refresh(self) -> Landing<V> {
        let cache = Arc::clone(&self.cache);
        let Some(far) = &cache.far else {
            return self.load_locally().await;
        };
        if !far.trusted() {
            return self.load_uncached().await;
        }
        match self.refresh_through(far).await {
            Ok(landing) => landing,
            Err(error) => {
                cache.counters.far_failures.one();
                tracing::debug!(domain = &*cache.domain, %error, "the far tier failed; loading from the origin");
                self.load_uncached().await
            }
        }
    }

    /// Stores a value over whatever the far tier holds.
    pub(crate) async fn store(&self, far: &FarTier, value: &V, life: Duration) -> Result<(), CacheError> {
        let payload = self.cache.codec.encode(value)?;
        let (_, numbers) = far.read(&self.text, &self.ticket.chain).await?;
        let frame = far.frame(&self.text, Some(payload), &numbers, life);
        far.service.set_bytes(&self.text, frame, Ttl::For(life)).await
    }

    async fn refresh_through(&self, far: &FarTier) -> Result<Landing<V>, CacheError> {
        let (held, mut numbers) = far.read(&self.text, &self.ticket.chain).await?;
        let replacing = |stamp: Stamp| Claimed::Granted(Claim::replacing(stamp));
        let claimed = match held {
            Held::Live { stamp, .. } | Held::Dead(stamp) => replacing(stamp),
            Held::Missing => {
                let lease_for = self.cache.policy.lease_for;
                match far.claim(&self.text, None, &self.ticket.chain, &mut numbers, lease_for).await? {
                    Claimed::Hit { stamp, .. } => replacing(stamp),
                    claimed => claimed,
                }
            }
        };
        match claimed {
            Claimed::Granted(claim) => Ok(self.load_and_fill(far, claim, &numbers).await),
            _ => Ok(self.load_uncached().await),
        }
    }
}
