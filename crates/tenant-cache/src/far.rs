//! The far tier as a tenant cache uses it: frames, generations, leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cache_core::key::MAX_KEY_BYTES;
use cache_core::{CacheError, CacheService, Claim, Clock, LeaseToken, Stamp, Trust, Ttl};
use futures_util::FutureExt;
use xxhash_rust::xxh3::xxh3_128;

use crate::frame::{Frame, Stored};
use crate::generation::{Chain, Generations};
use crate::lease::{self, LeaseGuard};
use crate::life::{Left, Life};
use crate::stats::Counters;
use crate::tag_numbers::TagNumbers;
use crate::tasks::Tasks;
use crate::wrap::Wrapping;

/// A shared store, and how far it may be believed.
#[derive(Debug)]
pub(crate) struct FarTier {
    pub(crate) service: Arc<dyn CacheService>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) clock: Clock,
    pub(crate) generations: Arc<Generations>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) wrapping: Wrapping,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) tag_numbers: TagNumbers,
}

/// The entry that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) text: &'a Arc<str>,
    pub(crate) tenant: Option<&'a str>,
    /// The groups that follow from its key.
    pub(crate) chain: &'a Chain,
}

/// A living entry as it is stored.
#[derive(Debug)]
pub(crate) struct Alive {
    /// `None` for "there is no such thing".
    pub(crate) payload: Option<Bytes>,
    pub(crate) left: Left,
    pub(crate) stamp: Stamp,
    /// The groups that its loader named.
    pub(crate) tags: Chain,
}

/// What the far tier holds of a key.
#[derive(Debug)]
pub(crate) enum Held {
    Live(Alive),
    /// Something that does not count any more, but is still there.
    Dead(Stamp),
    /// Nothing.
    Missing,
}

/// How an attempt to fill a key began.
pub(crate) enum Claimed {
    /// Somebody else's value came first.
    Hit(Alive),
    /// The sole right to fill.
    Granted(LeaseGuard),
    /// Somebody else is loading.
    Busy,
}

/// What an entry is stored with besides its payload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stamps {
    pub(crate) numbers: Vec<u64>,
    pub(crate) tags: Vec<(Box<str>, u64)>,
}

impl FarTier {
    /// Whether the far tier may be believed now.
    pub(crate) fn trusted(&self) -> bool {
        self.trust.far(self.clock.coarse())
    }

    /// Reads an entry, and the numbers of its groups, in one round trip when there is nothing to create.
    /// The numbers are those to stamp a load with that begins afterwards.
    pub(crate) async fn read(&self, asked: Asked<'_>) -> Result<(Held, Vec<u64>), CacheError> {
        // What is rare is boxed, here and below: a read that answers is then a fraction of the size.
        let known: Option<Vec<u64>> = self.remembered(asked.chain).into_iter().collect();
        let Some(mut numbers) = known else {
            let mut read = self.read_many(&[asked]).boxed().await?;
            return Ok(read.pop().expect("one answer per question"));
        };
        let held = match self.service.get_bytes(asked.text).await? {
            None => Held::Missing,
            Some(bytes) => self.examine(asked, &bytes, &mut numbers).await?,
        };
        Ok((held, numbers))
    }

