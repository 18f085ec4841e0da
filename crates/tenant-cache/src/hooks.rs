//! What users want called on hits and misses.

use crate::answer::Source;

/// The hooks of a cache; both none by default.
pub(crate) struct Hooks<K> {
    pub(crate) on_hit: Option<Box<OnHit<K>>>,
    pub(crate) on_miss: Option<Box<OnMiss<K>>>,
}

type OnHit<K> = dyn Fn(&K, Source) + Send + Sync;
type OnMiss<K> = dyn Fn(&K) + Send + Sync;

impl<K> Default for Hooks<K> {
    fn default() -> Self {
        Self { on_hit: None, on_miss: None }
    }
}

impl<K> Hooks<K> {
    pub(crate) fn are_set(&self) -> bool {
        self.on_hit.is_some() || self.on_miss.is_some()
    }

    #[inline]
    pub(crate) fn hit(&self, key: &K, source: Source) {
        if let Some(hook) = &self.on_hit {
            hook(key, source);
        }
    }

    pub(crate) fn miss(&self, key: &K) {
        if let Some(hook) = &self.on_miss {
            hook(key);
        }
    }
}
