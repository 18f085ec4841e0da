//! The suite of [`InvalidationBus`].
//!
//! ```text
//! conformance::bus_suite!(local, fixture);
//!
//! async fn fixture() -> conformance::bus::BusFixture { … }
//! ```

pub mod panicking;
pub mod telling;

use std::sync::Arc;

use cache_core::{Clock, FlushReason, Invalidation, InvalidationBus, InvalidationSink, Subscription};
use parking_lot::Mutex;

use crate::instances::Instances;
use crate::wait::until;

/// A bus under test, and the same as another instance is on it.
pub type BusFixture = Instances<dyn InvalidationBus>;

impl BusFixture {
    /// Waits until both instances hear each other. A bus may listen only while it is listened to, which it is until
    /// the guards are dropped.
    async fn ready(&self) -> [Subscription; 2] {
        let guards = [&self.service, &self.peer].map(|bus| bus.subscribe(sink()));
        for bus in [&self.service, &self.peer] {
            until("trust", || bus.trust().near(Clock::system().now())).await;
        }
        guards
    }
}

/// What a process heard.
#[derive(Debug, Default)]
struct Heard(Mutex<Vec<Invalidation>>);

impl Heard {
    /// As far as it concerns a scope: others may be on the same bus.
    fn of(&self, scope: &str) -> Vec<Invalidation> {
        let ours = |message: &&Invalidation| format!("{message:?}").contains(scope);
        self.0.lock().iter().filter(ours).cloned().collect()
    }
}

impl InvalidationSink for Heard {
    fn apply(&self, message: &Invalidation) {
        self.0.lock().push(message.clone());
    }

    fn flush(&self, _: FlushReason) {}
}

fn sink() -> Arc<Heard> {
    Arc::default()
}

/// A11: makes a test of each case for a bus, one of yours too.
#[macro_export]
macro_rules! bus_suite {
    ($backend:ident, $fixture:path) => {
        mod $backend {
            mod bus {
                $crate::cases!(
                    $fixture,
                    bus,
                    telling,
                    [
                        own_sinks_have_heard_when_publishing_ends,
                        messages_arrive_as_they_were_sent,
                        messages_arrive_once_and_in_order,
                        the_order_of_each_publisher_is_kept,
                        a_sink_that_left_hears_nothing,
                        a_sink_may_leave_and_come_while_it_is_told,
                        a_bus_that_is_heard_is_trusted,
                        dropped_announcements_keep_nobody_from_hearing,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    bus,
                    panicking,
                    [
                        a_panicking_sink_keeps_nobody_from_hearing,
                        a_panic_of_an_own_sink_reaches_only_the_publisher,
                    ]
                );
            }
        }
    };
}
