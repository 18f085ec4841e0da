//! Which tags there can be, and tags that only the loader knows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cache_core::key::{MAX_KEY_BYTES, validate};
use cache_core::{CacheError, KeyError, LoadError};

use crate::answer::MAX_TAGS;
use crate::far::FarTier;
use crate::fetch::Fetch;
use crate::generation::{Chain, tag_key};
use crate::key::CacheKey;
use crate::loaded::Loaded;
use crate::tag_numbers::Settled;

/// Why an entry cannot carry the tags that are named for it. No tag is repeated: it may hold user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagError {
    TooMany { named: usize, limit: usize },
    Unusable { at: usize, reason: KeyError },
}

impl fmt::Display for TagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { named, limit } => write!(f, "there are {named}, and at most {limit} fit"),
            Self::Unusable { at, reason } => write!(f, "of tag {}, {reason}", at + 1),
        }
    }
}

impl TagError {
    /// For tags that follow from a key: the definition cannot work.
    pub(crate) fn of_key(self, domain: &str) -> CacheError {
        CacheError::configuration(format!("`tags` of cache domain `{domain}`"), self.to_string())
    }

    /// For tags that a loader named.
    fn of_load(self, domain: &Arc<str>) -> LoadError {
        LoadError::Tags { domain: Arc::clone(domain), reason: self.to_string().into() }
    }
}

/// Checks that an entry can carry these tags.
pub(crate) fn check<T: AsRef<str>>(tenant: Option<&str>, tags: &[T], limit: usize) -> Result<(), TagError> {
    if tags.len() > limit {
        return Err(TagError::TooMany { named: tags.len(), limit });
    }
    for (at, tag) in tags.iter().map(AsRef::as_ref).enumerate() {
        let unusable = |reason| TagError::Unusable { at, reason };
        validate(tag).map_err(unusable)?;
        // Encoding makes three bytes of one at most: nearly every tag need not be written out.
        if 16 + 3 * (tenant.map_or(0, str::len) + tag.len()) > MAX_KEY_BYTES {
            validate(&tag_key(tenant, tag)).map_err(unusable)?;
        }
    }
    Ok(())
}

/// The different ones.
fn distinct(tags: &[String]) -> Vec<&str> {
    let mut named: Vec<&str> = tags.iter().map(String::as_str).collect();
    named.sort_unstable();
    named.dedup();
    named
}

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
    /// Those of the groups that follow from the key.
    pub(crate) numbers: Vec<u64>,
}

impl Guard {
    pub(crate) fn of<K: CacheKey, V: Send + Sync + 'static>(fetch: &Fetch<K, V>) -> Self {
        let group = fetch.cache.shared.generations.tag_guard(fetch.tenant());
        Self { group: Chain::of([group]), number: None }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Fetch<K, V> {
    /// To be called before a load after which a tag's number may have to be made or read; `None` when that cannot be,
    /// or the guard cannot be read: what it names then keeps the answer from being stored.
    pub(crate) async fn guard_tags(&self, far: &FarTier) -> Option<Guard> {
        let late = self.cache.loader.may_tag || (far.tag_numbers.is_late() && self.ticket.tags() > 0);
        if !late {
            return None;
        }
        let guard = Guard::of(self);
        let number = far.numbers(&guard.group).await.ok()?.first().copied();
        Some(Guard { number, ..guard })
    }

    /// Refuses what a loader answered with tags that its entry cannot carry.
    pub(crate) fn check_tags<W>(&self, loaded: Loaded<W>) -> Result<Loaded<W>, LoadError> {
        let room = MAX_TAGS.saturating_sub(self.ticket.tags());
        let checked = check(self.tenant(), &distinct(&loaded.tags), room);
        checked.map(|()| loaded).map_err(|error| error.of_load(&self.cache.domain))
    }

    /// The groups of an answer with the tags that its load named; `None` when one of them may have been invalidated
    /// while it ran. `stored` are the numbers of the other groups and the life of an answer that goes into the far tier.
    pub(crate) async fn late_tags(
        &self,
        tags: &[String],
        guard: Option<Guard>,
        stored: Option<(Vec<u64>, Duration)>,
    ) -> Option<LateTags> {
        let generations = &self.cache.shared.generations;
        let named = distinct(tags);
        // The counts first, then the numbers, and the guard last.
        let chain = Chain::of(named.iter().map(|tag| generations.tag(self.tenant(), tag)));
        let mut late = LateTags { chain, ..LateTags::default() };
        let mut made = Settled::Standing;
        if let (Some(far), Some((numbers, life))) = (&self.cache.far, stored) {
            late.numbers = numbers;
            made = far.settle(&self.ticket.chain, &mut late.numbers, life).await.ok()?;
            let mut numbers = far.numbers(&late.chain).await.ok()?;
            if [made, far.settle(&late.chain, &mut numbers, life).await.ok()?].contains(&Settled::Changed) {
                return None;
            }
            late.stamped = named.iter().map(|tag| Box::from(*tag)).zip(numbers).collect();
        }
        if named.is_empty() && made == Settled::Standing {
            return Some(late);
        }
        let guard = guard?;
        if let Some(far) = &self.cache.far
            && far.ask_numbers(&guard.group).await.ok()?.first().copied() != guard.number
        {
            return None;
        }
        guard.group.stands().then_some(late)
    }
}
