//! Locks, rate limits and presence as one object.

use crate::{Locks, Presence, RateLimits};

/// The sum of the three coordination contracts.
///
/// Implemented for everything that implements the parts, so a backend never writes it. A consumer that
/// needs one part asks for that part: `Arc<dyn ConcurrencyService>` upcasts to `Arc<dyn Locks>`,
/// `Arc<dyn RateLimits>` and `Arc<dyn Presence>`.
///
/// ```
/// # use std::sync::Arc;
/// # use cache_core::{ConcurrencyService, Locks};
/// fn only_locks(all: Arc<dyn ConcurrencyService>) -> Arc<dyn Locks> {
///     all
/// }
/// ```
pub trait ConcurrencyService: Locks + RateLimits + Presence {}

impl<T: Locks + RateLimits + Presence + ?Sized> ConcurrencyService for T {}
