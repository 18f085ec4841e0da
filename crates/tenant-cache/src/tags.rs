//! Tags that only the loader knows.

use crate::answer::MAX_TAGS;
use crate::far::FarTier;
use crate::fetch::Fetch;
use crate::generation::Chain;
use crate::key::CacheKey;

/// The group that is invalidated with any tag, as it was before a load; see
/// [`tag_guard_key`](crate::generation::tag_guard_key).
pub(crate) struct Guard {
    group: Chain,
    number: Option<u64>,
}

/// The groups a loader named.
#[derive(Default)]
pub(crate) struct LateTags {
    pub(crate) chain: Chain,
    /// As they are stored with the entry.
    pub(crate) stamped: Vec<(Box<str>, u64)>,
}

impl Guard {
    pub(crate) fn of<K: CacheKey, V: Send + Sync + 'static>(fetch: &Fetch<K, V>) -> Self {
        let group = fetch.cache.shared.generations.tag_guard(fetch.tenant());
        Self { group: Chain::of([group]), number: None }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Fetch<K, V> {
    /// To be called before a load that may name tags; `None` when it cannot, or the guard cannot be read: what
    /// it names then keeps the answer from being stored.
    pub(crate) async fn guard_tags(&self, far: &FarTier) -> Option<Guard> {
        if !self.cache.loader.may_tag {
            return None;
        }
        let guard = Guard::of(self);
        let number = far.numbers(&guard.group).await.ok()?.first().copied();
        Some(Guard { number, ..guard })
    }

    /// The groups that a load named; `None` when one of them may have been invalidated while it ran.
    pub(crate) async fn late_tags(&self, tags: &[String], guard: Option<Guard>) -> Option<LateTags> {
        if tags.is_empty() {
            return Some(LateTags::default());
        }
        let guard = guard?;
        let generations = &self.cache.shared.generations;
        let room = MAX_TAGS.saturating_sub(self.ticket.tags());
        let mut named: Vec<&str> = tags.iter().map(String::as_str).collect();
        named.sort_unstable();
        named.dedup();
        if named.len() > room {
            tracing::warn!(domain = &*self.cache.domain, "a loader named more tags than an entry can carry");
            return None;
        }
        // The counts first, then the numbers, and the guard last.
        let chain = Chain::of(named.iter().map(|tag| generations.tag(self.tenant(), tag)));
        let mut stamped = Vec::new();
        if let Some(far) = &self.cache.far {
            let numbers = far.numbers(&chain).await.ok()?;
            stamped = named.iter().map(|tag| Box::from(*tag)).zip(numbers).collect();
            if far.ask_numbers(&guard.group).await.ok()?.first().copied() != guard.number {
                return None;
            }
        }
        guard.group.stands().then_some(LateTags { chain, stamped })
    }
}
