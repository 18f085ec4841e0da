//! What a loader is asked, and what it may answer.

use std::sync::Arc;
use std::time::Duration;

/// What a loader is asked for.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadRequest<K, V> {
    /// The key to load.
    pub key: K,
    /// The value that would be replaced, when one is still there: for a conditional request to the origin, which
    /// may be answered with [`Loaded::not_modified`]. Only caches that keep stale values
    /// ([`stale_if_error`](crate::DomainBuilder::stale_if_error) and the like) have one, or a refresh of an
    /// entry that is alive.
    pub stale: Option<Arc<V>>,
}

impl<K: Clone, V> Clone for LoadRequest<K, V> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), stale: self.stale.clone() }
    }
}

/// What a loader came up with, and how it is to be cached.
///
/// ```
/// use std::time::Duration;
/// use tenant_cache::Loaded;
///
/// let found = Loaded::value("row").ttl(Duration::from_secs(20)).tag("reports");
/// let gone: Loaded<&str> = Loaded::absent();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it is what a loader returns"]
pub struct Loaded<V> {
    pub(crate) what: What<V>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) tags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What<V> {
    Value(V),
    Absent,
    NotModified,
}

impl<V> Loaded<V> {
    /// There is this.
    pub fn value(value: V) -> Self {
        Self::of(What::Value(value))
    }

    /// There is no such thing.
    pub fn absent() -> Self {
        Self::of(What::Absent)
    }

    /// The stale value of the request is still the right one: it stays, and its life begins anew. An error when
    /// the request had none.
    pub fn not_modified() -> Self {
        Self::of(What::NotModified)
    }

    /// How long this answer lives, in place of what the cache's definition says. Zero: it is not cached.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Puts the answer into a group for [`invalidate_tag`](crate::TenantCache::invalidate_tag), besides those of
    /// its key; up to 8 in all. With more of them, or with one that can be none (empty, over 512 bytes, control
    /// characters), the load has failed: [`LoadError::Tags`](cache_core::LoadError::Tags).
    ///
    /// A tag that nobody has met before (or that was invalidated a moment ago) costs one load more: whether it
    /// was invalidated *during* this load cannot be told, so the answer is given and stored nowhere. Tags that
    /// follow from the key have no such cost: [`tags`](crate::DomainBuilder::tags).
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// With the value where several can hold it.
    pub(crate) fn shared(self) -> Loaded<Arc<V>> {
        let what = match self.what {
            What::Value(value) => What::Value(Arc::new(value)),
            What::Absent => What::Absent,
            What::NotModified => What::NotModified,
        };
        Loaded { what, ttl: self.ttl, tags: self.tags }
    }

    fn of(what: What<V>) -> Self {
        Self { what, ttl: None, tags: Vec::new() }
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Self {
        value.map_or_else(Self::absent, Self::value)
    }
}
