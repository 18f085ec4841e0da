//! The arithmetic of rate limits in examples: written by hand, and drawn at random. Whoever counts must answer
//! the same, in whatever language.

use std::time::Duration;

use cache_core::gcra::{self, Count};
use cache_core::{Decision, Quota};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// When a vector begins, in microseconds since 1970.
pub const BEGINNING: u64 = 1_700_000_000_000_000;

/// Checks of one key, one after the other.
#[derive(Debug, Clone)]
pub struct Vector {
    /// What is checked.
    pub quota: Quota,
    /// The checks.
    pub steps: Vec<Step>,
}

/// One check.
#[derive(Debug, Clone)]
pub struct Step {
    /// When, in microseconds since 1970.
    pub at: u64,
    /// The units asked for.
    pub cost: u32,
    /// What must be answered.
    pub expected: Decision,
}

/// After the beginning, cost, whether allowed, remaining, and until reset, next and retry; all in microseconds.
type Line = (u64, u32, bool, u32, u64, u64, Option<u64>);

/// The ones written by hand.
#[must_use]
pub fn written() -> Vec<Vector> {
    let second = Duration::from_secs(1);
    vec![
        // A hundred at once, then one per 0.6 s.
        vector(
            Quota::api(),
            &[
                (0, 1, true, 99, 600_000, 600_000, None),
                (0, 99, true, 0, 60_000_000, 600_000, None),
                (0, 1, false, 0, 60_000_000, 600_000, Some(600_000)),
                (599_999, 1, false, 0, 59_400_001, 1, Some(1)),
                (600_000, 1, true, 0, 60_000_000, 600_000, None),
                (900_000, 0, true, 0, 59_700_000, 300_000, None),
                (61_000_000, 100, true, 0, 60_000_000, 600_000, None),
            ],
        ),
        // Twenty at once, then one per 3 s.
        vector(
            Quota::mutation(),
            &[
                (0, 95, true, 5, 57_000_000, 600_000, None),
                (0, 5, true, 0, 60_000_000, 600_000, None),
                (2_999_999, 5, false, 4, 57_000_001, 1, Some(1)),
                (3_000_000, 5, true, 0, 60_000_000, 600_000, None),
            ],
        ),
        // Five, then nothing until a quarter of an hour after the first.
        vector(
            Quota::auth(),
            &[
                (0, 1, true, 4, 900_000_000, 900_000_000, None),
                (1_000_000, 4, true, 0, 899_000_000, 899_000_000, None),
                (899_999_999, 1, false, 0, 1, 1, Some(1)),
                (900_000_000, 0, true, 5, 0, 0, None),
                (900_000_000, 2, true, 3, 900_000_000, 900_000_000, None),
                (900_000_001, 4, false, 3, 899_999_999, 899_999_999, Some(899_999_999)),
                (900_000_001, 3, true, 0, 899_999_999, 899_999_999, None),
            ],
        ),
        // A third of a second is no whole number of microseconds: a unit costs 333 333.
        vector(
            Quota::token_bucket("thirds", 3, second),
            &[
                (0, 3, true, 0, 1_000_000, 1, None),
                (0, 1, false, 0, 1_000_000, 1, Some(333_333)),
                (333_332, 1, false, 0, 666_668, 2, Some(1)),
                (333_333, 1, true, 0, 1_000_000, 1, None),
            ],
        ),
        // A clock that is put back by a minute: nobody waits for longer than a period.
        vector(
            Quota::token_bucket("back", 2, second),
            &[
                (60_000_000, 2, true, 0, 1_000_000, 500_000, None),
                (0, 1, false, 0, 1_000_000, 500_000, Some(500_000)),
            ],
        ),
        vector(
            Quota::fixed_window("back", 2, second),
            &[
                (60_000_000, 2, true, 0, 1_000_000, 1_000_000, None),
                (0, 1, false, 0, 1_000_000, 1_000_000, Some(1_000_000)),
            ],
        ),
        // The largest there are.
        vector(
            Quota::token_bucket("large", u32::MAX, Quota::MAX_PER),
            &[
                (0, u32::MAX, true, 0, 31_622_400_000_000, 1_674, None),
                (0, 1, false, 0, 31_622_400_000_000, 1_674, Some(7_362)),
            ],
        ),
    ]
}

/// Drawn at random from a seed, in several shapes of quota; the expectations are those of [`gcra::check`].
#[must_use]
pub fn drawn(seed: u64, steps: usize) -> Vec<Vector> {
    let mut random = StdRng::seed_from_u64(seed);
    let quota =
        |limit, per| [Quota::token_bucket("drawn", limit, per), Quota::fixed_window("drawn", limit, per)];
    let shapes = [
        quota(1, Duration::from_micros(1)),
        quota(3, Duration::from_micros(10)),
        quota(7, Duration::from_secs(1)),
        quota(100, Duration::from_secs(60)),
        quota(1_000_003, Duration::from_secs(86_399)),
        quota(u32::MAX, Quota::MAX_PER),
    ];
    shapes.into_iter().flatten().map(|quota| draw(&mut random, quota, steps)).collect()
}

fn draw(random: &mut StdRng, quota: Quota, steps: usize) -> Vector {
    let (per, mut at, mut count) = (gcra::micros(quota.per), BEGINNING, None::<Count>);
    let mut step = || {
        at = match random.random_range(0..20) {
            // A clock is put back now and then.
            0 => at - random.random_range(0..=per.min(BEGINNING / 4)) / 2,
            1 => at + random.random_range(0..=per * 2),
            2..=9 => at,
            _ => at + random.random_range(0..=per / 4 + 1),
        };
        let cost = match random.random_range(0..10) {
            0 => 0,
            1 => quota.limit,
            2..=5 => random.random_range(0..=quota.limit),
            _ => random.random_range(0..=quota.limit / 10 + 1).min(quota.limit),
        };
        let (expected, new) = gcra::check(&quota, count, at, cost);
        count = new.or(count);
        Step { at, cost, expected }
    };
    let steps = (0..steps).map(|_| step()).collect();
    Vector { quota, steps }
}

fn vector(quota: Quota, lines: &[Line]) -> Vector {
    let limit = quota.limit;
    let step = |&(after, cost, allowed, remaining, reset, next, retry): &Line| Step {
        at: BEGINNING + after,
        cost,
        expected: Decision {
            allowed,
            limit,
            remaining,
            reset_after: Duration::from_micros(reset),
            next_after: Duration::from_micros(next),
            retry_after: retry.map(Duration::from_micros),
        },
    };
    Vector { steps: lines.iter().map(step).collect(), quota }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G1: the arithmetic answers what was written by hand.
    #[test]
    fn the_arithmetic_answers_what_is_written() {
        for Vector { quota, steps } in written() {
            let mut count = None;
            for (n, Step { at, cost, expected }) in steps.into_iter().enumerate() {
                let (decision, new) = gcra::check(&quota, count, at, cost);
                assert_eq!(decision, expected, "{} {n}", quota.name);
                count = new.or(count);
            }
        }
    }

    /// What is drawn is of every kind: allowed, refused, and at the same time again.
    #[test]
    fn what_is_drawn_is_of_every_kind() {
        for Vector { quota, steps } in drawn(7, 500) {
            let allowed = steps.iter().filter(|step| step.expected.allowed).count();
            assert!((50..500).contains(&allowed), "{quota:?}: {allowed} of 500 are allowed");
        }
    }
}
