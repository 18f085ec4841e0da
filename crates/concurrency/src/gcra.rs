//! The arithmetic of rate limits: pure, in whole microseconds, the same as in the scripts on Redis.
//!
//! The token bucket is GCRA (generic cell rate algorithm): one number per key, the *theoretical arrival time*
//! at which the bucket would be full again.

use std::time::Duration;

use cache_core::{Decision, Quota};

/// Checks a token bucket.
///
/// `arrival` is the key's number (zero when there is none), `now` the time, both in microseconds. Answers the
/// decision, and the number to keep when units were taken.
#[must_use]
pub fn token_bucket(quota: &Quota, arrival: u64, now: u64, cost: u32) -> (Decision, Option<u64>) {
    let (limit, per) = (u64::from(quota.limit), micros(quota.per));
    let arrival = arrival.max(now);
    let new = arrival.saturating_add(share(u64::from(cost), per, limit));
    let allowed = new - now <= per;
    let arrival_after = if allowed { new } else { arrival };
    let used = arrival_after - now;
    let unit = (per / limit).max(1);
    let decision = Decision {
        allowed,
        limit: quota.limit,
        remaining: share(per.saturating_sub(used), limit, per) as u32,
        reset_after: Duration::from_micros(used),
        next_after: Duration::from_micros(match used % unit {
            0 if used > 0 => unit,
            rest => rest,
        }),
        retry_after: (!allowed).then(|| Duration::from_micros(new - per - now)),
    };
    (decision, (allowed && cost > 0).then_some(new))
}

/// A fixed window in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Units taken.
    pub taken: u32,
    /// When it ends, in microseconds.
    pub ends: u64,
}

/// Checks a fixed window. It begins with its first use; a refused attempt takes nothing.
#[must_use]
pub fn fixed_window(
    quota: &Quota,
    window: Option<Window>,
    now: u64,
    cost: u32,
) -> (Decision, Option<Window>) {
    let current = window.filter(|window| now < window.ends);
    let Window { taken, ends } =
        current.unwrap_or(Window { taken: 0, ends: now.saturating_add(micros(quota.per)) });
    let allowed = taken.saturating_add(cost) <= quota.limit;
    let after = if allowed { taken + cost } else { taken };
    let left = if after == 0 { Duration::ZERO } else { Duration::from_micros(ends - now) };
    let decision = Decision {
        allowed,
        limit: quota.limit,
        remaining: quota.limit.saturating_sub(after),
        reset_after: left,
        next_after: left,
        retry_after: (!allowed).then_some(left),
    };
    (decision, (allowed && cost > 0).then_some(Window { taken: after, ends }))
}

