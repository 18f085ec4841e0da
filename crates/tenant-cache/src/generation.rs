//! Generations: invalidating a whole group of entries in one step, however many there are.
//!
//! A group (everything, a domain, a tenant's domain, a tag) has a random number in the far tier under `gen:…`.
//! Entries carry the numbers they were loaded under and live only while these are the current ones. So
//! `invalidate_all` writes one new number. The numbers are read *before* the load: a load that began before
//! the change carries the old one and is dead on arrival, in every tier. A lost number is replaced by a new
//! random one: everything under it is a miss, never a resurrection.
//!
//! Why not timestamps: they compare clocks of different machines, and a lost one means "never invalidated".

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use cache_core::key::{Owner, push_segment};
use cache_core::{CacheError, CacheService, Claim, LeaseToken, Stamp, Ttl};

use crate::lease::{Asked, LeaseGuard};
use crate::number::{Number, NumberForm};
use crate::sync::{AtomicU64, Mutex};
use crate::tasks::Tasks;

/// The longest life of an entry under generations.
pub(crate) const MAX_ENTRY_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const CREATE_LEASE: Duration = Duration::from_secs(1);
/// Longer than a lease, so that one writer who vanished does not fail the next.
const CREATE_WITHIN: Duration = Duration::from_secs(3);

/// One group, as this process knows it.
///
/// `local` counts the group's invalidations seen here; a near entry is alive while the count is the one it
/// was loaded under. `known` is the number in the far tier, as far as memory may be trusted. Both change
/// together, under the lock.
#[derive(Debug)]
pub(crate) struct Generation {
    text: Box<str>,
    is_tag: bool,
    local: AtomicU64,
    known: Mutex<Option<Number>>,
}

impl Generation {
    fn new(text: impl Into<Box<str>>) -> Arc<Self> {
        let text = text.into();
        let is_tag = text.starts_with(TAG_ROOT);
        Arc::new(Self { text, is_tag, local: AtomicU64::new(0), known: Mutex::new(None) })
    }

    /// The count to remember before a load, and to compare on a hit.
    #[inline]
    pub(crate) fn local(&self) -> u64 {
        self.local.load(Ordering::Acquire)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn known(&self) -> Option<u64> {
        self.known.lock().map(|number| number.value)
    }

    /// The group was invalidated: nothing loaded before counts any more.
    pub(crate) fn bump(&self) {
        let mut known = self.known.lock();
        self.local.fetch_add(1, Ordering::AcqRel);
        *known = None;
    }

    /// Remembers a number that was asked for when the count was `seen`, unless the group was invalidated
    /// since: the answer may be older than the message.
    fn learn(&self, seen: u64, number: Number) {
        let mut known = self.known.lock();
        if self.local() == seen {
            *known = Some(number);
        }
    }
}

/// The groups an entry belongs to, with the counts seen before its load. Shared, because a lookup hands it on several
/// times, and the counts of who holds a group are everybody's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain(Arc<[(Arc<Generation>, u64)]>);

impl Chain {
    pub(crate) fn of(generations: impl IntoIterator<Item = Arc<Generation>>) -> Self {
        let seen = |generation: Arc<Generation>| {
            let local = generation.local();
            (generation, local)
        };
        let generations = generations.into_iter();
        if generations.size_hint() == (0, Some(0)) {
            return Self::default();
        }
        Self(generations.map(seen).collect())
    }

    /// Whether no group was invalidated since.
    pub(crate) fn stands(&self) -> bool {
        self.0.iter().all(|(generation, seen)| generation.local() == *seen)
    }

