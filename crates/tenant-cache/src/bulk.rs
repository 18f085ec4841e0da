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
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::key::CacheKey;
use crate::load::{LoadFn, Loading};
use crate::loaded::{LoadRequest, Loaded};

/// How long the first waits for the others.
const LINGER: Duration = Duration::from_millis(5);

/// Asks the origin for several keys; what it does not mention does not exist.
pub(crate) type BulkFn<K, V> =
    dyn Fn(Vec<K>) -> BoxFuture<'static, Result<HashMap<K, V>, SharedSource>> + Send + Sync;

type Batch<K, V> = Shared<BoxFuture<'static, Result<Arc<HashMap<K, Arc<V>>>, SharedSource>>>;

/// The keys of one call that are to be loaded together.
pub(crate) struct Gathering<K, V> {
    domain: Arc<str>,
    load: Arc<BulkFn<K, V>>,
    state: Mutex<State<K, V>>,
    begun: Notify,
}

struct State<K, V> {
    /// Seats that have neither come to load nor been given up.
    expected: usize,
    waiting: Vec<(K, Arc<str>)>,
    /// The rounds that were begun, by number; most calls need one.
    rounds: Vec<Batch<K, V>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Gathering<K, V> {
    pub(crate) fn new(domain: Arc<str>, load: Arc<BulkFn<K, V>>) -> Arc<Self> {
        let state = State { expected: 0, waiting: Vec::new(), rounds: Vec::new() };
        Arc::new(Self { domain, load, state: Mutex::new(state), begun: Notify::new() })
    }

    /// The loader of one key; `text` names it.
    pub(crate) fn seat(self: &Arc<Self>, text: Arc<str>) -> Box<LoadFn<K, V>> {
        self.state.lock().expected += 1;
        let seat = Arc::new(Seat { gathering: Arc::clone(self), taken: AtomicBool::new(false) });
        Box::new(move |request: LoadRequest<K, V>| {
            let (seat, text) = (Arc::clone(&seat), Arc::clone(&text));
            async move { seat.load(request.key, text).await }.boxed()
        })
    }

    /// Enters a key into the next round, and says which one that is.
    fn enter(&self, key: K, text: Arc<str>, first: bool) -> usize {
        let mut state = self.state.lock();
        state.expected -= usize::from(first);
        state.waiting.push((key, text));
        let round = state.rounds.len();
        self.begin_if_complete(&mut state);
        round
    }

    fn give_up_seat(&self) {
        let mut state = self.state.lock();
        state.expected -= 1;
        self.begin_if_complete(&mut state);
    }

    fn begin_if_complete(&self, state: &mut State<K, V>) {
        if state.expected == 0 && !state.waiting.is_empty() {
            self.begin(state);
        }
    }

    fn begin(&self, state: &mut State<K, V>) {
        let (keys, texts): (Vec<K>, Vec<_>) = std::mem::take(&mut state.waiting).into_iter().unzip();
        let load = (self.load)(keys);
        let load = async move {
            let values = load.await?;
            Ok(Arc::new(values.into_iter().map(|(key, value)| (key, Arc::new(value))).collect()))
        };
        let here = Loading::current().with_all(&self.domain, texts);
        state.rounds.push(here.scope(load).boxed().shared());
        self.begun.notify_waiters();
    }

    /// The round, once it has begun; begins it when the others keep it waiting for too long.
    async fn round(&self, number: usize) -> Batch<K, V> {
        // In time or not: the round is begun now at the latest.
        let _ = tokio::time::timeout(LINGER, self.has_begun(number)).await;
        let mut state = self.state.lock();
        if state.rounds.len() == number {
            self.begin(&mut state);
        }
        state.rounds[number].clone()
    }

    async fn has_begun(&self, number: usize) {
        loop {
            let notified = self.begun.notified();
            if self.state.lock().rounds.len() > number {
                return;
            }
            notified.await;
        }
    }
}

/// One key's place in a gathering; given up when its flight ends without loading.
struct Seat<K: CacheKey, V: Send + Sync + 'static> {
    gathering: Arc<Gathering<K, V>>,
    taken: AtomicBool,
}

impl<K: CacheKey, V: Send + Sync + 'static> Seat<K, V> {
    async fn load(&self, key: K, text: Arc<str>) -> Result<Loaded<Arc<V>>, SharedSource> {
        // A second try of the same key was counted already.
        let first = !self.taken.swap(true, Ordering::AcqRel);
        let round = self.gathering.enter(key.clone(), text, first);
        let batch = self.gathering.round(round).await;
        let values = batch.await?;
        Ok(values.get(&key).cloned().into())
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Drop for Seat<K, V> {
    fn drop(&mut self) {
        if !*self.taken.get_mut() {
            self.gathering.give_up_seat();
        }
    }
}