/// `a × b ÷ c`, rounded down, without overflow on the way.
fn share(a: u64, b: u64, c: u64) -> u64 {
    u64::try_from(u128::from(a) * u128::from(b) / u128::from(c)).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: u64 = 1_700_000_000_000_000;

    /// G1: `api`: a hundred at once, then one per 0.6 s, to the microsecond.
    #[test]
    fn a_bucket_refills_to_the_microsecond() {
        let (quota, mut arrival) = (Quota::api(), 0);
        for n in 0..100 {
            let (decision, new) = token_bucket(&quota, arrival, T0, 1);
            assert!(decision.allowed && decision.remaining == 99 - n);
            arrival = new.expect("units were taken");
        }
        let (refused, kept) = token_bucket(&quota, arrival, T0, 1);
        assert_eq!((refused.allowed, refused.remaining, kept), (false, 0, None));
        assert_eq!(refused.retry_after, Some(Duration::from_millis(600)));
        assert_eq!(refused.reset_after, Duration::from_secs(60));
        assert!(!token_bucket(&quota, arrival, T0 + 599_999, 1).0.allowed);
        assert!(token_bucket(&quota, arrival, T0 + 600_000, 1).0.allowed);
    }

    /// G1: `mutation`: a cost of five of a hundred per minute: twenty at once, then one per 3 s.
    #[test]
    fn a_cost_takes_several_units() {
        let (quota, mut arrival) = (Quota::mutation(), 0);
        for _ in 0..20 {
            arrival = token_bucket(&quota, arrival, T0, quota.cost).1.expect("allowed");
        }
        assert!(!token_bucket(&quota, arrival, T0 + 2_999_999, quota.cost).0.allowed);
        assert!(token_bucket(&quota, arrival, T0 + 3_000_000, quota.cost).0.allowed);
    }

    /// G1: `auth`: five, then nothing until a quarter of an hour after the first.
    #[test]
    fn a_window_opens_again_after_its_first_use() {
        let (quota, mut window) = (Quota::auth(), None);
        for n in 0..5 {
            window = fixed_window(&quota, window, T0 + n, 1).1.or(window);
        }
        let end = T0 + 15 * 60 * 1_000_000;
        let (refused, kept) = fixed_window(&quota, window, end - 1, 1);
        assert_eq!(
            (refused.allowed, refused.retry_after, kept),
            (false, Some(Duration::from_micros(1)), None)
        );
        let (allowed, _) = fixed_window(&quota, window, end, 1);
        assert_eq!((allowed.allowed, allowed.remaining), (true, 4));
    }

    /// Asking takes nothing, of either algorithm.
    #[test]
    fn a_cost_of_zero_takes_nothing() {
        let (decision, kept) = token_bucket(&Quota::api(), 0, T0, 0);
        assert_eq!(
            (decision.allowed, decision.remaining, decision.reset_after, kept),
            (true, 100, Duration::ZERO, None)
        );
        let (decision, kept) = fixed_window(&Quota::auth(), None, T0, 0);
        assert_eq!(
            (decision.allowed, decision.remaining, decision.reset_after, kept),
            (true, 5, Duration::ZERO, None)
        );
    }

    proptest! {
        /// G1: whatever the sequence, a bucket never lets more than its limit plus the refill pass.
        #[test]
        fn a_bucket_never_lets_too_much_pass(
            limit in 1_u32..50, per_ms in 1_u64..10_000,
            steps in proptest::collection::vec((0_u64..2_000_000, 0_u32..10), 1..200),
        ) {
            let quota = Quota::token_bucket("q", limit, Duration::from_millis(per_ms));
            let (mut now, mut arrival, mut passed) = (T0, 0, 0_u64);
            for (pause, cost) in steps {
                now += pause;
                let cost = cost.min(limit);
                let (decision, new) = token_bucket(&quota, arrival, now, cost);
                prop_assert!(decision.remaining <= limit);
                prop_assert_eq!(decision.retry_after.is_some(), !decision.allowed);
                if let Some(wait) = decision.retry_after {
                    let later = now + wait.as_micros() as u64;
                    prop_assert!(token_bucket(&quota, arrival, later, cost).0.allowed, "the wait is enough");
                    prop_assert!(!token_bucket(&quota, arrival, later - 1, cost).0.allowed, "and not too long");
                }
                passed += u64::from(if decision.allowed { cost } else { 0 });
                arrival = new.unwrap_or(arrival);
                // Rounding down a unit's share grants less than one unit more per unit taken.
                let refilled = (now - T0) as u128 * u128::from(limit) / u128::from(per_ms * 1_000);
                prop_assert!(u128::from(passed) <= u128::from(limit) + refilled + 1);
            }
        }

        /// G1: extreme quotas and times do not overflow.
        #[test]
        fn nothing_overflows(limit in 1_u32.., per in 1_u64..=31_622_400_000_000, arrival in any::<u64>(), now in any::<u64>(), cost in any::<u32>()) {
            let quota = Quota::token_bucket("q", limit, Duration::from_micros(per.max(u64::from(limit))));
            let arrival = arrival.min(now.saturating_add(per));
            let _ = token_bucket(&quota, arrival, now, cost.min(limit));
            let _ = fixed_window(&quota, Some(Window { taken: limit, ends: arrival }), now, cost);
        }
    }
}
