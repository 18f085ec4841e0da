//! What a lookup answers.

use std::sync::Arc;

/// An answer, and where it came from.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found<V> {
    /// The value; `None` when there is no such thing.
    pub value: Option<Arc<V>>,
    /// Who knew.
    pub source: Source,
    /// Whether the value is past its fresh life: it is being refreshed, or the load failed or is slow.
    pub stale: bool,
}

impl<V> Clone for Found<V> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), ..*self }
    }
}

/// Who knew an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The memory of this process.
    Near,
    /// The shared tier.
    Far,
    /// The loader.
    Origin,
    /// The fallback of a loader that failed.
    Fallback,
}

/// The most tags of an entry.
pub const MAX_TAGS: usize = 8;
