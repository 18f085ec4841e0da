//! One value, in memory, computed once per life.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cache_core::error::SharedSource;
use cache_core::{Clock, LoadError, Tick};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::ambient;
use crate::load_stack::{Cycle, Frame, LoadStack};
use crate::shared_load::{SharedLoad, Waiter};
use crate::sync::Mutex;
use crate::tasks::Tasks;

type Outcome<V> = Result<Arc<V>, LoadError>;

/// How often a computation may lapse, because its runtime ended, before a caller gives up.
const MAX_LAPSES: usize = 3;

/// A value that is computed when it is asked for and kept for `ttl` from then: a table of rates, a set of public keys.
///
/// Made by [`memo`]. Clones share everything. It belongs to no tenant: the computation runs outside of any request
/// context, whoever asks.
pub struct Memo<V>(Arc<Inner<V>>);

struct Inner<V> {
    name: Arc<str>,
    ttl: Duration,
    clock: Clock,
    compute: Box<dyn Fn() -> BoxFuture<'static, Result<V, SharedSource>> + Send + Sync>,
    tasks: Tasks,
    state: Mutex<State<V>>,
}

/// The epoch counts invalidations: what began in an older one is neither kept nor joined.
struct State<V> {
    epoch: u64,
    kept: Option<(Arc<V>, Tick)>,
    /// It ends with the last of those who wait for it.
    running: Option<Arc<SharedLoad<Outcome<V>>>>,
}

/// Remembers what `compute` makes for `ttl`. `name` stands in errors.
///
/// ```
/// use std::time::Duration;
/// use tenant_cache::memo;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let rates = memo("rates", Duration::from_secs(60), || async { Ok::<_, std::io::Error>(vec![1.07, 0.93]) });
/// assert_eq!(*rates.get().await?, [1.07, 0.93]);
/// assert!(std::sync::Arc::ptr_eq(&rates.get().await?, &rates.get().await?), "computed once");
/// rates.invalidate();
/// # Ok::<(), cache_core::LoadError>(()) }).unwrap();
/// ```
pub fn memo<V, F, Fut, E>(name: &str, ttl: Duration, compute: F) -> Memo<V>
where
    V: Send + Sync + 'static,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Memo::with_clock(name, ttl, Clock::system(), compute)
}

impl<V: Send + Sync + 'static> Memo<V> {
    /// [`memo`] by another clock; for tests.
    pub fn with_clock<F, Fut, E>(name: &str, ttl: Duration, clock: Clock, compute: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let compute = Box::new(move || {
            let computed = compute();
            async move { computed.await.map_err(|error| SharedSource::from(error.into())) }.boxed()
        });
        let state = Mutex::new(State { epoch: 0, kept: None, running: None });
        let tasks = Tasks::default();
        Self(Arc::new(Inner { name: name.into(), ttl, clock, compute, tasks, state }))
    }

    /// The value: the one that is kept, or a new one. Who asks while it is computed waits for the same computation, which
    /// runs in a task of its own.
    ///
    /// # Errors
    /// [`LoadError::Failed`] and [`LoadError::Panicked`], for all who waited; they are not kept, the next call computes
    /// again. [`LoadError::Reentrant`] when the computation asks for its own result; [`LoadError::NoRuntime`] when there
    /// is something to compute and no Tokio runtime to do it in.
    ///
    /// # Cancel safety
    /// Safe. A computation belongs to all who wait for it, and is cancelled when the last of them leaves.
    pub async fn get(&self) -> Result<Arc<V>, LoadError> {
        for _ in 0..MAX_LAPSES {
            let waiter = {
                let mut state = self.0.state.lock();
                match &state.kept {
                    Some((value, until)) if self.0.clock.coarse() < *until => return Ok(Arc::clone(value)),
                    _ => {}
                }
                match state.running.as_ref().and_then(Waiter::join) {
                    Some(running) => running,
                    None => {
                        let begun = self.begin(state.epoch)?;
                        state.running = Some(Arc::clone(begun.load()));
                        begun
                    }
                }
            };
            let reentrant = |Cycle| LoadError::Reentrant { domain: Arc::clone(&self.0.name) };
            let _waiting = LoadStack::current().wait_for(|| waiter.load().node()).map_err(reentrant)?;
            if let Some(outcome) = waiter.load().outcome().await {
                return outcome;
            }
        }
        Err(LoadError::ShutDown { domain: Arc::clone(&self.0.name) })
    }

    /// Forgets the value; what is being computed now is neither kept nor given to anybody who asks from now on.
    pub fn invalidate(&self) {
        let gone = {
            let mut state = self.0.state.lock();
            state.epoch += 1;
            state.running = None;
            state.kept.take()
        };
        // Outside of the lock: a value's own `drop` may take long.
        drop(gone);
    }

    fn begin(&self, epoch: u64) -> Result<Waiter<Outcome<V>>, LoadError> {
        let (waiter, landing) = Waiter::first();
        let frame = Frame::new(waiter.load().node(), &self.0.name, &Arc::from(""));
        let (computing, ending) = (Arc::clone(&self.0), Arc::clone(&self.0));
        let computed = async move {
            let failed = |source| LoadError::Failed { domain: Arc::clone(&computing.name), source };
            let computed = (computing.compute)().await;
            LoadStack::current().end(computed.map(Arc::new).map_err(failed))
        };
        // Not as part of the request of whoever happens to ask.
        let work = LoadStack::current().with(vec![frame]).scope(ambient::outside(computed));
        let land = move |outcome: Outcome<V>| {
            ending.end(epoch, &outcome);
            landing.land(outcome);
        };
        waiter.load().runs_in(self.0.tasks.load(&self.0.name, work, land)?);
        Ok(waiter)
    }
}

impl<V> Inner<V> {
    fn end(&self, epoch: u64, outcome: &Outcome<V>) {
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return;
        }
        state.running = None;
        let kept = outcome.as_ref().ok().map(|value| (Arc::clone(value), self.clock.now() + self.ttl));
        let gone = std::mem::replace(&mut state.kept, kept);
        drop(state);
        drop(gone);
    }
}

impl<V> Clone for Memo<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V> fmt::Debug for Memo<V> {
    /// Names the memo and nothing that is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo").field("name", &self.0.name).field("ttl", &self.0.ttl).finish_non_exhaustive()
    }
}
