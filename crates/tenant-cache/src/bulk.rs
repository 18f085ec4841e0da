//! One load for several keys of one call.
//!
//! Each key still has its own flight, with its own lease and fill; only the asking of the origin is common. The
//! flights gather: when each of them has come to load its key or has ended without (another instance's value came
//! first), the bulk loader is called once. Who comes late, because another instance held the lease, does not keep
//! the others waiting: after a moment those who are there begin.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cache_core::error::SharedSource;
use cache_core::{CacheError, LoadError, TenantId, UserId};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::ambient;
use crate::inner::Inner;
use crate::key::{CacheKey, NearKey};
use crate::load::LoadFn;
use crate::load_stack::{Frame, LoadStack};
use crate::loaded::{LoadRequest, Loaded};
use crate::shared_load::{Landing, SharedLoad, Waiter};

/// How long the first waits for the others.
const LINGER: Duration = Duration::from_millis(5);

/// Asks the origin for several keys; what it does not mention does not exist.
pub(crate) type BulkFn<K, V> =
    dyn Fn(Vec<K>) -> BoxFuture<'static, Result<HashMap<K, V>, SharedSource>> + Send + Sync;

type Values<K, V> = Result<Arc<HashMap<K, Arc<V>>>, SharedSource>;

/// What a bulk load ends with; the outer error is that of its task.
type Batch<K, V> = Result<Values<K, V>, CacheError>;

/// The keys of one call that are to be loaded together.
pub(crate) struct Gathering<K, V> {
    cache: Arc<Inner<K, V>>,
    load: Arc<BulkFn<K, V>>,
    /// Whose entries they are, all of them.
    tenant: Option<TenantId>,
    user: Option<UserId>,
    /// The loads that the call is part of.
    above: LoadStack,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    /// Seats that have neither come to load nor been given up.
    expected: usize,
    /// The load that has not begun yet.
    open: Option<Open<K, V>>,
}

/// A bulk load that keys may still join.
struct Open<K, V> {
    load: Arc<SharedLoad<Batch<K, V>>>,
    landing: Landing<Batch<K, V>>,
    keys: Vec<K>,
    frames: Vec<Arc<Frame>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Gathering<K, V> {
    /// A gathering of entries of the same owner as `entry`.
    pub(crate) fn new(cache: Arc<Inner<K, V>>, load: Arc<BulkFn<K, V>>, entry: &NearKey<K>) -> Arc<Self> {
        let state = Mutex::new(State { expected: 0, open: None });
        let (tenant, user) = (entry.tenant.clone(), entry.user.clone());
        Arc::new(Self { cache, load, tenant, user, above: LoadStack::current(), state })
    }

    /// The loader of one key.
    pub(crate) fn seat(self: &Arc<Self>) -> Arc<LoadFn<K, V>> {
        self.state.lock().expected += 1;
        let seat = Arc::new(Seat { gathering: Arc::clone(self), taken: AtomicBool::new(false) });
        Arc::new(move |request: LoadRequest<K, V>| {
            let seat = Arc::clone(&seat);
            async move { seat.load(request.key).await }.boxed()
        })
    }

    /// Enters a key into the next bulk load, which begins when it was the last one expected.
    fn enter(&self, key: K, first: bool) -> Waiter<Batch<K, V>> {
        let mut state = self.state.lock();
        state.expected -= usize::from(first);
        let joined = state.open.as_ref().and_then(|open| Waiter::join(&open.load));
        let waiter = joined.unwrap_or_else(|| {
            let (waiter, landing) = Waiter::first();
            let load = Arc::clone(waiter.load());
            state.open = Some(Open { load, landing, keys: Vec::new(), frames: Vec::new() });
            waiter
        });
        if let Some(open) = &mut state.open {
            open.keys.push(key);
            // What the bulk loader asks for, it asks for each of its keys.
            open.frames.extend_from_slice(LoadStack::current().frames());
        }
        self.begin_if_complete(&mut state);
        waiter
    }

    fn give_up_seat(&self) {
        let mut state = self.state.lock();
        state.expected -= 1;
        self.begin_if_complete(&mut state);
    }

    fn begin_if_complete(&self, state: &mut State<K, V>) {
        if state.expected == 0
            && let Some(open) = state.open.take()
        {
            self.begin(open);
        }
    }

    /// Begins a bulk load for who came so far.
    fn begin_without_the_rest(&self, waiter: &Waiter<Batch<K, V>>) {
        let mut state = self.state.lock();
        if let Some(open) = state.open.take_if(|open| Arc::ptr_eq(&open.load, waiter.load())) {
            self.begin(open);
        }
    }

    fn begin(&self, open: Open<K, V>) {
        let Open { load, landing, keys, frames } = open;
        let bulk = Arc::clone(&self.load);
        let work = async move {
            let shared = |(key, value)| (key, Arc::new(value));
            Ok(bulk(keys).await.map(|values| Arc::new(values.into_iter().map(shared).collect())))
        };
        // Not in the scope of whoever begins it: a seat that is given up is dropped anywhere, by its caller too.
        let work = ambient::in_scope(self.tenant.as_ref(), self.user.as_ref(), work);
        let work = self.above.with(frames).scope(work);
        // Without a runtime the landing is dropped, and those who wait are told that it lapsed.
        if let Ok(task) = self.cache.shared.tasks.load(&self.cache.domain, work, |batch| landing.land(batch))
        {
            load.runs_in(task);
        }
    }
}

/// One key's place in a gathering; given up when its flight ends without loading.
struct Seat<K: CacheKey, V: Send + Sync + 'static> {
    gathering: Arc<Gathering<K, V>>,
    taken: AtomicBool,
}

impl<K: CacheKey, V: Send + Sync + 'static> Seat<K, V> {
    async fn load(&self, key: K) -> Result<Loaded<Arc<V>>, SharedSource> {
        // A second try of the same key was counted already.
        let first = !self.taken.swap(true, Ordering::AcqRel);
        let waiter = self.gathering.enter(key.clone(), first);
        let batch = match tokio::time::timeout(LINGER, waiter.load().outcome()).await {
            Ok(batch) => batch,
            Err(_) => {
                self.gathering.begin_without_the_rest(&waiter);
                waiter.load().outcome().await
            }
        };
        match batch {
            Some(Ok(values)) => Ok(values?.get(&key).cloned().into()),
            // The panic of the common load is that of each.
            Some(Err(CacheError::Load(LoadError::Panicked { .. }))) => {
                std::panic::resume_unwind(Box::new("the bulk loader panicked"))
            }
            Some(Err(error)) => Err(Arc::new(error)),
            None => Err(Arc::new(CacheError::from(LoadError::ShutDown {
                domain: Arc::clone(&self.gathering.cache.domain),
            }))),
        }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Drop for Seat<K, V> {
    fn drop(&mut self) {
        if !*self.taken.get_mut() {
            self.gathering.give_up_seat();
        }
    }
}
