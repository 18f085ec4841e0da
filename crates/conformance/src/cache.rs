//! The suite of [`CacheService`].
//!
//! A backend gives a fixture and gets a test per case, at `<backend>::cache::<case>`:
//!
//! ```
//! use std::sync::Arc;
//!
//! use cache_core::ManualClock;
//! use conformance::cache::{CacheFixture, MAX_VALUE_BYTES, Time};
//! # use conformance::model::ModelCache as MyCache;
//!
//! async fn fixture() -> CacheFixture {
//!     let hand = ManualClock::new();
//!     let service = MyCache::new(hand.clock(), MAX_VALUE_BYTES);
//!     CacheFixture::new(Arc::new(service), Time::Manual(hand))
//! }
//!
//! conformance::cache_suite!(mine, crate::fixture);
//! # fn main() {}
//! ```
//! Each case runs twice: on the service as it is, and through the forwarding of `Arc`. A case that hangs fails,
//! and so does one after which a task is left. A store that several instances share gives the fixture a second
//! one by [`CacheFixture::with_peer`].

pub mod concurrent;
pub mod keys;
pub mod leases;
pub mod refresh;
pub mod tokens;
pub mod values;

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheService, ManualClock};

/// A service under test, empty under its scope.
#[derive(Debug, Clone)]
pub struct CacheFixture {
    /// The service; its `max_value_bytes` is [`MAX_VALUE_BYTES`].
    pub service: Arc<dyn CacheService>,
    /// Another way to the same store: a second instance where a backend can have one, else the same.
    pub peer: Arc<dyn CacheService>,
    /// How time passes for it.
    pub time: Time,
    /// Begins every key of the case: tests share a store and never empty it.
    pub scope: String,
}

/// The `max_value_bytes` that fixtures configure.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// How time passes for a service.
#[derive(Debug, Clone)]
pub enum Time {
    /// When it is told to.
    Manual(ManualClock),
    /// By itself.
    Real,
}

impl Time {
    /// Lets time pass; in real time a little more, for the store's own granularity.
    pub async fn pass(&self, time: Duration) {
        match self {
            Self::Manual(clock) => clock.advance(time),
            Self::Real => tokio::time::sleep(time + Duration::from_millis(15)).await,
        }
    }
}

impl CacheFixture {
    /// A fixture with a random scope.
    #[must_use]
    pub fn new(service: Arc<dyn CacheService>, time: Time) -> Self {
        let (peer, scope) = (Arc::clone(&service), format!("t{:016x}/", rand::random::<u64>()));
        Self { service, peer, time, scope }
    }

    /// Adds a second instance on the same store.
    #[must_use]
    pub fn with_peer(mut self, peer: Arc<dyn CacheService>) -> Self {
        self.peer = peer;
        self
    }

    /// A life that ends within the case, and not while it looks: in real time longer, for a busy machine.
    #[must_use]
    pub fn short(&self) -> Duration {
        match self.time {
            Time::Manual(_) => Duration::from_millis(120),
            Time::Real => Duration::from_millis(400),
        }
    }

    /// How often a case repeats what depends on luck: as often as asked where a call costs a microsecond, and a
    /// fraction of that on a real server.
    #[must_use]
    pub fn rounds(&self, rounds: usize) -> usize {
        match self.time {
            Time::Manual(_) => rounds,
            Time::Real => rounds.div_ceil(25),
        }
    }

    /// A key of this case.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.scope)
    }

    /// The same store, each call going through the forwarding implementation for `Arc`.
    #[must_use]
    pub fn forwarded(self) -> Self {
        let (service, peer): (Arc<dyn CacheService>, Arc<dyn CacheService>) =
            (Arc::new(self.service), Arc::new(self.peer));
        Self::new(service, self.time).with_peer(peer)
    }
}

/// A11: makes a test of each case for a backend, one of yours too.
#[macro_export]
macro_rules! cache_suite {
    ($backend:ident, $fixture:path) => {
        mod $backend {
            mod cache {
                $crate::cases!(
                    $fixture,
                    cache,
                    values,
                    [
                        set_then_get,
                        values_of_every_shape_come_back,
                        a_value_may_begin_with_any_byte,
                        an_absent_key_is_none,
                        overwriting_replaces_value_and_life,
                        an_entry_lives_as_long_as_it_says,
                        the_default_life_is_the_services,
                        a_life_of_zero_removes,
                        a_huge_life_is_clamped,
                        a_tiny_life_is_not_none,
                        a_value_of_the_largest_size_fits_and_no_larger_one,
                        bytes_of_another_type_are_a_typed_error,
                        health_answers,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    cache,
                    keys,
                    [
                        hostile_keys_are_ordinary,
                        hostile_keys_are_ordinary_in_bulk_and_as_prefixes,
                        unacceptable_keys_are_refused_everywhere,
                        bulk_reads_keep_their_order,
                        bulk_writes_store_all_or_refuse_all,
                        empty_bulks_do_nothing,
                        invalidation_is_idempotent,
                        invalidating_many_removes_just_those,
                        a_prefix_removes_exactly_what_starts_with_it,
                        a_prefix_is_at_the_beginning_and_whole,
                        random_prefixes_agree_with_a_naive_model,
                        an_empty_prefix_is_refused,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    cache,
                    leases,
                    [
                        one_caller_gets_the_lease,
                        a_value_is_a_hit,
                        a_lease_is_no_value,
                        a_fill_under_the_lease_is_stored,
                        an_invalidation_takes_the_lease_away,
                        a_bulk_invalidation_takes_the_lease_away,
                        a_prefix_takes_the_lease_away,
                        a_set_defeats_the_fill,
                        a_second_load_of_one_client_does_not_revive_the_first,
                        an_expired_lease_passes_on,
                        a_renewed_lease_stands,
                        a_released_lease_passes_on_at_once,
                        a_foreign_release_does_nothing,
                        a_fill_with_no_life_gives_the_lease_up,
                        an_oversized_fill_keeps_the_lease,
                        what_is_filled_has_a_life_of_its_own,
                        leases_are_held_under_hostile_keys_too,
                        another_instance_is_on_the_same_store,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    cache,
                    tokens,
                    [
                        a_repeated_request_is_granted_again,
                        a_repeated_request_prolongs_nothing,
                        a_token_that_was_not_granted_releases_nothing,
                        a_lease_that_nobody_heard_of_is_given_up_by_its_token,
                        a_taken_lease_defeats_a_fill_in_flight,
                        a_taken_lease_hides_the_value,
                        a_taken_lease_is_taken_away,
                        a_taken_lease_ends_like_any_other,
                        the_later_of_two_taken_leases_stands,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    cache,
                    refresh,
                    [
                        a_refresh_replaces_what_it_saw,
                        a_refresh_gives_way,
                        a_refresh_with_no_life_removes_what_it_saw,
                        a_dead_value_is_taken_over_once,
                        a_changed_value_is_not_taken_over,
                        nothing_is_taken_over_as_an_ordinary_lease,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    cache,
                    concurrent,
                    [
                        one_of_many_callers_gets_the_lease,
                        readers_never_see_an_acknowledged_past,
                        an_invalidation_leaves_nothing_of_a_fill_beside_it,
                        a_value_that_is_replaced_is_never_missing,
                        cancelled_calls_leave_nothing_behind,
                        random_operations_agree_with_a_naive_model,
                    ]
                );
            }
        }
    };
}
