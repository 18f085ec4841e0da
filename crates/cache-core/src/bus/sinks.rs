//! The subscribers of a process, and the guard between them and whoever delivers to them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use metrics::counter;

use super::{FlushReason, Invalidation, InvalidationSink, Subscription};

/// The sinks of one process: what every implementation of [`InvalidationBus`](super::InvalidationBus) needs.
///
/// Each call of a sink is guarded: one that panics keeps no other sink from hearing, and does not end the task that
/// delivers. The panic is logged and [counted](Self::panics), and the sink is flushed, since nobody knows how much
/// of the message it applied.
#[derive(Debug, Clone, Default)]
pub struct Sinks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    listeners: Mutex<Listeners>,
    panics: AtomicU64,
}

#[derive(Debug, Default)]
struct Listeners {
    next: u64,
    sinks: Vec<(u64, Arc<dyn InvalidationSink>)>,
}

/// What a panic carries.
type Payload = Box<dyn Any + Send>;

impl Sinks {
    /// Adds a sink until the guard is dropped. The guard does not keep the set alive.
    pub fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        let mut listeners = self.0.listeners();
        let id = listeners.next;
        listeners.next += 1;
        listeners.sinks.push((id, sink));
        let set: Weak<Shared> = Arc::downgrade(&self.0);
        Subscription::new(move || {
            if let Some(set) = set.upgrade() {
                set.listeners().sinks.retain(|(other, _)| *other != id);
            }
        })
    }

    /// Hands a message of another instance to every sink; a panic of one ends here.
    pub fn apply(&self, message: &Invalidation) {
        for sink in self.snapshot() {
            drop(self.apply_to(&*sink, message));
        }
    }

    /// Hands a message to every sink on behalf of the caller that publishes it.
    ///
    /// # Panics
    /// With the first panic of a sink, after every sink was told: a handler that panics is the caller's to know of.
    pub fn apply_own(&self, message: &Invalidation) {
        let mut first = None;
        for sink in self.snapshot() {
            first = first.or(self.apply_to(&*sink, message));
        }
        if let Some(panic) = first {
            resume_unwind(panic);
        }
    }

    /// Flushes every sink; a panic of one ends here.
    pub fn flush(&self, reason: FlushReason) {
        for sink in self.snapshot() {
            drop(self.guard(|| sink.flush(reason)));
        }
    }

    /// Calls what a subscriber handed in: a panic of it is logged, counted and returned.
    pub fn guard(&self, call: impl FnOnce()) -> Option<Box<dyn Any + Send>> {
        let panic = caught(call)?;
        self.0.panics.fetch_add(1, Ordering::Relaxed);
        counter!("cache_bus_sink_panics_total").increment(1);
        // Not what it says: that may repeat a value. The panic hook has said where it was.
        tracing::error!("a subscriber of the invalidation bus panicked; it is flushed, the others are told");
        Some(panic)
    }

    /// Times a subscriber panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    fn apply_to(&self, sink: &dyn InvalidationSink, message: &Invalidation) -> Option<Payload> {
        let panic = self.guard(|| sink.apply(message))?;
        // The same fault is likely to be met again, and was counted.
        drop(caught(|| sink.flush(FlushReason::Panicked)));
        Some(panic)
    }

    /// A copy, so that a sink may subscribe or end a subscription while it is being called.
    fn snapshot(&self) -> Vec<Arc<dyn InvalidationSink>> {
        self.0.listeners().sinks.iter().map(|(_, sink)| Arc::clone(sink)).collect()
    }
}

impl Shared {
    fn listeners(&self) -> std::sync::MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The panic of a call. What it shares with others is theirs to keep whole: a sink is flushed afterwards.
fn caught(call: impl FnOnce()) -> Option<Payload> {
    catch_unwind(AssertUnwindSafe(call)).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Heard {
        messages: Mutex<Vec<Invalidation>>,
        flushes: Mutex<Vec<FlushReason>>,
        panics: bool,
    }

    impl Heard {
        fn panicking() -> Arc<Self> {
            Arc::new(Self { panics: true, ..Self::default() })
        }

        fn messages(&self) -> Vec<Invalidation> {
            self.messages.lock().expect("not poisoned").clone()
        }

        fn flushes(&self) -> Vec<FlushReason> {
            self.flushes.lock().expect("not poisoned").clone()
        }
    }

    impl InvalidationSink for Heard {
        fn apply(&self, message: &Invalidation) {
            self.messages.lock().expect("not poisoned").push(message.clone());
            assert!(!self.panics, "as the test wants it");
        }

        fn flush(&self, reason: FlushReason) {
            self.flushes.lock().expect("not poisoned").push(reason);
            assert!(!self.panics, "as the test wants it");
        }
    }

    /// A subscription ends with its guard.
    #[test]
    fn a_sink_hears_until_its_guard_is_dropped() {
        let (sinks, heard) = (Sinks::default(), Arc::new(Heard::default()));
        let guard = sinks.subscribe(heard.clone());
        sinks.apply(&Invalidation::key("a"));
        drop(guard);
        sinks.apply(&Invalidation::key("b"));
        assert_eq!(heard.messages(), [Invalidation::key("a")]);
        assert_eq!(Arc::strong_count(&heard), 1);
    }

    /// A sink that panics is flushed and counted once a message; the one behind it is told, and is not flushed.
    #[test]
    fn a_panicking_sink_is_flushed_and_the_others_are_told() {
        let (sinks, panicking, heard) = (Sinks::default(), Heard::panicking(), Arc::new(Heard::default()));
        let _guards = [sinks.subscribe(panicking.clone()), sinks.subscribe(heard.clone())];
        sinks.apply(&Invalidation::key("a"));
        let own = catch_unwind(AssertUnwindSafe(|| sinks.apply_own(&Invalidation::key("b"))));
        assert!(own.is_err(), "who publishes learns of it");
        for sink in [&panicking, &heard] {
            assert_eq!(sink.messages(), [Invalidation::key("a"), Invalidation::key("b")]);
        }
        assert_eq!(panicking.flushes(), [FlushReason::Panicked; 2]);
        assert_eq!((heard.flushes(), sinks.panics()), (vec![], 2));
    }

    /// A sink that panics at a flush keeps no other from being flushed.
    #[test]
    fn a_panic_at_a_flush_ends_there() {
        let (sinks, panicking, heard) = (Sinks::default(), Heard::panicking(), Arc::new(Heard::default()));
        let _guards = [sinks.subscribe(panicking.clone()), sinks.subscribe(heard.clone())];
        sinks.flush(FlushReason::Gap);
        assert_eq!((heard.flushes(), sinks.panics()), (vec![FlushReason::Gap], 1));
    }
}