    pub(crate) fn text(&self, at: usize) -> &str {
        self.0[at].0.text()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The numbers in memory; `None` where one is not known.
    pub(crate) fn known(&self) -> Vec<Option<u64>> {
        self.0.iter().map(|(generation, _)| generation.known()).collect()
    }

    pub(crate) fn learn(&self, at: usize, number: Number) {
        let (generation, seen) = &self.0[at];
        generation.learn(*seen, number);
    }

    /// Where the tags are.
    pub(crate) fn tags(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter(|at| self.is_tag(*at))
    }

    pub(crate) fn is_tag(&self, at: usize) -> bool {
        self.0[at].0.is_tag
    }

    /// The number of a group with its end, as far as it is known.
    pub(crate) fn number(&self, at: usize) -> Option<Number> {
        *self.0[at].0.known.lock()
    }

    /// Forgets a number that is no longer the group's.
    pub(crate) fn unlearn(&self, at: usize, number: u64) {
        let mut known = self.0[at].0.known.lock();
        if known.is_some_and(|known| known.value == number) {
            *known = None;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Arc<Generation>, u64)> {
        self.0.iter()
    }

    /// This chain and a further one.
    pub(crate) fn and(&self, further: &Self) -> Self {
        match further.len() {
            0 => self.clone(),
            _ => Self(self.0.iter().chain(further.0.iter()).cloned().collect()),
        }
    }
}

/// The groups of a process, shared by all its caches.
#[derive(Debug)]
pub(crate) struct Generations {
    all: Arc<Generation>,
    pub(crate) form: NumberForm,
    groups: Mutex<Groups>,
}

#[derive(Debug, Default)]
struct Groups {
    by_text: HashMap<Box<str>, Weak<Generation>>,
    sweep_at: usize,
}

impl Generations {
    /// Below this many groups nothing is swept.
    const MIN_SWEEP: usize = 1_024;

    pub(crate) fn new(form: NumberForm) -> Self {
        Self { all: Generation::new("gen:all"), form, groups: Mutex::default() }
    }

    /// The group of everything.
    pub(crate) fn all(&self) -> Arc<Generation> {
        Arc::clone(&self.all)
    }

    /// The group of a domain: one tenant's (users included), or everybody's.
    pub(crate) fn domain(&self, tenant: Option<&str>, domain: &str) -> Arc<Generation> {
        self.group(generation_key(tenant, domain))
    }

    /// The group of what carries a tag, of a tenant or of no tenant.
    pub(crate) fn tag(&self, tenant: Option<&str>, tag: &str) -> Arc<Generation> {
        self.group(tag_key(tenant, tag))
    }

    /// The group that is invalidated whenever a tag is, of a tenant or of no tenant; see [`tag_guard_key`].
    pub(crate) fn tag_guard(&self, tenant: Option<&str>) -> Arc<Generation> {
        self.group(tag_guard_key(tenant))
    }

    fn group(&self, text: String) -> Arc<Generation> {
        let mut groups = self.groups.lock();
        if let Some(group) = groups.by_text.get(text.as_str()).and_then(Weak::upgrade) {
            return group;
        }
        groups.sweep();
        let group = Generation::new(text.clone());
        groups.by_text.insert(text.into(), Arc::downgrade(&group));
        group
    }

    /// The group with this number's key, if anything in this process belongs to it.
    pub(crate) fn find(&self, text: &str) -> Option<Arc<Generation>> {
        self.groups.lock().by_text.get(text).and_then(Weak::upgrade)
    }

    /// Forgets all numbers: messages may have been missed. Each group counts as invalidated: a number that was
    /// asked for before could be learned again otherwise, and would revive what the missed message was about.
    pub(crate) fn forget_all(&self) {
        self.all.bump();
        for group in self.groups.lock().by_text.values().filter_map(Weak::upgrade) {
            group.bump();
        }
    }

    /// Groups kept in memory, dead ones included.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.groups.lock().by_text.len()
    }
}

impl Groups {
    /// Drops the groups nobody uses, each time their number has doubled: constant cost per group.
    fn sweep(&mut self) {
        if self.by_text.len() >= self.sweep_at.max(Generations::MIN_SWEEP) {
            self.by_text.retain(|_, group| group.strong_count() > 0);
            self.sweep_at = self.by_text.len() * 2;
        }
    }
}

/// The far key of a domain's number.
pub(crate) fn generation_key(tenant: Option<&str>, domain: &str) -> String {
    let mut text = String::from("gen:");
    match tenant {
        None => text.push_str("d:"),
        Some(tenant) => {
            text.push_str("t:");
            push_segment(&mut text, tenant);
            text.push(':');
        }
    }
    text.push_str(domain);
    text
}

const TAG_ROOT: &str = "gen:g:";

/// The far key of a tag's number.
pub(crate) fn tag_key(tenant: Option<&str>, tag: &str) -> String {
    let mut text = String::from(TAG_ROOT);
    if let Some(tenant) = tenant {
        push_segment(&mut text, tenant);
    }
    text.push(':');
    push_segment(&mut text, tag);
    text
}

/// The far key of the number that changes whenever a tag is invalidated, *before* the tag's own number does.
///
/// It makes tags possible that only the loader knows: their numbers cannot be read before the load, so an
/// invalidation during it would go unnoticed. This number is read before the load and again together with the
/// tags' numbers after it. Unchanged, no tag was invalidated in between: whoever invalidates later changes a
/// tag's number after it was read here, and the entry is dead.
pub(crate) fn tag_guard_key(tenant: Option<&str>) -> String {
    let mut text = String::from("gen:w:");
    if let Some(tenant) = tenant {
        push_segment(&mut text, tenant);
    }
    text
}

/// The tenant part of an owner, as generations know it.
pub(crate) fn tenant_of(owner: &Owner) -> Option<&str> {
    owner.tenant().map(cache_core::TenantId::as_str)
}

/// Makes sure that a number exists, and says it; a new one has so long to live.
///
/// # Errors
/// Those of the far tier; [`CacheError::Timeout`] when somebody else begins to write it and never ends.
pub(crate) async fn create(
    (far, form): (&Arc<dyn CacheService>, &NumberForm),
    tasks: &Arc<Tasks>,
    text: &str,
    now_ms: u64,
    life: Duration,
) -> Result<Number, CacheError> {
    let created =
        tokio::time::timeout(CREATE_WITHIN, try_create((far, form), tasks, text, now_ms, life)).await;
    created.unwrap_or(Err(CacheError::Timeout { operation: "making a generation", after: CREATE_WITHIN }))
}

async fn try_create(
    (far, form): (&Arc<dyn CacheService>, &NumberForm),
    tasks: &Arc<Tasks>,
    text: &str,
    now_ms: u64,
    life: Duration,
) -> Result<Number, CacheError> {
    let key = Arc::from(text);
    loop {
        let token = LeaseToken::random();
        // Others need not wait for the lease to end by itself, however this ends.
        let lease = LeaseGuard::arm(far, tasks, &key, token);
        match lease.answered(far.get_or_lease(text, token, CREATE_LEASE).await)? {
            Asked::Hit(bytes) => match form.read(text, &bytes) {
                Some(number) => return Ok(number),
                // Not ours: written over, like any entry that is none.
                None => far.invalidate(text).await?,
            },
            Asked::Granted(lease) => {
                let number = Number::random(now_ms, life);
                let bytes = form.write(text, number)?;
                let filled = far.fill(text, lease.claim(), bytes, Ttl::For(life)).await?;
                lease.disarm();
                if filled {
                    return Ok(number);
                }
            }
            Asked::Busy => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// The number in stored bytes, given `life` in passing when less than `least` of its own is left. It stays the same
/// number: what takes the place of one that is gone is written by [`create`] alone, and is another.
///
/// # Errors
/// Those of the far tier.
pub(crate) async fn read_and_renew(
    (far, form): (&dyn CacheService, &NumberForm),
    text: &str,
    bytes: &Bytes,
    now_ms: u64,
    (least, life): (Duration, Duration),
) -> Result<Option<Number>, CacheError> {
    let Some(number) = form.read(text, bytes) else { return Ok(None) };
    if number.left(now_ms) >= least {
        return Ok(Some(number));
    }
    let renewed = Number { value: number.value, ..Number::random(now_ms, life) };
    let (claim, written) = (Claim::replacing(Stamp::of(bytes)), form.write(text, renewed)?);
    let stood = far.fill(text, &claim, written, Ttl::For(life)).await?;
    Ok(Some(if stood { renewed } else { number }))
}

/// Gives a group a new number. What carries another one is dead from now on.
///
/// # Errors
/// Those of the far tier.
pub(crate) async fn renumber(
    (far, form): (&dyn CacheService, &NumberForm),
    text: &str,
    now_ms: u64,
    life: Duration,
) -> Result<(), CacheError> {
    far.set_bytes(text, form.write(text, Number::random(now_ms, life))?, Ttl::For(life)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SE14: an answer that was asked for before an invalidation is not remembered after it.
    #[test]
    fn a_number_older_than_the_message_is_not_learned() {
        let generations = Generations::new(NumberForm::default());
        let group = generations.domain(Some("acme"), "d");
        let chain = Chain::of([group.clone()]);
        group.bump();
        let number = |value| Number { value, ends_ms: 1 };
        chain.learn(0, number(7));
        assert_eq!(group.known(), None);
        assert!(!chain.stands());
        let chain = Chain::of([group.clone()]);
        chain.learn(0, number(8));
        assert_eq!((group.known(), chain.stands()), (Some(8), true));
        generations.forget_all();
        assert_eq!((group.known(), chain.stands()), (None, false));
    }

    /// SG9: groups that nobody uses leave no memory behind.
    #[test]
    fn unused_groups_are_swept() {
        let generations = Generations::new(NumberForm::default());
        let kept = generations.domain(Some("kept"), "d");
        for tenant in 0..100_000 {
            generations.domain(Some(&tenant.to_string()), "d");
        }
        assert!(generations.len() <= 2 * Generations::MIN_SWEEP, "{}", generations.len());
        assert!(Arc::ptr_eq(&kept, &generations.domain(Some("kept"), "d")));
    }

    /// SG5: groups of different tenants and domains never share a key.
    #[test]
    fn group_keys_are_distinct() {
        let keys = [
            generation_key(None, "a"),
            generation_key(Some("a"), "b"),
            generation_key(Some("d"), "a"),
            generation_key(Some("a:b"), "c"),
            generation_key(Some("a"), "org:id"),
            tag_key(Some("a"), "b"),
            tag_key(None, "b"),
            tag_key(None, "a:b"),
            tag_key(Some("a:"), "b"),
            tag_guard_key(None),
            tag_guard_key(Some("b")),
            "gen:all".to_owned(),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
