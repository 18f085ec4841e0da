//! The arithmetic of rate limits: pure, in whole microseconds, the same for every backend.
//!
//! The token bucket is GCRA (generic cell rate algorithm, ITU-T I.371): one number per key, the *theoretical
//! arrival time* at which the bucket would be full again. A store that counts elsewhere answers with [`bucket`]
//! or [`window`] what it counted, and so gives the same answers as one that counts with [`check`].

use std::time::Duration;

use crate::{Algorithm, Decision, Quota};

/// What is kept of a key between two checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// A token bucket's theoretical arrival time, in microseconds.
    Bucket(u64),
    /// A fixed window in use.
    Window {
        /// Units taken.
        taken: u32,
        /// When it ends, in microseconds.
        ends: u64,
    },
}

impl Count {
    /// From when on it says what no count says, in microseconds.
    #[must_use]
    pub fn ends(self) -> u64 {
        match self {
            Self::Bucket(arrival) => arrival,
            Self::Window { ends, .. } => ends,
        }
    }

    /// What `decision` tells of the count behind it, as of `now` in microseconds.
    #[must_use]
    pub fn behind(quota: &Quota, decision: &Decision, now: u64) -> Self {
        let ends = now.saturating_add(micros(decision.reset_after));
        match quota.algorithm {
            Algorithm::TokenBucket => Self::Bucket(ends),
            Algorithm::FixedWindow => {
                Self::Window { taken: decision.limit.saturating_sub(decision.remaining), ends }
            }
        }
    }
}

/// Checks `cost` units of a [valid](Quota::validate) quota at the time `now`, in microseconds. Answers the
/// decision, and what to keep when something changed. A count of another algorithm is none.
///
/// A clock that was put back, or a period that became shorter, delays nobody by more than one period: a count from
/// beyond it is cut, and kept so, also by a refusal.
#[must_use]
#[inline]
pub fn check(quota: &Quota, count: Option<Count>, now: u64, cost: u32) -> (Decision, Option<Count>) {
    let latest = now.saturating_add(micros(quota.per));
    match (quota.algorithm, count) {
        (Algorithm::FixedWindow, count) => {
            let (taken, held) = match count {
                Some(Count::Window { taken, ends }) if now < ends => (taken, ends),
                _ => (0, latest),
            };
            let ends = held.min(latest);
            let fits = taken.checked_add(cost).is_some_and(|taken| taken <= quota.limit);
            let allowed = fits || cost == 0;
            let taken = if allowed { taken + cost } else { taken };
            let decision = window(quota, allowed, taken, ends - now);
            let changed = (allowed && cost > 0) || held > latest;
            (decision, changed.then_some(Count::Window { taken, ends }))
        }
        (Algorithm::TokenBucket, count) => {
            let held = match count {
                Some(Count::Bucket(arrival)) => arrival,
                _ => now,
            };
            let arrival = held.clamp(now, latest);
            let new = arrival.saturating_add(price(quota, cost));
            let allowed = new <= latest;
            let after = if allowed { new } else { arrival };
            let decision = bucket(quota, cost, allowed, after - now);
            let changed = (allowed && cost > 0) || held > latest;
            (decision, changed.then_some(Count::Bucket(after)))
        }
    }
}

/// What a cost takes of a token bucket, in microseconds.
#[must_use]
#[inline]
pub fn price(quota: &Quota, cost: u32) -> u64 {
    share(cost.into(), micros(quota.per), quota.limit.into())
}

/// The decision on a token bucket that is full again in `used` microseconds, after what was decided.
#[must_use]
#[inline]
pub fn bucket(quota: &Quota, cost: u32, allowed: bool, used: u64) -> Decision {
    let (limit, per) = (u64::from(quota.limit), micros(quota.per));
    let unit = (per / limit).max(1);
    let wait = || used.saturating_add(price(quota, cost)).saturating_sub(per);
    Decision {
        allowed,
        limit: quota.limit,
        remaining: u32::try_from(share(per.saturating_sub(used), limit, per)).unwrap_or(quota.limit),
        reset_after: Duration::from_micros(used),
        next_after: Duration::from_micros(match used % unit {
            0 if used > 0 => unit,
            rest => rest,
        }),
        retry_after: (!allowed).then(|| Duration::from_micros(wait())),
    }
}

/// The decision on a fixed window with `taken` units that ends in `left` microseconds, after what was decided.
#[must_use]
#[inline]
pub fn window(quota: &Quota, allowed: bool, taken: u32, left: u64) -> Decision {
    let left = if taken == 0 { Duration::ZERO } else { Duration::from_micros(left) };
    Decision {
        allowed,
        limit: quota.limit,
        remaining: quota.limit.saturating_sub(taken),
        reset_after: left,
        next_after: left,
        retry_after: (!allowed).then_some(left),
    }
}

