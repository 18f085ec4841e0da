//! One computation and those who wait for it.
//!
//! A waiter holds a plain notification: it never polls another's work, so a waiter that is not polled, or is dropped,
//! holds nobody up, and two loads that wait for each other's result cannot lock each other out of their wakers. Whoever
//! does the work holds the duty to land it; when that is dropped without a result (the work was cancelled, or its runtime
//! ended) the waiters are told that it *lapsed* and go on by themselves.
//!
//! Why not `futures::Shared`: its waiters poll the work of each other, and its notifier wakes them under a lock. Two
//! computations that wait for each other then block the threads of the runtime, and a panic loses the waiters that
//! registered while the computation was polled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::sync::Mutex;

/// A computation in progress, or its result.
#[derive(Debug)]
pub(crate) struct SharedLoad<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    /// Its node in the waits-for graph; zero until somebody who could be part of a cycle waits for it.
    node: AtomicU64,
}

#[derive(Debug)]
struct State<T> {
    phase: Phase<T>,
    waiters: usize,
    task: Option<AbortHandle>,
}

#[derive(Debug)]
enum Phase<T> {
    Running(Stage),
    Done(T),
    /// It ended without a result.
    Lapsed,
}

/// How far a computation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its first caller does it in passing, and may be slow to.
    InPassing,
    /// It runs in a task of its own.
    InTask,
}

/// What a waiter is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<T> {
    Done(T),
    Lapsed,
    /// It has reached another stage.
    Stage(Stage),
}

impl<T> SharedLoad<T> {
    /// A computation with one waiter.
    pub(crate) fn new(stage: Stage) -> Self {
        let state = State { phase: Phase::Running(stage), waiters: 1, task: None };
        Self { state: Mutex::new(state), changed: Notify::new(), node: AtomicU64::new(0) }
    }

    /// Counts a waiter in; `false` when it has ended, all have left it, or it is not `in_task` and has to be.
    pub(crate) fn enter(&self, in_task: bool) -> bool {
        let mut state = self.state.lock();
        let joinable = match state.phase {
            Phase::Running(stage) => !in_task || stage == Stage::InTask,
            Phase::Done(_) | Phase::Lapsed => false,
        };
        state.waiters += usize::from(joinable);
        joinable
    }

    /// Counts a waiter out; `true` when it was the last one of a computation that still runs, which is ended then.
    pub(crate) fn leave(&self) -> bool {
        let (abandoned, task) = {
            let mut state = self.state.lock();
            state.waiters -= 1;
            let abandoned = state.waiters == 0 && matches!(state.phase, Phase::Running(_));
            if abandoned {
                state.phase = Phase::Lapsed;
            }
            (abandoned, state.task.take_if(|_| abandoned))
        };
        if let Some(task) = task {
            task.abort();
        }
        abandoned
    }

    /// From now on it runs in this task, which ends with its last waiter.
    pub(crate) fn runs_in(&self, task: AbortHandle) {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Running(_) => state.task = Some(task),
            Phase::Done(_) => {}
            Phase::Lapsed => {
                drop(state);
                task.abort();
            }
        }
    }

    /// Tells the waiters how far it is.
    pub(crate) fn advance(&self, stage: Stage) {
        if let Phase::Running(at) = &mut self.state.lock().phase {
            *at = stage;
        }
        self.changed.notify_waiters();
    }

    /// Hands the result to everybody who waits.
    pub(crate) fn land(&self, outcome: T) {
        self.end(Phase::Done(outcome));
    }

    /// Ends it without a result.
    pub(crate) fn lapse(&self) {
        self.end(Phase::Lapsed);
    }

    fn end(&self, phase: Phase<T>) {
        let replaced = {
            let mut state = self.state.lock();
            match state.phase {
                Phase::Running(_) => (Some(std::mem::replace(&mut state.phase, phase)), state.task.take()),
                _ => (Some(phase), None),
            }
        };
        // Outside of the lock: a value's own `drop` may do anything.
        drop(replaced);
        self.changed.notify_waiters();
    }
}

impl<T: Clone> SharedLoad<T> {
    /// The next thing that happens after `seen`: its end, or another stage.
    pub(crate) async fn event_after(&self, seen: Option<Stage>) -> Event<T> {
        loop {
            // Made before the look: what happens in between is not missed.
            let changed = self.changed.notified();
            match &self.state.lock().phase {
                Phase::Running(stage) if seen == Some(*stage) => {}
                Phase::Running(stage) => return Event::Stage(*stage),
                Phase::Done(outcome) => return Event::Done(outcome.clone()),
                Phase::Lapsed => return Event::Lapsed,
            }
            changed.await;
        }
    }

    /// Its result; `None` when it ended without one.
    pub(crate) async fn outcome(&self) -> Option<T> {
        let mut seen = None;
        loop {
            match self.event_after(seen).await {
                Event::Done(outcome) => return Some(outcome),
                Event::Lapsed => return None,
                Event::Stage(stage) => seen = Some(stage),
            }
        }
    }
}

impl<T> SharedLoad<T> {
    /// Its node in the waits-for graph.
    pub(crate) fn node(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        match self.node.load(Ordering::Relaxed) {
            0 => {
                let new = NEXT.fetch_add(1, Ordering::Relaxed);
                let set = self.node.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
                set.err().unwrap_or(new)
            }
            node => node,
        }
    }
}

/// The duty to end a computation that is in no table; dropped without a result, it lapses.
#[derive(Debug)]
pub(crate) struct Landing<T>(Option<Arc<SharedLoad<T>>>);

impl<T> Landing<T> {
    /// Hands the result to everybody who waits.
    pub(crate) fn land(mut self, outcome: T) {
        if let Some(load) = self.0.take() {
            load.land(outcome);
        }
    }
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        if let Some(load) = self.0.take() {
            load.lapse();
        }
    }
}

/// A waiter of a computation that is in no table; the last one who leaves ends it.
#[derive(Debug)]
pub(crate) struct Waiter<T>(Arc<SharedLoad<T>>);

impl<T> Waiter<T> {
    /// The first waiter of a new computation, and the duty to end it.
    pub(crate) fn first() -> (Self, Landing<T>) {
        let load = Arc::new(SharedLoad::new(Stage::InTask));
        (Self(Arc::clone(&load)), Landing(Some(load)))
    }

    /// A further waiter, unless it has ended.
    pub(crate) fn join(load: &Arc<SharedLoad<T>>) -> Option<Self> {
        load.enter(false).then(|| Self(Arc::clone(load)))
    }

    pub(crate) fn load(&self) -> &Arc<SharedLoad<T>> {
        &self.0
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
