//! The far tier as a tenant cache uses it: frames, generations, leases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, CacheService, Claim, Clock, Lookup, Stamp, Trust, Ttl};

use crate::frame::Frame;
use crate::generation::{self, Chain};
use crate::stats::Counters;

/// A shared store, and how far it may be believed.
#[derive(Debug)]
pub(crate) struct FarTier {
    pub(crate) service: Arc<dyn CacheService>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
}

/// What the far tier holds of a key.
#[derive(Debug)]
pub(crate) enum Held {
    /// A living entry: its payload (`None` for "there is no such thing") and what is left of its life.
    Live { payload: Option<Bytes>, remaining: Duration, stamp: Stamp },
    /// Something that does not count any more, but is still there.
    Dead(Stamp),
    /// Nothing.
    Missing,
}

/// How an attempt to fill a key began.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// Somebody else's value came first.
    Hit { payload: Option<Bytes>, remaining: Duration, stamp: Stamp },
    /// The sole right to fill.
    Granted(Claim),
    /// Somebody else is loading.
    Busy,
}

impl FarTier {
    /// Whether the far tier may be believed now.
    pub(crate) fn trusted(&self) -> bool {
        self.trust.far(self.clock.coarse())
    }

    /// Reads an entry, and the numbers of its groups, in one round trip when there is nothing to create.
    /// The numbers are those to stamp a load with that begins afterwards.
    pub(crate) async fn read(&self, key: &str, chain: &Chain) -> Result<(Held, Vec<u64>), CacheError> {
        let mut numbers = self.remembered(chain);
        let ask: Vec<usize> = (0..chain.len()).filter(|at| numbers[*at].is_none()).collect();
        let stored = if ask.is_empty() {
            self.service.get_bytes(key).await?
        } else {
            let keys: Vec<&str> = [key].into_iter().chain(ask.iter().map(|at| chain.text(*at))).collect();
            let mut found = self.service.get_many_bytes(&keys).await?.into_iter();
            let stored = found.next().flatten();
            for (at, bytes) in ask.iter().zip(found) {
                numbers[*at] = Some(self.number(chain, *at, bytes).await?);
            }
            stored
        };
        let mut numbers: Vec<u64> = numbers.into_iter().flatten().collect();
        let held = match stored {
            None => Held::Missing,
            Some(bytes) => self.examine(key, &bytes, chain, &mut numbers).await?,
        };
        Ok((held, numbers))
    }

    /// Takes the right to fill a key that holds nothing, or nothing but `dead`.
    pub(crate) async fn claim(
        &self,
        key: &str,
        mut dead: Option<Stamp>,
        chain: &Chain,
        numbers: &mut Vec<u64>,
        lease_for: Duration,
    ) -> Result<Claimed, CacheError> {
        // A value that dies between two steps makes another round; more than a few mean that somebody
        // writes what this cache cannot read.
        for _ in 0..4 {
            let found = match &dead {
                None => self.service.get_or_lease(key, lease_for).await?,
                Some(stamp) => self.service.lease_over(key, stamp, lease_for).await?,
            };
            let bytes = match found {
                Lookup::Granted(claim) => return Ok(Claimed::Granted(claim)),
                Lookup::Busy => return Ok(Claimed::Busy),
                Lookup::Hit(bytes) => bytes,
            };
            match self.examine(key, &bytes, chain, numbers).await? {
                Held::Live { payload, remaining, stamp } => {
                    return Ok(Claimed::Hit { payload, remaining, stamp });
                }
                Held::Dead(stamp) => dead = Some(stamp),
                Held::Missing => dead = None,
            }
        }
        Ok(Claimed::Busy)
    }

    /// The entry to store under `key`: alive for `life` from now.
    pub(crate) fn frame(&self, key: &str, payload: Option<Bytes>, numbers: &[u64], life: Duration) -> Bytes {
        let until = self.server_ms().saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        Frame { hard_ms: until, soft_ms: until, generations: numbers.to_vec(), payload }.encode(key)
    }

