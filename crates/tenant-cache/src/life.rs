//! How long an answer lives, and what is left of it.
//!
//! ```text
//! born ─────────────── soft ────────────────────────── hard
//!   │      fresh        │   stale: served while it is   │  gone
//!   │          ▲        │   refreshed, or when the load │
//!        refresh ahead      fails
//! ```

use std::time::Duration;

use cache_core::Tick;

use crate::generation::MAX_ENTRY_TTL;
use crate::policy::Policy;

/// The life an answer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) fresh: Duration,
    /// How long it is kept after that, for when there is nothing better.
    pub(crate) grace: Duration,
}

impl Life {
    /// None: nothing is kept.
    pub(crate) const ZERO: Self = Self { fresh: Duration::ZERO, grace: Duration::ZERO };

    pub(crate) fn new(fresh: Duration, grace: Duration) -> Self {
        let fresh = fresh.min(MAX_ENTRY_TTL);
        Self { fresh, grace: grace.min(MAX_ENTRY_TTL - fresh) }
    }

    pub(crate) fn is_zero(self) -> bool {
        self.fresh.is_zero()
    }

    pub(crate) fn whole(self) -> Duration {
        self.fresh + self.grace
    }
}

impl From<Life> for Left {
    /// At its beginning.
    fn from(life: Life) -> Self {
        Self { lived: Duration::ZERO, fresh: life.fresh, stale: Duration::ZERO, whole: life.whole() }
    }
}

/// What is left of an answer's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// How long ago it was loaded.
    pub(crate) lived: Duration,
    /// How long it stays fresh.
    pub(crate) fresh: Duration,
    /// How long it has been stale.
    pub(crate) stale: Duration,
    /// How long it may be kept.
    pub(crate) whole: Duration,
}

impl Left {
    /// Of an entry born, stale and dead at these times, in milliseconds of one clock; `None` when it is dead.
    pub(crate) fn at(now: u64, born: u64, soft: u64, hard: u64) -> Option<Self> {
        let ms = |to: u64, from: u64| Duration::from_millis(to.saturating_sub(from));
        (hard > now).then(|| Self {
            lived: ms(now, born),
            fresh: ms(soft, now),
            stale: ms(now, soft),
            whole: ms(hard, now),
        })
    }

    pub(crate) fn is_fresh(self) -> bool {
        !self.fresh.is_zero()
    }

    /// Whether it is time to load a newer one: it is stale, or far enough in its fresh life.
    pub(crate) fn is_due(self, refresh_ahead: Option<f64>) -> bool {
        !self.is_fresh() || refresh_ahead.is_some_and(|share| self.until_refresh(share).is_zero())
    }

    /// How long until this share of its whole fresh life has passed.
    fn until_refresh(self, share: f64) -> Duration {
        (self.lived + self.fresh).mul_f64(share).saturating_sub(self.lived)
    }
}

/// The turning points of an entry in memory. `attend ≤ serve_until ≤ expires`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// From here on a hit has something to do besides answering.
    pub(crate) attend: Tick,
    /// From here on it is stale.
    pub(crate) stale: Tick,
    /// Until here it answers lookups.
    pub(crate) serve_until: Tick,
    /// Until here it is there for when the load fails.
    pub(crate) expires: Tick,
}

impl Times {
    /// Of an answer that memory keeps at most for `keep`.
    pub(crate) fn of(left: Left, keep: Duration, policy: &Policy, now: Tick) -> Self {
        let expires = now + left.whole.min(keep);
        let stale = now + left.fresh;
        let revalidate = policy.stale_while_revalidate.saturating_sub(left.stale);
        let serve_until = (stale + revalidate).min(expires);
        let refresh = match policy.refresh_ahead {
            Some(share) if left.is_fresh() => now + left.until_refresh(share),
            _ => Tick::NEVER,
        };
        Self { attend: refresh.min(stale).min(serve_until), stale, serve_until, expires }
    }

    /// Of an answer that is served for a while because loading a newer one failed or takes long.
    pub(crate) fn held_over(left: Left, throttle: Duration, now: Tick) -> Self {
        let (expires, stale) = (now + left.whole, now + left.fresh);
        let serve_until = stale.max(now + throttle).min(expires);
        Self { attend: serve_until.min(now + throttle), stale, serve_until, expires }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn at(secs: u64) -> Tick {
        Tick::ZERO + Duration::from_secs(secs)
    }

    /// E7, SB7: an entry is fresh, then stale and served, then kept for failures only, then gone. Grace begins where
    /// freshness ends: it cannot be the shorter of the two.
    #[test]
    fn the_turning_points_follow_from_the_policy() {
        let policy = Policy { stale_while_revalidate: secs(20), ..Policy::default() };
        let left = Left::from(Life::new(secs(60), secs(100)));
        let times = Times::of(left, Duration::MAX, &policy, at(5));
        let expected = Times { attend: at(65), stale: at(65), serve_until: at(85), expires: at(165) };
        assert_eq!(times, expected);
    }

    /// E5, SB15: memory keeps nothing beyond its own life, nor beyond the far entry's.
    #[test]
    fn memory_keeps_nothing_beyond_the_far_entry() {
        let left = Left::at(50_000, 0, 60_000, 60_000).unwrap();
        assert_eq!(Times::of(left, secs(10), &Policy::default(), at(5)).expires, at(15));
        assert_eq!(Times::of(left, secs(30), &Policy::default(), at(5)).expires, at(15));
        assert_eq!(Times::of(left, secs(4), &Policy::default(), at(5)).serve_until, at(9));
        assert_eq!(Left::at(60_000, 0, 60_000, 60_000), None);
    }

    /// E7: refresh ahead counts from when the value was loaded, also by another instance.
    #[test]
    fn refresh_ahead_counts_from_the_load() {
        let policy = Policy { refresh_ahead: Some(0.8), ..Policy::default() };
        let left = Left::at(40_000, 0, 60_000, 60_000).unwrap();
        assert_eq!(Times::of(left, Duration::MAX, &policy, at(0)).attend, at(8), "at 48 s of 60");
        let left = Left::at(55_000, 0, 60_000, 60_000).unwrap();
        assert_eq!(Times::of(left, Duration::MAX, &policy, at(0)).attend, at(0), "at once");
        assert!(left.is_due(Some(0.8)) && !left.is_due(Some(0.95)) && !left.is_due(None));
    }

    /// E7: an answer that is held over is served for the throttle's time, or as long as it is fresh, but never
    /// beyond its life; and the next load is tried after the throttle's time.
    #[test]
    fn what_is_held_over_is_served_for_a_while() {
        let held =
            |now, soft, hard| Times::held_over(Left::at(now, 0, soft, hard).unwrap(), secs(5), at(100));
        let times = held(70_000, 60_000, 90_000);
        assert_eq!((times.stale, times.attend), (at(100), at(105)));
        assert_eq!((times.serve_until, times.expires), (at(105), at(120)));
        assert_eq!(held(88_000, 60_000, 90_000).serve_until, at(102));
        let fresh = held(50_000, 60_000, 90_000);
        assert_eq!((fresh.attend, fresh.stale, fresh.serve_until), (at(105), at(110), at(110)));
    }

    /// SB8: no duration overflows.
    #[test]
    fn endless_lives_are_cut() {
        let life = Life::new(Duration::MAX, Duration::MAX);
        assert_eq!(life.whole(), MAX_ENTRY_TTL);
        assert!(Life::new(Duration::ZERO, secs(9)).is_zero());
    }
}
