//! A load is stopped between each two of its steps, and what it is about to bring becomes old there: by every kind
//! of invalidation, at the same instance and at another one. The old row must then be nowhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use conformance::faults::{Gate, Method};
use support::nodes::{Event, Fleet, NEW, Node, OLD, key, soon};
use support::{Origin, of, plain};

/// Where a load is stopped.
#[derive(Debug, Clone, Copy)]
enum Stop {
    At(Method, Gate),
    AtTheOrigin,
}

impl Stop {
    /// The steps of a miss, once the groups' numbers are known: look, claim, load, fill.
    const MISS: [Self; 7] = [
        Self::At(Method::GetBytes, Gate::Hold),
        Self::At(Method::GetBytes, Gate::HoldAnswer),
        Self::At(Method::GetOrLease, Gate::Hold),
        Self::At(Method::GetOrLease, Gate::HoldAnswer),
        Self::AtTheOrigin,
        Self::At(Method::Fill, Gate::Hold),
        Self::At(Method::Fill, Gate::HoldAnswer),
    ];

    /// Whether an event at the same instance would stop there, too.
    fn stops(self, event: Event) -> bool {
        event.looks_first() && matches!(self, Self::At(..))
    }

    /// Begins a read that stops here, and has read the row if it stops late enough.
    async fn begin(self, fleet: &Fleet, node: &Node) -> tokio::task::JoinHandle<Option<u64>> {
        if let Self::At(method, gate) = self {
            node.far.set_gate(method, gate);
        }
        let read = node.begin();
        match self {
            Self::AtTheOrigin => fleet.origin.at_gate(1).await,
            Self::At(method, _) => fleet.passing(node.far.at_gate(method, 1)).await,
        }
        read
    }

    /// Lets the read go on, to its end.
    async fn end(
        self,
        fleet: &Fleet,
        node: &Node,
        read: tokio::task::JoinHandle<Option<u64>>,
    ) -> Option<u64> {
        if let Self::At(method, _) = self {
            node.far.set_gate(method, Gate::Open);
        }
        fleet.passing(read).await.unwrap()
    }
}

/// SE1, SE2, SE3, SE4, SE5, SE7, SE12, SE14, P3: whatever happens between whichever two steps of a load, at this
/// instance or at another one, what the load brings is kept nowhere.
#[tokio::test]
async fn nothing_old_is_kept_whatever_comes_between_two_steps_of_a_load() {
    for stop in Stop::MISS {
        for event in Event::ALL {
            for at in [0, 1] {
                if at == 0 && stop.stops(event) {
                    continue;
                }
                let fleet = Fleet::new(Origin::gated());
                let reader = &fleet.nodes[0];
                fleet.warm(reader).await;
                fleet.warm(&fleet.nodes[1]).await;
                fleet.origin.commit("k", OLD);
                let read = stop.begin(&fleet, reader).await;
                fleet.origin.commit("k", NEW);
                event.happen(&fleet.nodes[at]).await;
                let what = format!("{event:?} at node {at} while a load of node 0 is {stop:?}");
                let got = stop.end(&fleet, reader, read).await;
                assert!(got == Some(OLD) || got == Some(NEW), "{what}: {got:?}");
                fleet.old_is_nowhere(&what).await;
            }
        }
    }
}

/// SE8: the far tier's answer is on its way into memory when the row becomes old, by whatever, wherever.
#[tokio::test]
async fn nothing_old_is_kept_whatever_overtakes_a_far_answer() {
    for event in Event::ALL {
        for at in [0, 1] {
            let stop = Stop::At(Method::GetBytes, Gate::HoldAnswer);
            if at == 0 && stop.stops(event) {
                continue;
            }
            let fleet = Fleet::new(Origin::gated());
            let reader = &fleet.nodes[0];
            fleet.warm(reader).await;
            fleet.origin.commit("k", OLD);
            assert_eq!(fleet.read(&fleet.nodes[2]).await.0, Some(OLD));
            let read = stop.begin(&fleet, reader).await;
            fleet.origin.commit("k", NEW);
            event.happen(&fleet.nodes[at]).await;
            let what = format!("{event:?} at node {at} while a far answer is on its way to node 0");
            assert_eq!(stop.end(&fleet, reader, read).await, Some(OLD), "{what}: it came before");
            fleet.old_is_nowhere(&what).await;
        }
    }
}