/// A time in whole microseconds.
#[must_use]
#[inline]
pub fn micros(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000).saturating_add(time.subsec_micros().into())
}

/// `a × b ÷ c`, rounded down, without overflow on the way.
fn share(a: u64, b: u64, c: u64) -> u64 {
    match a.checked_mul(b) {
        Some(product) => product / c,
        None => u64::try_from(u128::from(a) * u128::from(b) / u128::from(c)).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: u64 = 1_700_000_000_000_000;

    /// The count after a check that must be allowed.
    fn taken(quota: &Quota, count: Option<Count>, now: u64, cost: u32) -> Option<Count> {
        let (decision, count) = check(quota, count, now, cost);
        assert!(decision.allowed, "{decision:?}");
        count
    }

    /// G1: `api`: a hundred at once, then one per 0.6 s, to the microsecond.
    #[test]
    fn a_bucket_refills_to_the_microsecond() {
        let (quota, mut count) = (Quota::api(), None);
        for n in 0..100 {
            assert_eq!(check(&quota, count, T0, 1).0.remaining, 99 - n);
            count = taken(&quota, count, T0, 1);
        }
        let (refused, kept) = check(&quota, count, T0, 1);
        assert_eq!((refused.allowed, refused.remaining, kept), (false, 0, None));
        assert_eq!(refused.retry_after, Some(Duration::from_millis(600)));
        assert_eq!(refused.reset_after, Duration::from_secs(60));
        assert!(!check(&quota, count, T0 + 599_999, 1).0.allowed);
        assert!(check(&quota, count, T0 + 600_000, 1).0.allowed);
    }

    /// G1: `mutation`: a cost of five of a hundred per minute: twenty at once, then one per 3 s.
    #[test]
    fn a_cost_takes_several_units() {
        let (quota, mut count) = (Quota::mutation(), None);
        for _ in 0..20 {
            count = taken(&quota, count, T0, quota.cost);
        }
        assert!(!check(&quota, count, T0 + 2_999_999, quota.cost).0.allowed);
        assert!(check(&quota, count, T0 + 3_000_000, quota.cost).0.allowed);
    }

    /// G1: `auth`: five, then nothing until a quarter of an hour after the first.
    #[test]
    fn a_window_opens_again_after_its_first_use() {
        let (quota, mut count) = (Quota::auth(), None);
        for n in 0..5 {
            count = taken(&quota, count, T0 + n, 1);
        }
        let end = T0 + 15 * 60 * 1_000_000;
        let (refused, kept) = check(&quota, count, end - 1, 1);
        assert_eq!(
            (refused.allowed, refused.retry_after, kept),
            (false, Some(Duration::from_micros(1)), None)
        );
        let (allowed, _) = check(&quota, count, end, 1);
        assert_eq!((allowed.allowed, allowed.remaining), (true, 4));
    }

    /// Asking takes nothing, of either algorithm.
    #[test]
    fn a_cost_of_zero_takes_nothing() {
        for quota in [Quota::api(), Quota::auth()] {
            let (decision, kept) = check(&quota, None, T0, 0);
            assert_eq!(
                (decision.allowed, decision.remaining, decision.reset_after, kept),
                (true, quota.limit, Duration::ZERO, None)
            );
        }
    }

    /// G1: a count from the future, as after a clock was put back or a period was shortened, delays by one
    /// period at most.
    #[test]
    fn a_count_from_the_future_delays_by_one_period_at_most() {
        let ends = T0 + 1_000_000_000_000;
        for (quota, count) in
            [(Quota::api(), Count::Bucket(ends)), (Quota::auth(), Count::Window { taken: 5, ends })]
        {
            for cost in [0, 1] {
                let (first, kept) = check(&quota, Some(count), T0, cost);
                assert_eq!((first.allowed, first.reset_after), (cost == 0, quota.per));
                let later = T0 + micros(quota.per);
                assert!(check(&quota, kept, later, 1).0.allowed, "{quota:?}: not delayed again");
            }
        }
    }

    /// G1: also a window whose limit was lowered may be asked what is left.
    #[test]
    fn a_lowered_limit_may_be_asked_what_is_left() {
        let count = Some(Count::Window { taken: 9, ends: T0 + 1 });
        let (asked, kept) = check(&Quota::auth(), count, T0, 0);
        assert_eq!((asked.allowed, asked.remaining, kept), (true, 0, None));
    }

    /// A count of another algorithm is none.
    #[test]
    fn another_algorithms_count_is_none() {
        let (bucket, window) = (Count::Bucket(T0 + 60_000_000), Count::Window { taken: 5, ends: T0 + 9 });
        assert_eq!(check(&Quota::api(), Some(window), T0, 1), check(&Quota::api(), None, T0, 1));
        assert_eq!(check(&Quota::auth(), Some(bucket), T0, 1), check(&Quota::auth(), None, T0, 1));
    }

    proptest! {
        /// G1: whatever the sequence, a bucket never lets more than its limit plus the refill pass.
        #[test]
        fn a_bucket_never_lets_too_much_pass(
            limit in 1_u32..50, per_ms in 1_u64..10_000,
            steps in proptest::collection::vec((0_u64..2_000_000, 0_u32..10), 1..200),
        ) {
            let quota = Quota::token_bucket("q", limit, Duration::from_millis(per_ms));
            let (mut now, mut count, mut passed) = (T0, None, 0_u64);
            for (pause, cost) in steps {
                now += pause;
                let cost = cost.min(limit);
                let (decision, new) = check(&quota, count, now, cost);
                prop_assert!(decision.remaining <= limit);
                prop_assert_eq!(decision.retry_after.is_some(), !decision.allowed);
                if let Some(wait) = decision.retry_after {
                    let later = now + micros(wait);
                    prop_assert!(check(&quota, count, later, cost).0.allowed, "the wait is enough");
                    prop_assert!(!check(&quota, count, later - 1, cost).0.allowed, "and not too long");
                }
                passed += u64::from(if decision.allowed { cost } else { 0 });
                count = new.or(count);
                // Rounding down a unit's share grants less than one unit more per unit taken.
                let refilled = (now - T0) as u128 * u128::from(limit) / u128::from(per_ms * 1_000);
                prop_assert!(u128::from(passed) <= u128::from(limit) + refilled + 1);
            }
        }

        /// G1: of a fixed window never more than its limit passes between its first use and its end.
        #[test]
        fn a_window_never_lets_too_much_pass(
            limit in 1_u32..50, steps in proptest::collection::vec((0_u64..400_000, 0_u32..10), 1..200),
        ) {
            let quota = Quota::fixed_window("q", limit, Duration::from_secs(1));
            let (mut now, mut count, mut passed, mut ends) = (T0, None, 0, 0);
            for (pause, cost) in steps {
                now += pause;
                let cost = cost.min(limit);
                let (decision, new) = check(&quota, count, now, cost);
                if let Some(new) = new {
                    if now >= ends {
                        (passed, ends) = (0, now + 1_000_000);
                    }
                    prop_assert_eq!(new.ends(), ends);
                    passed += cost;
                }
                prop_assert!(passed <= limit);
                let open = if now < ends { passed } else { 0 };
                prop_assert_eq!(decision.remaining, limit - open);
                prop_assert_eq!(decision.allowed, new.is_some() || cost == 0);
                count = new.or(count);
            }
        }

        /// G5: what a decision tells is enough to decide as the count itself does, at any later time.
        #[test]
        fn a_decision_tells_the_count_behind_it(
            bucket in any::<bool>(), used in 0_u64..=60_000_000, taken in 1_u32..=100,
            cost in 0_u32..=100, later in 0_u64..70_000_000, other in 0_u32..=100,
        ) {
            let (quota, count) = match bucket {
                true => (Quota::api(), Count::Bucket(T0 + used)),
                false => (Quota::fixed_window("q", 100, Quota::api().per), Count::Window { taken, ends: T0 + used }),
            };
            let (decision, new) = check(&quota, Some(count), T0, cost);
            let told = Count::behind(&quota, &decision, T0);
            let by = |count| check(&quota, Some(count), T0 + later, other).0;
            prop_assert_eq!(by(told), by(new.unwrap_or(count)));
        }

        /// G1: extreme quotas and times do not overflow.
        #[test]
        fn nothing_overflows(
            limit in 1_u32.., per in 1_u64..=31_622_400_000_000, at in any::<u64>(), now in any::<u64>(),
            taken in any::<u32>(), cost in any::<u32>(), bucket in any::<bool>(),
        ) {
            let per = Duration::from_micros(per.max(u64::from(limit)));
            let count = if bucket { Count::Bucket(at) } else { Count::Window { taken, ends: at } };
            for quota in [Quota::token_bucket("q", limit, per), Quota::fixed_window("q", limit, per)] {
                let (decision, _) = check(&quota, Some(count), now, cost.min(limit));
                prop_assert!(decision.remaining <= limit && decision.reset_after <= per);
            }
        }
    }
}
