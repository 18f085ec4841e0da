//! A lookup that memory cannot answer, as its caller sees it: who does the work, and how long is waited.
//!
//! ```text
//! join or start ── joined ─────────────────────────────────────► wait
//!   │ started                                                     ▲
//!   ▼                                                             │
//! read the far tier in passing ── answers ─► land                 │
//!   └── does not ─► a task of its own (`fetch`) ──────────────────┘
//! wait ── landed ─► the answer
//!   ├──── lapsed (its caller left, its runtime ended) ─► join or start again
//!   ├──── its caller is slow to read ─► join or start another one
//!   └──── the limit is over ─► the stale value, or `TimedOut`; the load goes on in the background, if it may
//! ```
//! A far tier's answer is worth no task: the first caller reads it in its own future. But a future may be held without
//! being polled, so nobody waits for another's read for long.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cache_core::{CacheError, LoadError};
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::fetch::{FarRead, Fetch, Read, Work};
use crate::inner::Inner;
use crate::key::CacheKey;
use crate::load_stack::{Cycle, Edge, LoadStack};
use crate::near::Ticket;
use crate::shared_load::{Event, Stage, Waiter};
use crate::single_flight::{Flight, JoinRule, Landing, LookupResult, Part, Passenger};
use crate::tasks;

/// How long a lookup waits for another one's read of the far tier before it reads itself: much longer than a read takes
/// whose caller is polled.
const READ_WITHIN: Duration = Duration::from_millis(50);

/// How often a load may lapse before the lookup gives up.
const MAX_LAPSES: usize = 3;

/// A lookup's answer, and whether it shared another one's load.
pub(crate) struct Answered<V> {
    pub(crate) result: LookupResult<V>,
    pub(crate) joined: bool,
}

/// How waiting for a load ended.
enum Waited<V> {
    Answered(LookupResult<V>),
    /// The load lapsed.
    Lapsed,
    /// Its caller takes too long to read.
    Stalled,
}

type FetchFlight<K, V> = Flight<Fetch<K, V>, LookupResult<V>>;
type FetchPassenger<K, V> = Passenger<Fetch<K, V>, LookupResult<V>>;
type FetchLanding<K, V> = Landing<Fetch<K, V>, LookupResult<V>>;