    /// [`read`](Self::read) for several entries, still in one round trip.
    pub(crate) async fn read_many(&self, asked: &[Asked<'_>]) -> Result<Vec<(Held, Vec<u64>)>, CacheError> {
        let known: Vec<_> = asked.iter().map(|asked| self.remembered(asked.chain)).collect();
        let mut unknown = BTreeMap::new();
        for (asked, known) in asked.iter().zip(&known) {
            for at in (0..known.len()).filter(|at| known[*at].is_none()) {
                unknown.insert(asked.chain.text(at), (asked.chain, at));
            }
        }
        let keys = asked.iter().map(|asked| &**asked.text).chain(unknown.keys().copied());
        let mut found = self.service.get_many_bytes(&keys.collect::<Vec<_>>()).await?.into_iter();
        let entries: Vec<_> = found.by_ref().take(asked.len()).collect();
        let mut fetched = BTreeMap::new();
        for ((text, (chain, at)), bytes) in unknown.into_iter().zip(found) {
            fetched.insert(text, self.number(chain, at, bytes).await?);
        }
        let mut read = Vec::with_capacity(asked.len());
        for ((asked, known), bytes) in asked.iter().zip(known).zip(entries) {
            let number = |(at, known): (usize, Option<u64>)| {
                known.or_else(|| fetched.get(asked.chain.text(at)).copied())
            };
            let numbers: Option<Vec<u64>> = known.into_iter().enumerate().map(number).collect();
            let mut numbers = numbers.expect("what was not known was fetched");
            let held = match bytes {
                None => Held::Missing,
                Some(bytes) => self.examine(*asked, &bytes, &mut numbers).await?,
            };
            read.push((held, numbers));
        }
        Ok(read)
    }

    /// Takes the right to fill a key that holds nothing, or nothing but `dead`.
    pub(crate) async fn claim(
        &self,
        asked: Asked<'_>,
        mut dead: Option<Stamp>,
        numbers: &mut Vec<u64>,
        lease_for: Duration,
    ) -> Result<Claimed, CacheError> {
        // A value that dies between two steps makes another round; more than a few mean that somebody
        // writes what this cache cannot read.
        for _ in 0..4 {
            let token = LeaseToken::random();
            let lease = self.arm(asked.text, token);
            let answer = match &dead {
                None => self.service.get_or_lease(asked.text, token, lease_for).await,
                Some(stamp) => self.service.lease_over(asked.text, stamp, token, lease_for).await,
            };
            let bytes = match lease.answered(answer)? {
                lease::Asked::Granted(lease) => return Ok(Claimed::Granted(lease)),
                lease::Asked::Busy => return Ok(Claimed::Busy),
                lease::Asked::Hit(bytes) => bytes,
            };
            match self.examine(asked, &bytes, numbers).await? {
                Held::Live(alive) => return Ok(Claimed::Hit(alive)),
                Held::Dead(stamp) => dead = Some(stamp),
                Held::Missing => dead = None,
            }
        }
        Ok(Claimed::Busy)
    }

    /// The right to refresh a key while its value stands; `None` when somebody else has it. Only economy hangs
    /// on it: what keeps an old value out is the stamp that is compared when the new one is stored.
    pub(crate) async fn lease_refresh(
        &self,
        key: &str,
        lease_for: Duration,
    ) -> Result<Option<LeaseGuard>, CacheError> {
        let mut text = format!("refresh:{key}");
        if text.len() > MAX_KEY_BYTES {
            text = format!("refresh:#{:032x}", xxh3_128(key.as_bytes()));
        }
        let (text, token) = (text.into(), LeaseToken::random());
        let lease = self.arm(&text, token);
        match lease.answered(self.service.get_or_lease(&text, token, lease_for).await)? {
            lease::Asked::Granted(lease) => Ok(Some(lease)),
            lease::Asked::Busy | lease::Asked::Hit(_) => Ok(None),
        }
    }

    fn arm(&self, key: &Arc<str>, token: LeaseToken) -> LeaseGuard {
        LeaseGuard::arm(&self.service, &self.tasks, key, token)
    }

    /// The entry to store under a key.
    pub(crate) fn frame(
        &self,
        asked: Asked<'_>,
        payload: Option<Bytes>,
        stamps: Stamps,
        life: Life,
    ) -> Result<Bytes, CacheError> {
        let born_ms = self.server_ms();
        let after =
            |life: Duration| born_ms.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        let (hard_ms, soft_ms) = (after(life.whole()), after(life.fresh));
        let Stamps { numbers, tags } = stamps;
        let frame = Frame { hard_ms, soft_ms, born_ms, generations: numbers, tags, payload };
        self.wrapping.write(asked, &frame)
    }

    /// Stores while the claim stands.
    pub(crate) async fn fill(
        &self,
        key: &str,
        claim: &Claim,
        frame: Bytes,
        life: Life,
    ) -> Result<bool, CacheError> {
        self.service.fill(key, claim, frame, Ttl::For(life.whole())).await
    }

    /// The numbers of groups, asked for anew.
    pub(crate) async fn ask_numbers(&self, chain: &Chain) -> Result<Vec<u64>, CacheError> {
        let keys: Vec<&str> = (0..chain.len()).map(|at| chain.text(at)).collect();
        let found = self.service.get_many_bytes(&keys).await?;
        let mut numbers = Vec::with_capacity(keys.len());
        for (at, bytes) in found.into_iter().enumerate() {
            numbers.push(self.number(chain, at, bytes).await?);
        }
        Ok(numbers)
    }

    /// The numbers of groups, from memory as far as it may be trusted.
    pub(crate) async fn numbers(&self, chain: &Chain) -> Result<Vec<u64>, CacheError> {
        match self.remembered(chain).into_iter().collect() {
            Some(known) => Ok(known),
            None => self.ask_numbers(chain).await,
        }
    }

    /// Judges stored bytes. When only the numbers differ, the ones in memory may be the old ones: they are
    /// asked for once before the entry is declared dead.
    async fn examine(
        &self,
        asked: Asked<'_>,
        bytes: &Bytes,
        numbers: &mut Vec<u64>,
    ) -> Result<Held, CacheError> {
        let stamp = Stamp::of(bytes);
        let now = self.server_ms();
        let opened = Stored::read(asked.text, bytes).and_then(|stored| {
            let Frame { born_ms, soft_ms, hard_ms, .. } = stored.frame;
            // What is dead anyway need not be opened; nothing else of a header is believed before that.
            let left = Left::at(now, born_ms, soft_ms, hard_ms);
            left.map(|left| Ok((self.wrapping.read(asked, stored)?, left))).transpose()
        });
        let (frame, left) = match opened {
            Ok(Some(alive)) => alive,
            Ok(None) => return Ok(Held::Dead(stamp)),
            Err(error) => {
                self.counters.damaged.one();
                tracing::warn!(reason = ?error, "a stored entry is not readable and will be replaced");
                return Ok(Held::Dead(stamp));
            }
        };
        if frame.generations.len() != numbers.len() {
            self.counters.incompatible_entry();
            return Ok(Held::Dead(stamp));
        }
        if frame.generations != *numbers {
            *numbers = self.ask_numbers(asked.chain).boxed().await?;
            if frame.generations != *numbers {
                return Ok(Held::Dead(stamp));
            }
        }
        let tag = |(tag, _): &(Box<str>, u64)| self.generations.tag(asked.tenant, tag);
        let tags = Chain::of(frame.tags.iter().map(tag));
        let stamped = || frame.tags.iter().map(|(_, number)| *number);
        let known = self.remembered(&tags);
        if !known.into_iter().eq(stamped().map(Some))
            && !self.ask_numbers(&tags).boxed().await?.into_iter().eq(stamped())
        {
            return Ok(Held::Dead(stamp));
        }
        Ok(Held::Live(Alive { payload: frame.payload, left, stamp, tags }))
    }

    /// The numbers in memory, as far as memory may be trusted.
    fn remembered(&self, chain: &Chain) -> Vec<Option<u64>> {
        match self.trust.near(self.clock.coarse()) {
            true => chain.known(),
            false => vec![None; chain.len()],
        }
    }

    /// Milliseconds since 1970 by the server's clock, so that instances agree on when an entry is dead.
    pub(crate) fn server_ms(&self) -> u64 {
        self.clock.unix_ms().saturating_add_signed(self.trust.server_offset_ms())
    }
}
