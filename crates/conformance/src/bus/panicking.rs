//! Sinks that panic, and those beside them.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cache_core::{FlushReason, Invalidation, InvalidationBus, InvalidationSink};

use super::{BusFixture, sink};
use crate::wait::until;

/// A sink that panics at each message of its case, and at each flush.
#[derive(Debug)]
struct Panicking {
    scope: String,
    applied: AtomicU64,
    flushed: AtomicU64,
}

impl Panicking {
    fn at(scope: &str) -> Arc<Self> {
        Arc::new(Self { scope: scope.to_owned(), applied: AtomicU64::new(0), flushed: AtomicU64::new(0) })
    }

    fn applied(&self) -> u64 {
        self.applied.load(Ordering::SeqCst)
    }

    fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::SeqCst)
    }
}

impl InvalidationSink for Panicking {
    fn apply(&self, message: &Invalidation) {
        if format!("{message:?}").contains(&self.scope) {
            self.applied.fetch_add(1, Ordering::SeqCst);
            panic!("a sink that panics, as the case wants it");
        }
    }

    fn flush(&self, _: FlushReason) {
        self.flushed.fetch_add(1, Ordering::SeqCst);
        panic!("a sink that panics when it is flushed, as the case wants it");
    }
}

/// Publishes from a task of its own; `true` when that panicked.
async fn publish(bus: &Arc<dyn InvalidationBus>, message: &Invalidation) -> bool {
    let (bus, message) = (Arc::clone(bus), message.clone());
    match tokio::spawn(async move { bus.publish(&message).await }).await {
        Ok(published) => published.map(|()| false).expect("the message is published"),
        Err(ended) => ended.is_panic(),
    }
}

/// A sink that panics at the messages of another instance is flushed and counted; those beside it hear every
/// message, before and after.
pub async fn a_panicking_sink_keeps_nobody_from_hearing(f: BusFixture) {
    let _heard = f.ready().await;
    let (panicking, heard) = (Panicking::at(&f.scope), sink());
    let _guards = [f.peer.subscribe(panicking.clone()), f.peer.subscribe(heard.clone())];
    let before = (panicking.flushed(), f.peer.state().panics);
    let sent: Vec<_> = (0..5).map(|n| Invalidation::key(f.key(&n.to_string()))).collect();
    for message in &sent {
        // In one process the publisher delivers the message itself: there it is its own sink that panics.
        publish(&f.service, message).await;
    }
    until("every message at the sink beside it", || heard.of(&f.scope).len() >= sent.len()).await;
    assert_eq!(heard.of(&f.scope), sent, "each once and in order");
    assert_eq!(panicking.applied(), 5, "it is offered every message, too");
    assert!(panicking.flushed() >= before.0 + 5, "what it did not apply, it must forget with all the rest");
    assert_eq!(f.peer.state().panics, before.1 + 5, "each panic counts, once");
}

/// A panic of a sink of this process reaches who published; all others have heard, and nothing is left to be
/// repeated.
pub async fn a_panic_of_an_own_sink_reaches_only_the_publisher(f: BusFixture) {
    let _heard = f.ready().await;
    let (panicking, here, there) = (Panicking::at(&f.scope), sink(), sink());
    let guard = f.service.subscribe(panicking.clone());
    let _guards = [f.service.subscribe(here.clone()), f.peer.subscribe(there.clone())];
    let flushed = panicking.flushed();
    let message = Invalidation::key(f.key("panics"));
    assert!(publish(&f.service, &message).await, "who publishes learns of the panic of a sink beside it");
    assert_eq!(here.of(&f.scope), std::slice::from_ref(&message), "the sinks behind it have heard by then");
    assert_eq!(panicking.flushed(), flushed + 1, "and it was flushed");
    until("the message at the other instance", || there.of(&f.scope) == [message.clone()]).await;
    assert_eq!(f.service.state().pending, 0, "it was announced: there is nothing to repeat");
    drop(guard);
    let next = Invalidation::key(f.key("goes on"));
    assert!(!publish(&f.service, &next).await, "without that sink nothing panics");
    until("the next message", || there.of(&f.scope).contains(&next)).await;
}
