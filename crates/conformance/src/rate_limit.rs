//! The suite of [`RateLimits`].
//!
//! ```text
//! conformance::rate_limit_suite!(local, fixture);
//!
//! async fn fixture() -> conformance::rate_limit::RateLimitFixture { … }
//! ```
//!
//! Time is real here. What depends on the microsecond is in [`vectors`], for arithmetic that is given its time.

pub mod counting;
pub mod time;
pub mod vectors;

use cache_core::{Decision, Quota, RateLimits};

use crate::instances::Instances;

/// Limits under test, nothing counted yet under its scope.
pub type RateLimitFixture = Instances<dyn RateLimits>;

impl RateLimitFixture {
    async fn check(&self, quota: &Quota, name: &str, cost: u32) -> Decision {
        self.service.check(quota, &self.key(name), cost).await.unwrap()
    }
}

/// A11, G1: makes a test of each case for a backend, one of yours too.
#[macro_export]
macro_rules! rate_limit_suite {
    ($backend:ident, $fixture:path) => {
        mod $backend {
            mod rate_limit {
                $crate::cases!(
                    $fixture,
                    rate_limit,
                    counting,
                    [
                        exactly_the_limit_passes,
                        a_refusal_takes_nothing,
                        a_cost_takes_several_units,
                        a_cost_of_zero_only_asks,
                        decisions_add_up,
                        parallel_callers_take_exactly_the_limit,
                        instances_share_the_count,
                        keys_and_quotas_are_counted_apart,
                        what_can_never_pass_is_refused_by_name,
                        a_dropped_check_takes_its_units_at_most,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    rate_limit,
                    time,
                    [
                        the_wait_told_is_enough,
                        a_bucket_refills_evenly,
                        a_window_ends_with_its_first_use,
                        a_window_edge_lets_two_windows_pass_at_most,
                        denied_callers_stay_denied_until_their_time,
                    ]
                );
            }
        }
    };
}
