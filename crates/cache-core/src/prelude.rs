//! The traits most code wants in scope.
//!
//! ```
//! use cache_core::prelude::*;
//! ```

pub use crate::{
    CacheError, CacheService, CacheServiceExt, ConcurrencyService, InvalidationBus, Locks, LocksExt,
    Presence, RateLimits, RequestContext, Ttl,
};
