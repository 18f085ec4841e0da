//! # What every backend must pass
//!
//! For tests only. Each suite is a library: one named case per function, run by every backend through a macro
//! that makes a test of each, at the path `<backend>::<suite>::<case>`. A backend of your own runs the same.
//!
//! | you look for | module |
//! |---|---|
//! | the suite of `CacheService` | [`cache`], [`cache_suite!`] |
//! | the suite of `Locks` | [`lock`], [`lock_suite!`] |
//! | the suite of `RateLimits`, and vectors of its arithmetic | [`rate_limit`], [`rate_limit_suite!`] |
//! | the suite of `Presence` | [`presence`], [`presence_suite!`] |
//! | the suite of `InvalidationBus` | [`bus`], [`bus_suite!`] |
//! | what suites are given | [`instances`] |
//! | waiting for what must come | [`wait`] |
//! | what a test must leave behind: nothing | [`hygiene`] |
//! | the cache contract in its plainest form, to compare with | [`model`] |
//! | twins of the contracts that fail when they are told to | [`faults`] |
//! | whether what was read was fresh enough | [`history`] |
//! | real Redis servers on free ports | [`redis_server`] |
//! | a faulty network in front of them | [`proxy`] |
//! | a few lines of Redis protocol | [`resp`] |
#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

pub mod bus;
pub mod cache;
pub mod faults;
pub mod history;
pub mod hygiene;
pub mod instances;
pub mod lock;
pub mod model;
pub mod presence;
pub mod proxy;
pub mod rate_limit;
pub mod redis_server;
pub mod resp;
pub mod wait;

/// Makes a test of each named case of a suite's module; used by the suites' own macros.
#[doc(hidden)]
#[macro_export]
macro_rules! cases {
    ($fixture:path, $suite:ident, $module:ident, [$($case:ident),* $(,)?]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::hygiene::case(async { $crate::$suite::$module::$case($fixture().await).await }).await;
                $crate::hygiene::case(async {
                    $crate::$suite::$module::$case($fixture().await.forwarded()).await;
                })
                .await;
            }
        )*
    };
}
