//! The suite of [`Locks`].
//!
//! ```text
//! conformance::lock_suite!(local, fixture);
//!
//! async fn fixture() -> conformance::lock::LockFixture { … }
//! ```

pub mod holding;
pub mod waiting;

use cache_core::Locks;

use crate::instances::Instances;

/// Locks under test, none of them held under its scope.
pub type LockFixture = Instances<dyn Locks>;

/// A11: makes a test of each case for a backend, one of yours too.
#[macro_export]
macro_rules! lock_suite {
    ($backend:ident, $fixture:path) => {
        mod $backend {
            mod lock {
                $crate::cases!(
                    $fixture,
                    lock,
                    holding,
                    [
                        one_task_holds_at_a_time,
                        different_keys_do_not_wait_for_each_other,
                        a_dropped_guard_frees_the_lock,
                        a_released_lock_is_free,
                        a_held_lock_is_not_taken,
                        a_lock_holds_for_every_instance,
                        a_held_lock_outlives_its_ttl,
                        fencing_tokens_only_grow,
                        fencing_tokens_grow_across_instances,
                        work_under_a_lock_answers_what_it_answers,
                        dropped_work_frees_the_lock,
                        hostile_keys_are_ordinary,
                        unacceptable_keys_and_options_are_refused,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    lock,
                    waiting,
                    [
                        waiters_are_served_in_the_order_of_arrival,
                        a_release_wakes_the_next_one,
                        holders_never_overlap_while_others_give_up,
                        waiting_has_a_limit,
                        a_waiter_that_gave_up_blocks_nobody,
                        a_waiter_that_is_dropped_blocks_nobody,
                        a_lock_handed_to_a_dropped_waiter_passes_on,
                    ]
                );
            }
        }
    };
}
