//! # Locks, rate limits, presence and the bus within one process
//!
//! The same contracts as on Redis, for a service that runs alone, and for tests.
//!
//! | you look for | module |
//! |---|---|
//! | all three as one object | [`LocalConcurrencyService`] |
//! | locks | `lock` |
//! | rate limits, and those a store counts for a fleet | `rate_limit`: [`FleetRateLimits`] · their arithmetic: [`gcra`] |
//! | presence | `presence` |
//! | the invalidation bus | [`LocalBus`] |

mod bus;
mod lock;
mod presence;
mod rate_limit;
mod service;

pub use bus::LocalBus;
pub use cache_core::gcra;
pub use rate_limit::{FleetRateLimits, FleetRateLimitsBuilder};
pub use service::{LocalConcurrencyBuilder, LocalConcurrencyService};
