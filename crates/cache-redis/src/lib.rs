//! The Redis backend: one door to Redis for cache, locks, limits, presence and the bus.
