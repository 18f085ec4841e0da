//! The background tasks of a bus: begun when there is something to do, begun again when their runtime ended.
//!
//! A task ends with the runtime it was spawned on, or with a panic; the bus belongs to the process. So each use of the
//! bus looks whether its tasks still run, and spawns those that do not on the runtime of that use.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cache_core::bus::BusHealth;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::{Shared, listener, pending};

/// What runs in the background.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    /// Somebody subscribed: there must be a listener.
    wanted: bool,
    listener: Option<AbortHandle>,
    repeater: Option<AbortHandle>,
}

impl Shared {
    /// Listens from now on. Needs a runtime; without one the next use of the bus tries again.
    pub(super) fn listen(self: &Arc<Self>) {
        self.tasks.lock().wanted = true;
        self.attend();
    }

    /// Begins what must run and does not: to be called by whoever uses the bus.
    pub(super) fn attend(self: &Arc<Self>) {
        let mut tasks = self.tasks.lock();
        if tasks.wanted && !runs(tasks.listener.as_ref()) {
            self.begin_to_listen(&mut tasks);
        }
        if !runs(tasks.repeater.as_ref()) && self.pending.lock().len() > 0 {
            self.begin_to_repeat(&mut tasks);
        }
    }

    /// Changes what is to be repeated, and begins to repeat when the change says that nothing was before: the task may
    /// be about to end, and then runs still.
    pub(super) fn attend_after<R>(self: &Arc<Self>, change: impl FnOnce() -> (R, bool)) -> R {
        let mut tasks = self.tasks.lock();
        let (changed, first) = change();
        if first || !runs(tasks.repeater.as_ref()) {
            self.begin_to_repeat(&mut tasks);
        }
        changed
    }

    /// Whether there is a listener, and its runtime has not ended.
    pub(super) fn listens(&self) -> bool {
        runs(self.tasks.lock().listener.as_ref())
    }

    pub(super) fn end_tasks(&self) {
        let mut tasks = self.tasks.lock();
        for task in [tasks.listener.take(), tasks.repeater.take()].into_iter().flatten() {
            task.abort();
        }
    }

    fn begin_to_listen(self: &Arc<Self>, tasks: &mut Tasks) {
        let Some(runtime) = self.runtime() else { return };
        let again = tasks.listener.is_some();
        if again {
            tracing::warn!(
                "the task that listened to invalidations had ended, or its runtime; listening again"
            );
        }
        *self.counts.health.lock() = if again { BusHealth::Recovering } else { BusHealth::Starting };
        let listener = listener::run(Arc::downgrade(self), again);
        tasks.listener = Some(runtime.spawn(listener).abort_handle());
    }

    fn begin_to_repeat(self: &Arc<Self>, tasks: &mut Tasks) {
        let Some(runtime) = self.runtime() else { return };
        let repeater = pending::repeat(Arc::downgrade(self), Arc::clone(&self.reachable));
        tasks.repeater = Some(runtime.spawn(repeater).abort_handle());
    }

    /// The runtime of whoever uses the bus; none for a bus that was shut down.
    fn runtime(&self) -> Option<Handle> {
        Handle::try_current().ok().filter(|_| !self.closed.load(Ordering::Acquire))
    }
}

fn runs(task: Option<&AbortHandle>) -> bool {
    task.is_some_and(|task| !task.is_finished())
}
