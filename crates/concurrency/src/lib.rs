//! Locks, rate limits, presence and the invalidation bus within one process.
