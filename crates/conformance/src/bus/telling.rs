//! Who hears what, and when.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::sync::Arc;
use std::task::{Context, Waker};

use cache_core::bus::BusHealth;
use cache_core::{
    Clock, FlushReason, Invalidation, InvalidationBus, InvalidationSink, Subscription, TenantId,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{BusFixture, sink};
use crate::wait::until;

/// E10: when `publish` has ended, the sinks of this process have heard.
pub async fn own_sinks_have_heard_when_publishing_ends(f: BusFixture) {
    let _heard = f.ready().await;
    let (one, two) = (sink(), sink());
    let _guards = [f.service.subscribe(one.clone()), f.service.subscribe(two.clone())];
    for n in 0..20 {
        let message = Invalidation::key(f.key(&n.to_string()));
        f.service.publish(&message).await.unwrap();
        for sink in [&one, &two] {
            assert_eq!(sink.of(&f.scope).last(), Some(&message));
        }
    }
}

/// I1: every kind of message arrives as it was sent, whatever is in its names.
pub async fn messages_arrive_as_they_were_sent(f: BusFixture) {
    let _heard = f.ready().await;
    let (heard, tenant) = (sink(), TenantId::new(f.key("t:{%}é")).unwrap());
    let _guard = f.peer.subscribe(heard.clone());
    let text = |name: &str| -> Arc<str> { f.key(name).into() };
    let sent = [
        Invalidation::Keys(["k", "k:{}%\"\\", "\u{1F980}", " "].map(text).to_vec()),
        Invalidation::Keys((0..1_000).map(|n| text(&n.to_string())).collect()),
        Invalidation::Prefix(text("p*?[a]")),
        Invalidation::Domain { tenant: Some(tenant.clone()), domain: "d".into() },
        Invalidation::Domain { tenant: None, domain: text("d") },
        Invalidation::Tag { tenant: Some(tenant), tag: "a tag: \"1\"".into() },
        Invalidation::Tag { tenant: None, tag: text("tag") },
    ];
    for message in &sent {
        f.service.publish(message).await.unwrap();
    }
    until("the last message", || heard.of(&f.scope).len() >= sent.len()).await;
    assert_eq!(heard.of(&f.scope), sent);
}

/// I1: what one task publishes arrives everywhere once, in the order in which it was published.
pub async fn messages_arrive_once_and_in_order(f: BusFixture) {
    let _heard = f.ready().await;
    let (here, there) = (sink(), sink());
    let _guards = [f.service.subscribe(here.clone()), f.peer.subscribe(there.clone())];
    let sent: Vec<_> = (0..300).map(|n| Invalidation::key(f.key(&n.to_string()))).collect();
    for message in &sent {
        f.service.publish(message).await.unwrap();
    }
    let end = Invalidation::key(f.key("end"));
    f.service.publish(&end).await.unwrap();
    until("the end", || there.of(&f.scope).contains(&end)).await;
    for sink in [here, there] {
        assert_eq!(sink.of(&f.scope)[..sent.len()], sent);
        assert_eq!(sink.of(&f.scope).len(), sent.len() + 1);
    }
}

/// I1: however many publish at the same time, each is heard in its own order.
pub async fn the_order_of_each_publisher_is_kept(f: BusFixture) {
    let _heard = f.ready().await;
    let heard = sink();
    let _guard = f.peer.subscribe(heard.clone());
    let mut publishing = JoinSet::new();
    for who in 0..8 {
        let bus = if who % 2 == 0 { Arc::clone(&f.service) } else { Arc::clone(&f.peer) };
        let keys: Vec<_> = (0..50).map(|n| f.key(&format!("{who}/{n:02}"))).collect();
        publishing.spawn(async move {
            for key in keys {
                bus.publish(&Invalidation::key(key)).await.unwrap();
            }
        });
    }
    publishing.join_all().await;
    until("everything", || heard.of(&f.scope).len() >= 8 * 50).await;
    let all = heard.of(&f.scope);
    assert_eq!(all.len(), 8 * 50);
    for who in 0..8 {
        let of = format!("{}{who}/", f.scope);
        let theirs: Vec<String> = all.iter().map(|m| format!("{m:?}")).filter(|m| m.contains(&of)).collect();
        assert!(theirs.len() == 50 && theirs.is_sorted(), "{theirs:?}");
    }
}

/// E10: a subscription ends with its guard, and others go on.
pub async fn a_sink_that_left_hears_nothing(f: BusFixture) {
    let _heard = f.ready().await;
    let (leaves, stays) = (sink(), sink());
    let (guard, _other) = (f.peer.subscribe(leaves.clone()), f.peer.subscribe(stays.clone()));
    drop(guard);
    let message = Invalidation::key(f.key("k"));
    f.service.publish(&message).await.unwrap();
    until("the message", || stays.of(&f.scope) == [message.clone()]).await;
    assert_eq!(leaves.of(&f.scope), []);
}

/// E10: a sink may end its subscription, and begin another, while it is being told.
pub async fn a_sink_may_leave_and_come_while_it_is_told(f: BusFixture) {
    #[derive(Debug)]
    struct Restless {
        bus: Arc<dyn InvalidationBus>,
        guard: Mutex<Option<Subscription>>,
        next: Arc<dyn InvalidationSink>,
    }

    impl InvalidationSink for Restless {
        fn apply(&self, _: &Invalidation) {
            let next = self.bus.subscribe(Arc::clone(&self.next));
            *self.guard.lock() = Some(next);
        }

        fn flush(&self, _: FlushReason) {}
    }

    let _heard = f.ready().await;
    let heard = sink();
    let restless =
        Arc::new(Restless { bus: Arc::clone(&f.service), guard: Mutex::default(), next: heard.clone() });
    let first = f.service.subscribe(restless.clone());
    *restless.guard.lock() = Some(first);
    for name in ["one", "two"] {
        f.service.publish(&Invalidation::key(f.key(name))).await.unwrap();
    }
    assert!(heard.of(&f.scope).contains(&Invalidation::key(f.key("two"))));
    // A guard that holds its own sink would hold the bus, too.
    let guard = restless.guard.lock().take();
    drop(guard);
}

/// I3: a bus that hears is trusted, and counts what was sent.
pub async fn a_bus_that_is_heard_is_trusted(f: BusFixture) {
    let _heard = f.ready().await;
    let before = f.service.state();
    assert_eq!(before.health, BusHealth::Trusted);
    assert!(f.service.trust().far(Clock::system().now()));
    f.service.publish(&Invalidation::key(f.key("k"))).await.unwrap();
    let after = f.service.state();
    assert_eq!((after.published, after.pending), (before.published + 1, 0));
}

/// I2: announcements that were given up half-way keep nobody from hearing the next ones.
pub async fn dropped_announcements_keep_nobody_from_hearing(f: BusFixture) {
    let _heard = f.ready().await;
    let heard = sink();
    let _guard = f.peer.subscribe(heard.clone());
    for polls in 0..20 {
        let message = Invalidation::key(f.key(&format!("dropped {polls}")));
        let mut publishing = Box::pin(f.service.publish(&message));
        for _ in 0..polls {
            if publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let end = Invalidation::key(f.key("end"));
    f.service.publish(&end).await.unwrap();
    until("the end", || heard.of(&f.scope).contains(&end)).await;
}