    /// Stores while the claim stands.
    pub(crate) async fn fill(
        &self,
        key: &str,
        claim: &Claim,
        frame: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError> {
        self.service.fill(key, claim, frame, Ttl::For(life)).await
    }

    /// Judges stored bytes. When only the numbers differ, the ones in memory may be the old ones: they are
    /// asked for once before the entry is declared dead.
    async fn examine(
        &self,
        key: &str,
        bytes: &Bytes,
        chain: &Chain,
        numbers: &mut Vec<u64>,
    ) -> Result<Held, CacheError> {
        let stamp = Stamp::of(bytes);
        let frame = match Frame::decode(key, bytes) {
            Ok(frame) => frame,
            Err(error) => {
                self.counters.damaged.one();
                tracing::warn!(reason = ?error, "a stored entry is not readable and will be replaced");
                return Ok(Held::Dead(stamp));
            }
        };
        let now = self.server_ms();
        if frame.hard_ms <= now {
            return Ok(Held::Dead(stamp));
        }
        if frame.generations != *numbers {
            *numbers = self.ask_numbers(chain).await?;
            if frame.generations != *numbers {
                return Ok(Held::Dead(stamp));
            }
        }
        let remaining = Duration::from_millis(frame.hard_ms - now);
        Ok(Held::Live { payload: frame.payload, remaining, stamp })
    }

    /// The numbers in memory, as far as memory may be trusted.
    fn remembered(&self, chain: &Chain) -> Vec<Option<u64>> {
        match self.trust.near(self.clock.coarse()) {
            true => chain.known(),
            false => vec![None; chain.len()],
        }
    }

    async fn ask_numbers(&self, chain: &Chain) -> Result<Vec<u64>, CacheError> {
        let keys: Vec<&str> = (0..chain.len()).map(|at| chain.text(at)).collect();
        let found = self.service.get_many_bytes(&keys).await?;
        let mut numbers = Vec::with_capacity(keys.len());
        for (at, bytes) in found.into_iter().enumerate() {
            numbers.push(self.number(chain, at, bytes).await?);
        }
        Ok(numbers)
    }

    /// A group's number from what was read, or a new one; remembered if nothing was invalidated meanwhile.
    async fn number(&self, chain: &Chain, at: usize, bytes: Option<Bytes>) -> Result<u64, CacheError> {
        let (far, text) = (&*self.service, chain.text(at));
        let read = match &bytes {
            Some(bytes) => generation::read_and_renew(far, text, bytes, &self.clock).await?,
            None => None,
        };
        let number = match read {
            Some(number) => number,
            None => generation::create(far, text, &self.clock).await?,
        };
        chain.learn(at, number);
        Ok(number)
    }

    /// Milliseconds since 1970 by the server's clock, so that instances agree on when an entry is dead.
    fn server_ms(&self) -> u64 {
        self.clock.unix_ms().saturating_add_signed(self.trust.server_offset_ms())
    }
}

/// Gives a lease up when the load that holds it ends without filling, or is cancelled.
#[derive(Debug)]
pub(crate) struct LeaseGuard {
    lease: Option<(Arc<dyn CacheService>, Arc<str>, Claim)>,
}

impl LeaseGuard {
    pub(crate) fn new(service: &Arc<dyn CacheService>, key: &Arc<str>, claim: Claim) -> Self {
        Self { lease: Some((Arc::clone(service), Arc::clone(key), claim)) }
    }

    /// The lease is used up: nothing to give up any more.
    pub(crate) fn disarm(mut self) {
        self.lease = None;
    }
}

impl Drop for LeaseGuard {
    /// In the background, because `drop` cannot wait; without a runtime the lease ends by its own time.
    fn drop(&mut self) {
        let Some((service, key, claim)) = self.lease.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { service.release(&key, &claim).await });
        }
    }
}
