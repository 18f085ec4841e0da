//! The suite of [`Locks`].
//!
//! ```text
//! conformance::lock_suite!(local, fixture);
//!
//! async fn fixture() -> conformance::lock::LockFixture { … }
//! ```

pub mod holding;
pub mod waiting;

use std::sync::Arc;

use cache_core::Locks;

/// Locks under test, none of them held under its scope.
#[derive(Debug, Clone)]
pub struct LockFixture {
    /// The service.
    pub locks: Arc<dyn Locks>,
    /// The same locks as another instance has them; the service itself when there is but one.
    pub peer: Arc<dyn Locks>,
    /// Begins every key of the case.
    pub scope: String,
}

impl LockFixture {
    /// A fixture with a random scope.
    #[must_use]
    pub fn new(locks: Arc<dyn Locks>) -> Self {
        let peer = Arc::clone(&locks);
        Self { locks, peer, scope: format!("t{:016x}/", rand::random::<u64>()) }
    }

    /// Adds another instance that shares the locks.
    #[must_use]
    pub fn with_peer(mut self, peer: Arc<dyn Locks>) -> Self {
        self.peer = peer;
        self
    }

    /// A key of this case.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.scope)
    }

    /// Another scope, asked the other way round; locks have no forwarding implementation to go through.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self::new(self.peer).with_peer(self.locks)
    }
}

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