/// SE1, F2 (ABA): a second load of the same instance takes a lease of its own: the first one's value is refused all
/// the same, and the second one's is stored.
#[tokio::test]
async fn a_second_lease_of_the_same_instance_does_not_revive_the_first() {
    let fleet = Fleet::new(Origin::gated());
    let node = &fleet.nodes[0];
    fleet.warm(node).await;
    fleet.origin.commit("k", OLD);
    let first = node.begin();
    fleet.origin.at_gate(1).await;
    fleet.origin.commit("k", NEW);
    Event::Invalidate.happen(node).await;
    let second = node.begin();
    fleet.origin.at_gate(2).await;
    // The gate is fair: the first goes on, and tries to store while the second one's lease stands.
    fleet.origin.release(1);
    assert_eq!(soon(first).await.unwrap(), Some(OLD));
    assert_eq!(node.cache.stats().refused_fills, 1, "the first one's value was refused");
    assert_eq!(node.peek(), None);
    fleet.origin.release(1);
    assert_eq!(soon(second).await.unwrap(), Some(NEW));
    assert_eq!(node.cache.stats().refused_fills, 1, "the second one's was stored");
    fleet.old_is_nowhere("two leases of one instance").await;
}

/// SE11, P1: while a slow removal is on its way the old row may still be read, and read back into memory; when the
/// removal is done it is nowhere, at whichever of its steps it was slow.
#[tokio::test]
async fn a_slow_removal_leaves_nothing_old_behind() {
    for gate in [Gate::Hold, Gate::HoldAnswer] {
        let fleet = Fleet::new(Origin::gated());
        fleet.origin.commit("k", OLD);
        for node in &fleet.nodes {
            assert_eq!(fleet.read(node).await.0, Some(OLD));
        }
        let node = &fleet.nodes[0];
        node.far.set_gate(Method::Invalidate, gate);
        fleet.origin.commit("k", NEW);
        let cache = node.cache.clone();
        let removal = tokio::spawn(async move { of("acme", cache.invalidate(&key())).await });
        fleet.passing(node.far.at_gate(Method::Invalidate, 1)).await;
        // Memory's life is over; readers fetch from the far tier what it holds by now.
        fleet.hand.advance(Duration::from_secs(10));
        for node in &fleet.nodes {
            fleet.read(node).await;
        }
        node.far.set_gate(Method::Invalidate, Gate::Open);
        soon(removal).await.unwrap().unwrap();
        fleet.old_is_nowhere(&format!("a removal that was slow at {gate:?}")).await;
    }
}

/// SE13: within one tick of the clock, what is set before the tag's invalidation is gone and what is set after it
/// stays: order counts, not time.
#[tokio::test]
async fn the_order_counts_within_one_tick() {
    let fleet = Fleet::new(Origin::open());
    let [here, there, _] = &fleet.nodes[..] else { unreachable!("three nodes") };
    fleet.origin.commit("k", NEW);
    of("acme", here.cache.insert(&key(), OLD)).await.unwrap();
    of("acme", there.cache.invalidate_tag("all")).await.unwrap();
    fleet.old_is_nowhere("set, then tag").await;
    of("acme", there.cache.invalidate_tag("all")).await.unwrap();
    of("acme", here.cache.insert(&key(), 3)).await.unwrap();
    for node in &fleet.nodes {
        assert_eq!(fleet.read(node).await, (Some(3), tenant_cache::Source::Far), "tag, then set");
    }
}

/// SE6: a load that goes on in the background, of whichever kind.
#[derive(Debug, Clone, Copy)]
enum Behind {
    /// A stale value was served, and is being refreshed.
    StaleWhileRevalidate,
    /// A value that is nearly stale was served, and is being refreshed.
    RefreshAhead,
    /// The caller was told that it took too long.
    HardTimeout,
    /// The caller was given a stale value because it took too long.
    SoftTimeout,
}

