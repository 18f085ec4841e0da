//! How long the numbers of tags live in the far tier, and when they are made.
//!
//! A tag's number lives a little longer than the longest-lived entry that carries it, so that tags which follow from
//! keys that anybody can invent leave nothing behind for long. It is renewed when an entry is stored that would outlive
//! it. Should it end before an entry does (evicted, or by a clock that is wrong), the next one is random: the entry is
//! a miss, never revived. So a life that is too short costs loads and nothing else.

use std::time::Duration;

use bytes::Bytes;
use cache_core::CacheError;

use crate::far::FarTier;
use crate::generation::{self, Chain, MAX_ENTRY_TTL};
use crate::number::{GENERATION_TTL, NO_NUMBER, Number};
use crate::policy::{NegativeTier, Policy};

/// What a tag's number lives longer than the entries, at least.
const MARGIN: Duration = Duration::from_secs(60);

/// The numbers of one cache's tags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TagNumbers {
    /// The longest life that the options give an entry; `ttl_by` and a loader may give one a longer one.
    entry_life: Duration,
    /// Whether a number is made only when an entry is stored that carries it, and not when it is asked for: keys that
    /// do not exist, and are remembered in memory only, then leave nothing in the far tier.
    late: bool,
}

impl TagNumbers {
    pub(crate) fn of(policy: &Policy) -> Self {
        let late = policy.negative_tier == NegativeTier::Near;
        let whole = policy.ttl.saturating_add(policy.grace());
        let absent = if late { Duration::ZERO } else { policy.negative_ttl };
        Self { entry_life: whole.max(absent).min(MAX_ENTRY_TTL), late }
    }

    /// The life of a number that an entry with this life carries: a quarter more, so that it is renewed no more often
    /// than that.
    fn life(self, entry: Duration) -> Duration {
        let entry = entry.max(self.entry_life).min(MAX_ENTRY_TTL);
        entry + MARGIN.max(entry / 4)
    }

    pub(crate) fn is_late(self) -> bool {
        self.late
    }
}

/// What became of the numbers that an entry is to be stored with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// They outlive the entry.
    Standing,
    /// They do, and some were made just now: whether the tag was invalidated before, they do not tell.
    Made,
    /// A tag has another number by now: the entry would be dead.
    Changed,
}

impl FarTier {
    /// A group's number from what was read, or a new one; remembered if nothing was invalidated meanwhile.
    /// [`NO_NUMBER`] for a tag without one that is made later.
    pub(crate) async fn number(
        &self,
        chain: &Chain,
        at: usize,
        bytes: Option<Bytes>,
    ) -> Result<u64, CacheError> {
        let (text, now_ms, is_tag) = (chain.text(at), self.server_ms(), chain.is_tag(at));
        // A tag's is renewed when it is known which life it needs.
        let lives =
            if is_tag { (Duration::ZERO, Duration::ZERO) } else { (GENERATION_TTL / 2, GENERATION_TTL) };
        let read = match &bytes {
            Some(bytes) => {
                let far = (&*self.service, &self.generations.form);
                generation::read_and_renew(far, text, bytes, now_ms, lives).await?
            }
            None => None,
        };
        let number = match read {
            Some(number) => number,
            None if is_tag && self.tag_numbers.is_late() => return Ok(NO_NUMBER),
            None if is_tag => {
                let life = self.tag_numbers.life(self.tag_numbers.entry_life);
                self.create(text, now_ms, life).await?
            }
            None => self.create(text, now_ms, GENERATION_TTL).await?,
        };
        chain.learn(at, number);
        Ok(number.value)
    }

    /// Sees to it that the numbers of an entry's tags outlive it: makes those that are missing, renews those that end
    /// too early.
    pub(crate) async fn settle(
        &self,
        chain: &Chain,
        numbers: &mut [u64],
        entry: Duration,
    ) -> Result<Settled, CacheError> {
        let mut settled = Settled::Standing;
        for at in chain.tags() {
            let number = &mut numbers[at];
            if *number == NO_NUMBER {
                let life = self.tag_numbers.life(entry);
                let made = self.create(chain.text(at), self.server_ms(), life).await?;
                chain.learn(at, made);
                *number = made.value;
                settled = Settled::Made;
            }
            if !self.outlives(chain, at, *number, entry).await? {
                chain.unlearn(at, *number);
                return Ok(Settled::Changed);
            }
        }
        Ok(settled)
    }

    async fn create(&self, text: &str, now_ms: u64, life: Duration) -> Result<Number, CacheError> {
        generation::create((&self.service, &self.generations.form), &self.tasks, text, now_ms, life).await
    }

    /// Whether a tag has this number, and keeps it for as long as an entry lives; renewed if need be.
    async fn outlives(
        &self,
        chain: &Chain,
        at: usize,
        number: u64,
        entry: Duration,
    ) -> Result<bool, CacheError> {
        let now_ms = self.server_ms();
        let enough = |known: &Number| known.value == number && known.left(now_ms) >= entry;
        if chain.number(at).as_ref().is_some_and(enough) {
            return Ok(true);
        }
        let (far, text) = (&*self.service, chain.text(at));
        // Once more when another instance renews it at the same time.
        for _ in 0..2 {
            let Some(bytes) = far.get_bytes(text).await? else { return Ok(false) };
            let lives = (entry, self.tag_numbers.life(entry));
            let form = &self.generations.form;
            let now = generation::read_and_renew((far, form), text, &bytes, now_ms, lives).await?;
            let Some(now) = now else {
                return Ok(false);
            };
            if now.value != number {
                return Ok(false);
            }
            chain.learn(at, now);
            if enough(&now) {
                return Ok(true);
            }
        }
        // It is the right number; that it ends early is a miss then.
        Ok(true)
    }
}
