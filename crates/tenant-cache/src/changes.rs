//! Hearing of changes: a stream of all, and handlers on single keys.
//!
//! Both tell what was *invalidated* here, by this instance or by a message of another, after memory forgot it. They
//! tell that something may have changed, not what it is now: ask the cache.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use cache_core::{TenantId, UserId};
use futures_util::Stream;
use parking_lot::RwLock;

use crate::backlog::{Backlog, Next};
use crate::key::{CacheKey, NearKey, NearQuery};

/// Changes that a slow listener may be behind by; beyond, it is told that it missed some.
const BACKLOG: usize = 1_024;

/// What was invalidated.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change<K> {
    /// One entry.
    Key {
        /// Whose; `None` for a global one.
        tenant: Option<TenantId>,
        /// The user's, if it was one's.
        user: Option<UserId>,
        /// Which.
        key: K,
    },
    /// Any number of entries: of a tenant, or of everybody (`None`). Also what a listener is told that was too
    /// slow, or that could have missed messages.
    Many {
        /// Whose.
        tenant: Option<TenantId>,
    },
}

/// Ends a handler when dropped.
#[must_use = "dropping the guard ends the handler"]
pub struct HandlerGuard(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for HandlerGuard {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

impl fmt::Debug for HandlerGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandlerGuard")
    }
}

type Handler = Arc<dyn Fn() + Send + Sync>;

/// Who listens to one cache. Costs nothing while nobody does.
pub(crate) struct Listeners<K> {
    stream: OnceLock<Backlog<Change<K>>>,
    handlers: Arc<RwLock<Handlers<K>>>,
    next: AtomicU64,
}

type Handlers<K> = HashMap<NearKey<K>, Vec<(u64, Handler)>>;

impl<K: CacheKey> Listeners<K> {
    pub(crate) fn new() -> Self {
        Self { stream: OnceLock::new(), handlers: Arc::default(), next: AtomicU64::new(0) }
    }

    pub(crate) fn changes(&self) -> impl Stream<Item = Change<K>> + Send + use<K> {
        let reader = self.stream.get_or_init(|| Backlog::new(BACKLOG)).reader();
        futures_util::stream::unfold(reader, |mut reader| async move {
            let change = match reader.next().await? {
                Next::Item(change) => change,
                Next::Missed => Change::Many { tenant: None },
            };
            Some((change, reader))
        })
    }

    pub(crate) fn on_change(&self, key: NearKey<K>, handler: Handler) -> HandlerGuard {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut handlers = self.handlers.write();
            // Not by `entry`, which drops the key it was given under the lock when there is one.
            match handlers.get_mut(&key) {
                Some(of_key) => of_key.push((id, handler)),
                None => drop(handlers.insert(key.clone(), vec![(id, handler)])),
            }
        }
        let handlers = Arc::downgrade(&self.handlers);
        HandlerGuard(Some(Box::new(move || forget(&handlers, &key, id))))
    }

    /// One entry was invalidated.
    pub(crate) fn tell_key(&self, query: &NearQuery<'_, K>) {
        if let Some(stream) = self.stream.get() {
            let (tenant, user) = (query.tenant.cloned(), query.user.cloned());
            stream.push(Change::Key { tenant, user, key: query.key.clone() });
        }
        if self.handlers.read().is_empty() {
            return;
        }
        self.call(|key| key.query() == *query);
    }

    /// Any number of entries were, of a tenant or of everybody.
    pub(crate) fn tell_many(&self, tenant: Option<&TenantId>) {
        if let Some(stream) = self.stream.get() {
            stream.push(Change::Many { tenant: tenant.cloned() });
        }
        self.call(|key| tenant.is_none() || key.tenant.as_ref() == tenant);
    }

    /// Handlers are called without the lock: they may end themselves, or begin others.
    fn call(&self, wanted: impl Fn(&NearKey<K>) -> bool) {
        let handlers: Vec<Handler> = {
            let handlers = self.handlers.read();
            let wanted = handlers.iter().filter(|(key, _)| wanted(key));
            wanted.flat_map(|(_, handlers)| handlers.iter().map(|(_, handler)| Arc::clone(handler))).collect()
        };
        for_each_to_the_end(handlers, |handler| handler());
    }
}

/// Acts on each, also after one that panics; the first panic goes on when all are done.
pub(crate) fn for_each_to_the_end<T>(all: impl IntoIterator<Item = T>, act: impl Fn(T)) {
    let mut first = None;
    for one in all {
        let panicked = catch_unwind(AssertUnwindSafe(|| act(one))).err();
        first = first.or(panicked);
    }
    if let Some(panic) = first {
        resume_unwind(panic);
    }
}

fn forget<K: CacheKey>(handlers: &Weak<RwLock<Handlers<K>>>, key: &NearKey<K>, id: u64) {
    let Some(handlers) = handlers.upgrade() else { return };
    // Dropped after the lock is given back: what a handler holds, and a key, may use the cache.
    let (ended, entry) = {
        let mut handlers = handlers.write();
        let Some(of_key) = handlers.get_mut(key) else { return };
        let at = of_key.iter().position(|(other, _)| *other == id);
        let ended = at.map(|at| of_key.remove(at));
        let entry = if of_key.is_empty() { handlers.remove_entry(key) } else { None };
        (ended, entry)
    };
    drop((ended, entry));
}
