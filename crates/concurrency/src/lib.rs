//! # Locks, rate limits, presence and the bus within one process
//!
//! The same contracts as on Redis, for a service that runs alone, and for tests.
//!
//! | you look for | module |
//! |---|---|
//! | all three as one object | [`LocalConcurrencyService`] |
//! | locks | `lock` |
//! | rate limits, and their arithmetic | `rate_limit`, [`gcra`] |
//! | presence | `presence` |
//! | the invalidation bus | [`LocalBus`] |

mod bus;
pub mod gcra;
mod lock;
mod presence;
mod rate_limit;
mod service;

pub use bus::LocalBus;
pub use service::{LocalConcurrencyBuilder, LocalConcurrencyService};
