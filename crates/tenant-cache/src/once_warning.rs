//! Warnings of what goes on and on: given once per domain and kind, counted each time.

use std::sync::atomic::{AtomicBool, Ordering};

/// A warning that was given, or was not yet.
#[derive(Debug, Default)]
pub(crate) struct OnceWarning(AtomicBool);

impl OnceWarning {
    /// Gives it, the first time.
    pub(crate) fn give(&self, warn: impl FnOnce()) {
        if !self.0.swap(true, Ordering::Relaxed) {
            warn();
        }
    }
}

/// Those of one cache.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    pub(crate) incompatible: OnceWarning,
    pub(crate) not_encodable: OnceWarning,
    pub(crate) too_large: OnceWarning,
    pub(crate) lost_key: OnceWarning,
}