impl Behind {
    const ALL: [Self; 4] =
        [Self::StaleWhileRevalidate, Self::RefreshAhead, Self::HardTimeout, Self::SoftTimeout];

    fn fleet(self) -> Fleet {
        let minute = Duration::from_secs(60);
        let soon = Duration::from_millis(20);
        Fleet::with(Origin::gated(), move |domain| {
            let domain = domain.ttl(minute).near_ttl(minute * 3);
            match self {
                Self::StaleWhileRevalidate => domain.stale_while_revalidate(minute),
                Self::RefreshAhead => domain.refresh_ahead(0.5),
                Self::HardTimeout => domain.hard_timeout(soon),
                Self::SoftTimeout => domain.stale_if_error(minute).soft_timeout(soon),
            }
        })
    }

    /// How old the value is when the load begins.
    fn age(self) -> Duration {
        Duration::from_secs(if matches!(self, Self::RefreshAhead) { 45 } else { 90 })
    }
}

/// SE6: SE1 to SE5 and SE7 while the load goes on behind a caller who has an answer already.
#[tokio::test]
async fn nothing_old_is_kept_when_the_load_is_a_background_one() {
    for behind in Behind::ALL {
        for event in Event::ALL {
            for at in [0, 1] {
                let fleet = behind.fleet();
                let reader = &fleet.nodes[0];
                fleet.origin.commit("k", OLD);
                fleet.warm(reader).await;
                if !matches!(behind, Behind::HardTimeout) {
                    assert_eq!(fleet.read(reader).await.0, Some(OLD));
                    fleet.hand.advance(behind.age());
                }
                let found = soon(of("acme", reader.cache.get(&key()))).await;
                match behind {
                    Behind::HardTimeout => drop(found.unwrap_err()),
                    _ => assert_eq!(plain(found.unwrap()), Some(OLD)),
                }
                fleet.origin.at_gate(1).await;
                fleet.origin.commit("k", NEW);
                let what = format!("{event:?} at node {at} during a load behind {behind:?}");
                event.happen(&fleet.nodes[at]).await;
                assert_ne!(reader.peek(), Some(OLD), "{what}: not yet landed");
                let before = offers(reader);
                fleet.origin.release(1);
                landed(reader, before).await;
                fleet.old_is_nowhere(&what).await;
            }
        }
    }
}

/// SE6, SE9: who comes after the invalidation does not join the load that goes on in the background.
#[tokio::test]
async fn who_comes_after_an_invalidation_joins_no_background_load() {
    for behind in Behind::ALL {
        for at in [0, 1] {
            let fleet = behind.fleet();
            let reader = &fleet.nodes[0];
            fleet.origin.commit("k", OLD);
            fleet.warm(reader).await;
            if !matches!(behind, Behind::HardTimeout) {
                assert_eq!(fleet.read(reader).await.0, Some(OLD));
                fleet.hand.advance(behind.age());
            }
            let _ = soon(of("acme", reader.cache.get(&key()))).await;
            fleet.origin.at_gate(1).await;
            fleet.origin.commit("k", NEW);
            Event::Invalidate.happen(&fleet.nodes[at]).await;
            let late = reader.begin();
            // A load of its own, beside the old one.
            fleet.origin.at_gate(2).await;
            fleet.origin.release(2);
            let late = soon(late).await.unwrap();
            // Its own patience may be over before its load is.
            assert!(late == Some(NEW) || late.is_none(), "{behind:?} at node {at}: {late:?}");
            fleet.old_is_nowhere(&format!("a late reader behind {behind:?}")).await;
        }
    }
}

/// The values that loads of a node have offered to the far tier, or have not because they knew them to be old.
fn offers(node: &Node) -> u64 {
    node.far.calls(Method::Fill) + node.cache.stats().refused_fills
}

/// Waits until a load of the node has offered its value to the far tier, and then to memory.
async fn landed(node: &Node, offers_before: u64) {
    let offered = async {
        while offers(node) == offers_before {
            tokio::task::yield_now().await;
        }
        // Nothing that it does from here on waits for anybody.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    soon(offered).await;
}