impl<K: CacheKey, V: Send + Sync + 'static> Inner<K, V> {
    /// Answers a lookup; `read` is what the far tier was already found to hold.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        mut fetch: Fetch<K, V>,
        mut read: Option<FarRead<V>>,
    ) -> Answered<V> {
        let began = self.policy.limits_lookups().then(Instant::now);
        let (mut joined, mut in_task, mut lapses) = (false, false, 0);
        let result = loop {
            if fetch.above.contains(&self.domain, &fetch.text) {
                break Err(self.reentrant());
            }
            let (waited, own, passenger) = match self.join_or_start(fetch, in_task) {
                Part::Started(started, landing) => {
                    // Nothing that is new waits for anything: there is no circle to close.
                    let _waiting = waits(&started.flight.question.above, &started);
                    (self.lead(&started, landing, read.take(), began).await, None, started)
                }
                Part::Joined(other, question) => {
                    joined = true;
                    let Ok(_waiting) = waits(&question.above, &other) else { break Err(self.reentrant()) };
                    let patience = Some(Instant::now() + READ_WITHIN);
                    (self.wait(&other, began, patience).boxed().await, Some(question), other)
                }
            };
            match waited {
                Waited::Answered(result) => break result,
                Waited::Stalled => in_task = true,
                Waited::Lapsed if lapses == MAX_LAPSES => {
                    break Err(LoadError::ShutDown { domain: Arc::clone(&self.domain) }.into());
                }
                Waited::Lapsed => lapses += 1,
            }
            fetch = own.unwrap_or_else(|| passenger.flight.question.again());
        };
        Answered { result, joined }
    }

    fn join_or_start(
        self: &Arc<Self>,
        fetch: Fetch<K, V>,
        in_task: bool,
    ) -> Part<Fetch<K, V>, LookupResult<V>> {
        let bypass = fetch.anew;
        let stands = |ticket: &Ticket| !bypass && self.near.stands(ticket);
        let (now, join_within) = (self.shared.clock.now(), self.policy.join_within);
        self.flights.join_or_start(fetch, &JoinRule { now, join_within, in_task, stands: &stands })
    }

    /// Reads in passing; what that does not answer goes on in a task.
    async fn lead(
        self: &Arc<Self>,
        started: &FetchPassenger<K, V>,
        landing: FetchLanding<K, V>,
        read: Option<FarRead<V>>,
        began: Option<Instant>,
    ) -> Waited<V> {
        let flight = &started.flight;
        // In one place, wherever it is awaited: a far hit is no larger than it must be.
        let reading = pin!(AssertUnwindSafe(flight.question.read_or_work(read)).catch_unwind());
        let limit = began.zip(self.policy.hard_timeout).map(|(began, limit)| began + limit);
        let done = match limit {
            None => reading.await,
            Some(limit) => {
                if let Err(error) = tasks::runtime(&self.domain) {
                    return Waited::Answered(Err(error.into()));
                }
                match tokio::time::timeout_at(limit, reading).await {
                    Ok(done) => done,
                    Err(_) => return Waited::Answered(flight.question.too_slow()),
                }
            }
        };
        let result = match done {
            Ok(Read::Answered(result)) => result,
            Ok(Read::Unanswered(work)) => match self.hand_over(flight, landing, work) {
                Ok(()) => return self.wait(started, began, None).boxed().await,
                Err(error) => return Waited::Answered(Err(error)),
            },
            Err(_) => Err(self.panicked()),
        };
        landing.land(result.clone());
        Waited::Answered(result)
    }

    /// Goes on with a load in a task of its own.
    fn hand_over(
        self: &Arc<Self>,
        flight: &Arc<FetchFlight<K, V>>,
        landing: FetchLanding<K, V>,
        work: Work<V>,
    ) -> Result<(), CacheError> {
        if let Work::Replace(stale) | Work::Locally(Some(stale)) = &work {
            // Set once: a load is handed over once.
            let _ = flight.question.kept.set(stale.clone());
        }
        let (own, load) = (Arc::clone(flight), &flight.load);
        let work = async move { own.question.work(&own, work).await };
        let work = flight.question.as_load(load.node(), work);
        load.runs_in(self.shared.tasks.load(&self.domain, work, |result| landing.land(result))?);
        load.advance(Stage::InTask);
        Ok(())
    }

    /// Waits for a load within the lookup's limits, which began at `began`; for one that is done in passing, until
    /// `read_by`.
    async fn wait(
        &self,
        passenger: &FetchPassenger<K, V>,
        began: Option<Instant>,
        read_by: Option<Instant>,
    ) -> Waited<V> {
        let flight = &passenger.flight;
        let in_runtime = tasks::runtime(&self.domain);
        let mut seen = None;
        loop {
            let patience = match flight.question.kept.get() {
                Some(_) => self.policy.stale_patience(),
                None => self.policy.hard_timeout,
            };
            let limit = began.zip(patience).map(|(began, patience)| began + patience);
            let stalls = read_by.filter(|_| in_runtime.is_ok() && seen == Some(Stage::InPassing));
            let event = match limit.into_iter().chain(stalls).min() {
                None => flight.load.event_after(seen).await,
                Some(due) => {
                    if let Err(error) = &in_runtime {
                        return Waited::Answered(Err(error.clone().into()));
                    }
                    match tokio::time::timeout_at(due, flight.load.event_after(seen)).await {
                        Ok(event) => event,
                        Err(_) if limit.is_some_and(|limit| limit <= due) => {
                            return Waited::Answered(self.give_up(passenger));
                        }
                        Err(_) => return Waited::Stalled,
                    }
                }
            };
            match event {
                Event::Done(result) => return Waited::Answered(result),
                Event::Lapsed => return Waited::Lapsed,
                Event::Stage(stage) => seen = Some(stage),
            }
        }
    }

    /// Ends a lookup whose limit is over. The load goes on in the background if it may; else it ends with its last caller.
    fn give_up(&self, passenger: &FetchPassenger<K, V>) -> LookupResult<V> {
        let fetch = &passenger.flight.question;
        if !fetch.adopted.swap(true, Ordering::Relaxed) && !self.background.adopt(passenger) {
            fetch.adopted.store(false, Ordering::Relaxed);
        }
        match fetch.kept.get() {
            Some(stale) => Ok(fetch.hold_over(stale.clone())),
            None => fetch.too_slow(),
        }
    }

    /// Loads a value now, whatever is cached, in a task of its own that ends with its caller.
    pub(crate) async fn load_anew(self: &Arc<Self>, fetch: Fetch<K, V>) -> LookupResult<V> {
        if fetch.above.contains(&self.domain, &fetch.text) {
            return Err(self.reentrant());
        }
        let (waiter, landing) = Waiter::first();
        let node = waiter.load().node();
        let _waiting = fetch.above.wait_for(|| node).map_err(|Cycle| self.reentrant())?;
        let fetch = Arc::new(fetch);
        let own = Arc::clone(&fetch);
        let work = fetch.as_load(node, async move { own.refresh().await });
        waiter.load().runs_in(self.shared.tasks.load(&self.domain, work, |result| landing.land(result))?);
        let lapsed = || Err(LoadError::ShutDown { domain: Arc::clone(&self.domain) }.into());
        waiter.load().outcome().await.unwrap_or_else(lapsed)
    }

    fn reentrant(&self) -> CacheError {
        LoadError::Reentrant { domain: Arc::clone(&self.domain) }.into()
    }
}

/// Says that a lookup waits for a load.
fn waits<K: CacheKey, V: Send + Sync + 'static>(
    above: &LoadStack,
    passenger: &FetchPassenger<K, V>,
) -> Result<Option<Edge>, Cycle> {
    above.wait_for(|| passenger.flight.load.node())
}
