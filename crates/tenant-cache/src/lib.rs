//! The typed, tenant-scoped two-level read-through cache.
