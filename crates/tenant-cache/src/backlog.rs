//! The latest of what happened, for any number of readers who go at their own pace.
//!
//! Why not tokio's `broadcast`: it drops what it gives up under its locks, and what is dropped here is a user's, whose
//! `drop` may use the cache.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// What a reader is handed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    Item(T),
    /// It was too slow, and missed some.
    Missed,
}

/// The writer's end. Keeps nothing while nobody reads.
pub(crate) struct Backlog<T> {
    ring: Arc<Mutex<Ring<T>>>,
    /// How many items there have been; tells readers of new ones, and of the end.
    pushed: watch::Sender<u64>,
    capacity: usize,
}

struct Ring<T> {
    /// The number of the oldest item.
    first: u64,
    items: VecDeque<T>,
}

impl<T> Ring<T> {
    fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }
}

impl<T: Clone> Backlog<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        let ring = Ring { first: 0, items: VecDeque::new() };
        Self { ring: Arc::new(Mutex::new(ring)), pushed: watch::Sender::new(0), capacity }
    }

    pub(crate) fn push(&self, item: T) {
        let mut left = VecDeque::new();
        let end = {
            let mut ring = self.ring.lock();
            ring.items.push_back(item);
            let end = ring.end();
            let keep = if self.pushed.receiver_count() == 0 { 0 } else { self.capacity };
            while ring.items.len() > keep {
                left.extend(ring.items.pop_front());
                ring.first += 1;
            }
            end
        };
        // Readers look at the ring: that two writers may end in the other order does not matter.
        self.pushed.send_replace(end);
        // Outside of the lock.
        drop(left);
    }

    /// A reader of what comes from now on.
    pub(crate) fn reader(&self) -> Reader<T> {
        // Under the lock: an item that is pushed meanwhile is kept if this one is to see it.
        let ring = self.ring.lock();
        Reader { at: ring.end(), ring: Arc::clone(&self.ring), pushed: self.pushed.subscribe() }
    }
}

/// A reader's end.
pub(crate) struct Reader<T> {
    ring: Arc<Mutex<Ring<T>>>,
    pushed: watch::Receiver<u64>,
    at: u64,
}

impl<T: Clone> Reader<T> {
    /// The next one, when it comes; `None` when the writer is gone and nothing is left.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken before it is handed out.
    pub(crate) async fn next(&mut self) -> Option<Next<T>> {
        loop {
            // Before the ring is looked at: what is pushed from here on ends the wait.
            self.pushed.mark_unchanged();
            if let Some(next) = self.look() {
                return Some(next);
            }
            if self.pushed.changed().await.is_err() {
                return self.look();
            }
        }
    }

    fn look(&mut self) -> Option<Next<T>> {
        let ring = self.ring.lock();
        if self.at < ring.first {
            self.at = ring.first;
            return Some(Next::Missed);
        }
        let item = ring.items.get(usize::try_from(self.at - ring.first).ok()?)?.clone();
        self.at += 1;
        Some(Next::Item(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn read(reader: &mut Reader<u32>) -> Vec<Next<u32>> {
        std::iter::from_fn(|| reader.next().now_or_never().flatten()).collect()
    }

    /// Each reader is handed all that came since it began, in order; who is too slow is told so, once, and goes on with
    /// the oldest that is left.
    #[test]
    fn readers_go_at_their_own_pace() {
        let backlog = Backlog::new(3);
        backlog.push(0);
        let (mut quick, mut slow) = (backlog.reader(), backlog.reader());
        for n in 1..=5 {
            backlog.push(n);
            assert_eq!(read(&mut quick), [Next::Item(n)]);
        }
        assert_eq!(read(&mut slow), [Next::Missed, Next::Item(3), Next::Item(4), Next::Item(5)]);
        drop((quick, slow));
        backlog.push(6);
        assert!(backlog.ring.lock().items.is_empty(), "nobody reads");
    }

    /// What was pushed before the writer went is still read; then it ends.
    #[tokio::test]
    async fn the_end_comes_after_the_last_item() {
        let backlog = Backlog::new(3);
        let mut reader = backlog.reader();
        backlog.push(1);
        drop(backlog);
        assert_eq!((reader.next().await, reader.next().await), (Some(Next::Item(1)), None));
    }

    /// A reader that waits is woken by what comes, and by the end.
    #[tokio::test]
    async fn who_waits_is_woken() {
        let backlog = Arc::new(Backlog::new(3));
        let mut reader = backlog.reader();
        let waiting = tokio::spawn(async move { (reader.next().await, reader.next().await) });
        tokio::task::yield_now().await;
        backlog.push(1);
        tokio::task::yield_now().await;
        drop(backlog);
        assert_eq!(waiting.await.expect("it ends"), (Some(Next::Item(1)), None));
    }
}
