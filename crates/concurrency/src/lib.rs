//! Locks, rate limits, presence and the invalidation bus within one process.

mod bus;

pub use bus::LocalBus;
