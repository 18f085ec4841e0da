//! The locks and counters of what races: tickets, flights and generations.
//!
//! Plainly parking_lot's and the standard library's. In this crate's own tests each of their operations is also a
//! place where `shuttle` may let another thread go first, as long as a model runs; see `interleavings`.
//!
//! Why not a feature or a `--cfg`: all features are tested together, a flag would build every dependency a second
//! time, and either could be forgotten. Why the near tier's library need not be built for `shuttle`, too: of one key,
//! each of its operations is one step, under its shard's lock, and calls nothing of ours that could wait.

#[cfg(not(test))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(test))]
pub(crate) use std::sync::atomic::AtomicU64;

#[cfg(test)]
pub(crate) use watched::{AtomicU64, Mutex};

#[cfg(test)]
mod watched {
    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;
    use std::sync::atomic::Ordering;

    /// Whether the running thread is one of a model's.
    fn in_model() -> bool {
        shuttle::current::try_get_current_task().is_some()
    }

    /// A lock whose taking and giving back are steps of a model.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T> {
        turn: shuttle::sync::Mutex<()>,
        inner: parking_lot::Mutex<T>,
    }

    pub(crate) struct MutexGuard<'a, T> {
        // Given back in this order.
        inner: parking_lot::MutexGuard<'a, T>,
        _turn: Option<shuttle::sync::MutexGuard<'a, ()>>,
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { turn: shuttle::sync::Mutex::new(()), inner: parking_lot::Mutex::new(value) }
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            let turn = in_model().then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
            MutexGuard { inner: self.inner.lock(), _turn: turn }
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.inner
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.inner
        }
    }

    /// A counter each of whose operations is a step of a model.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicU64 {
        turn: shuttle::sync::atomic::AtomicBool,
        inner: std::sync::atomic::AtomicU64,
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self { turn: Default::default(), inner: value.into() }
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.step();
            self.inner.load(order)
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.step();
            self.inner.store(value, order);
        }

        pub(crate) fn fetch_add(&self, by: u64, order: Ordering) -> u64 {
            self.step();
            self.inner.fetch_add(by, order)
        }

        fn step(&self) {
            if in_model() {
                self.turn.load(Ordering::SeqCst);
            }
        }
    }
}
