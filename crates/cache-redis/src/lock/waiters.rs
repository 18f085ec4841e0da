//! Who waits in this process, and how the one subscription wakes them.

use std::collections::HashMap;
use std::sync::Arc;

use cache_core::{FlushReason, Invalidation, InvalidationSink};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::names::Id;

/// A map this small keeps its memory when it becomes empty.
const KEPT: usize = 64;

/// The waiters of one instance, by the number in their id.
#[derive(Debug)]
pub(super) struct Waiters {
    instance: Box<str>,
    waiting: Mutex<HashMap<u64, Arc<Notify>>>,
}

impl Waiters {
    pub(super) fn new(instance: &str) -> Self {
        Self { instance: instance.into(), waiting: Mutex::default() }
    }

    /// To be called before the server is asked: its message may be faster than its answer.
    pub(super) fn add(&self, number: u64) -> Arc<Notify> {
        let woken = Arc::new(Notify::new());
        self.waiting.lock().insert(number, Arc::clone(&woken));
        woken
    }

    pub(super) fn remove(&self, number: u64) {
        let mut waiting = self.waiting.lock();
        waiting.remove(&number);
        if waiting.is_empty() && waiting.capacity() > KEPT {
            waiting.shrink_to_fit();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Wakes whom a message names. Nobody, when that one has left meanwhile: it settles its place itself.
    pub(super) fn wake(&self, payload: &[u8]) {
        let Some(number) = Id::number_in(payload, &self.instance) else { return };
        if let Some(woken) = self.waiting.lock().get(&number) {
            woken.notify_one();
        }
    }
}

impl InvalidationSink for Waiters {
    fn apply(&self, _: &Invalidation) {}

    /// Messages may have been missed, wake-ups among them: everybody asks again.
    fn flush(&self, _: FlushReason) {
        for woken in self.waiting.lock().values() {
            woken.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn woken(notify: &Notify) -> bool {
        let mut waiting = std::pin::pin!(notify.notified());
        waiting.as_mut().enable()
    }

    /// F3: a message wakes the one it names; it is remembered when it comes before the waiting begins.
    #[test]
    fn a_message_wakes_whom_it_names() {
        let waiters = Waiters::new("ab");
        let (one, two) = (waiters.add(1), waiters.add(2));
        for payload in [&b"ab/2"[..], b"ab/3", b"cd/1", b"rubbish"] {
            waiters.wake(payload);
        }
        assert!(!woken(&one) && woken(&two));
        waiters.flush(FlushReason::Resubscribed);
        assert!(woken(&one) && woken(&two));
    }

    /// F6: a hundred thousand waiters leave no memory behind.
    #[test]
    fn the_map_shrinks() {
        let waiters = Waiters::new("ab");
        for number in 0..100_000 {
            waiters.add(number);
        }
        for number in 0..100_000 {
            waiters.remove(number);
        }
        assert_eq!(waiters.len(), 0);
        assert!(waiters.waiting.lock().capacity() <= KEPT);
    }
}
