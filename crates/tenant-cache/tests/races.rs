//! Invalidations against loads, each interleaving forced by the origin's gate.
//!
//! Every race is run on each set-up of [`setups`]: memory alone, and memory in front of a far tier.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use cache_core::{Invalidation, InvalidationBus};
use cache_moka::MokaCacheService;
use concurrency::LocalBus;
use support::{Origin, of, plain, versions_with};
use tenant_cache::{Caches, TenantCache};

/// A fleet of two instances and what they share.
struct Fleet {
    name: &'static str,
    origin: Origin,
    here: TenantCache<String, u64>,
    there: TenantCache<String, u64>,
    bus: Arc<dyn InvalidationBus>,
    caches: [Caches; 2],
}

/// Two instances on one bus: without a far tier, and with one.
fn setups() -> Vec<Fleet> {
    let fleet = |name, far: bool| {
        let bus: Arc<dyn InvalidationBus> = Arc::new(LocalBus::new());
        let service = Arc::new(MokaCacheService::builder().bus(Arc::clone(&bus)).build().unwrap());
        let origin = Origin::gated();
        let instance = || {
            let builder = Caches::builder().bus(Arc::clone(&bus));
            let builder = if far { builder.far(service.clone()) } else { builder };
            builder.build().unwrap()
        };
        let caches = [instance(), instance()];
        let tagged = |caches| {
            versions_with(caches, &origin, |domain| {
                let first = |key: &String| key.chars().next().map(|first| format!("first-{first}"));
                domain.tags(move |key| first(key).into_iter().chain(["all".to_owned()]).collect())
            })
        };
        let (here, there) = (tagged(&caches[0]), tagged(&caches[1]));
        Fleet { name, origin, here, there, bus, caches }
    };
    vec![fleet("memory", false), fleet("far", true)]
}

fn key() -> String {
    "k".to_owned()
}

impl Fleet {
    /// What a reader who comes now gets, at the named instance, with every load let through.
    async fn read(&self, cache: &TenantCache<String, u64>) -> Option<u64> {
        let key = key();
        let read = of("acme", cache.get(&key));
        tokio::select! {
            found = read => plain(found.unwrap()),
            () = self.origin.let_pass() => unreachable!("it never ends"),
        }
    }

    /// Starts a load of `k` at an instance and returns when it has read the old row.
    async fn load_in_flight(&self, cache: &TenantCache<String, u64>) -> tokio::task::JoinHandle<Option<u64>> {
        let cache = cache.clone();
        let load = tokio::spawn(async move { plain(of("acme", cache.get(&key())).await.unwrap()) });
        self.origin.at_gate(1).await;
        load
    }

    /// Lets the load in flight end, and says what its caller got.
    async fn land(&self, load: tokio::task::JoinHandle<Option<u64>>) -> Option<u64> {
        self.origin.release(1);
        load.await.unwrap()
    }

    /// Nobody, nowhere, gets anything but `expected`; and once read it is kept.
    async fn all_read(&self, expected: u64, event: &str) {
        let (name, here, there) = (self.name, self.read(&self.here).await, self.read(&self.there).await);
        assert_eq!((here, there), (Some(expected), Some(expected)), "{name}: {event}");
        let loads = self.origin.loads();
        let again = (self.read(&self.here).await, self.read(&self.there).await);
        assert_eq!(again, (Some(expected), Some(expected)), "{name}: {event}, read again");
        assert_eq!(self.origin.loads(), loads, "{name}: {event}: what was read is kept");
    }
}

/// SE1, P3: a load that began before an invalidation leaves its value in no tier.
#[tokio::test]
async fn an_invalidation_during_a_load_wins() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        let load = fleet.load_in_flight(&fleet.here).await;
        fleet.origin.commit("k", 2);
        of("acme", fleet.here.invalidate(&key())).await.unwrap();
        assert_eq!(fleet.land(load).await, Some(1), "its own caller came before the invalidation");
        fleet.all_read(2, "invalidate").await;
    }
}

/// SE7: the same when the invalidation is made at another instance.
#[tokio::test]
async fn an_invalidation_at_a_peer_wins() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        let load = fleet.load_in_flight(&fleet.here).await;
        fleet.origin.commit("k", 2);
        of("acme", fleet.there.invalidate(&key())).await.unwrap();
        fleet.land(load).await;
        fleet.all_read(2, "invalidate at a peer").await;
    }
}

/// SE2, SE12: an insert during a load stays.
#[tokio::test]
async fn an_insert_during_a_load_stays() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        let load = fleet.load_in_flight(&fleet.here).await;
        fleet.origin.commit("k", 2);
        of("acme", fleet.here.insert(&key(), 2)).await.unwrap();
        fleet.land(load).await;
        fleet.all_read(2, "insert").await;
    }
}

/// SE4, SE5, SE14: emptying the tenant's domain, or everybody's, during a load wins; also at a peer.
#[tokio::test]
async fn emptying_the_domain_during_a_load_wins() {
    for peer in [false, true] {
        for everybody in [false, true] {
            for fleet in setups() {
                fleet.origin.commit("k", 1);
                let load = fleet.load_in_flight(&fleet.here).await;
                fleet.origin.commit("k", 2);
                let cache = if peer { &fleet.there } else { &fleet.here };
                match everybody {
                    false => of("acme", cache.invalidate_all()).await.unwrap(),
                    true => cache.clear().await.unwrap(),
                }
                fleet.land(load).await;
                fleet.all_read(2, &format!("peer {peer}, everybody {everybody}")).await;
            }
        }
    }
}

/// SE3-like: a prefix message during a load wins, although it names no single key.
#[tokio::test]
async fn a_prefix_during_a_load_wins() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        let load = fleet.load_in_flight(&fleet.here).await;
        fleet.origin.commit("k", 2);
        fleet.caches[0].invalidate_prefix("acme:ro").await.unwrap();
        fleet.land(load).await;
        fleet.all_read(2, "prefix").await;
    }
}

/// SE3: a tag that is invalidated during a load wins, here and at a peer.
#[tokio::test]
async fn a_tag_during_a_load_wins() {
    for peer in [false, true] {
        for fleet in setups() {
            fleet.origin.commit("k", 1);
            let load = fleet.load_in_flight(&fleet.here).await;
            fleet.origin.commit("k", 2);
            let cache = if peer { &fleet.there } else { &fleet.here };
            of("acme", cache.invalidate_tag("first-k")).await.unwrap();
            fleet.land(load).await;
            fleet.all_read(2, &format!("tag, peer {peer}")).await;
        }
    }
}

/// SG1, SG5, SG8: a tag reaches what carries it, in this tenant, and nothing else.
#[tokio::test]
async fn a_tag_reaches_what_carries_it_and_nothing_else() {
    for fleet in setups() {
        let get = async |tenant: &str, key: &str| {
            let key = key.to_owned();
            let read = of(tenant, fleet.there.get(&key));
            tokio::select! {
                found = read => plain(found.unwrap()),
                () = fleet.origin.let_pass() => unreachable!("it never ends"),
            }
        };
        for key in ["kite", "kiwi", "lime"] {
            fleet.origin.commit(key, 1);
            assert_eq!((get("acme", key).await, get("globex", key).await), (Some(1), Some(1)));
            fleet.origin.commit(key, 2);
        }
        for nothing in ["first-*", "first-", "*", "first-kite", "unknown"] {
            of("acme", fleet.here.invalidate_tag(nothing)).await.unwrap();
            assert_eq!(get("acme", "kite").await, Some(1), "{nothing}");
        }
        of("acme", fleet.here.invalidate_tag("first-k")).await.unwrap();
        assert_eq!((get("acme", "kite").await, get("acme", "kiwi").await), (Some(2), Some(2)));
        assert_eq!((get("acme", "lime").await, get("globex", "kite").await), (Some(1), Some(1)));
        of("acme", fleet.here.invalidate_tag("all")).await.unwrap();
        assert_eq!((get("acme", "lime").await, get("globex", "kite").await), (Some(2), Some(1)));
    }
}

/// SE9, E4: a reader who comes after the invalidation does not join the old load.
#[tokio::test]
async fn a_reader_after_the_invalidation_does_not_join_the_old_load() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        let old = fleet.load_in_flight(&fleet.here).await;
        fleet.origin.commit("k", 2);
        of("acme", fleet.here.invalidate(&key())).await.unwrap();
        let here = fleet.here.clone();
        let new = tokio::spawn(async move { plain(of("acme", here.get(&key())).await.unwrap()) });
        fleet.origin.at_gate(2).await;
        fleet.origin.release(2);
        assert_eq!((old.await.unwrap(), new.await.unwrap()), (Some(1), Some(2)), "{}", fleet.name);
        fleet.all_read(2, "a later reader").await;
    }
}

/// SE10: the end of the old load does not break the sharing of the new one.
#[tokio::test]
async fn a_settled_old_load_leaves_the_new_one_shared() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        let old = fleet.load_in_flight(&fleet.here).await;
        fleet.origin.commit("k", 2);
        of("acme", fleet.here.invalidate(&key())).await.unwrap();
        let get = || {
            let here = fleet.here.clone();
            tokio::spawn(async move { plain(of("acme", here.get(&key())).await.unwrap()) })
        };
        let first = get();
        fleet.origin.at_gate(2).await;
        // One permit: the semaphore is fair, so the old load goes on and lands.
        fleet.origin.release(1);
        assert_eq!(old.await.unwrap(), Some(1));
        let second = get();
        tokio::task::yield_now().await;
        fleet.origin.release(1);
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (Some(2), Some(2)));
        assert_eq!(fleet.origin.loads(), 2, "{}", fleet.name);
    }
}

/// SE6: a forced refresh gives way to an invalidation that comes between.
#[tokio::test]
async fn an_invalidation_during_a_refresh_wins() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        assert_eq!(fleet.read(&fleet.here).await, Some(1));
        let here = fleet.here.clone();
        let refresh = tokio::spawn(async move { plain(of("acme", here.refresh(&key())).await.unwrap()) });
        fleet.origin.at_gate(1).await;
        fleet.origin.commit("k", 2);
        of("acme", fleet.there.invalidate(&key())).await.unwrap();
        assert_eq!(fleet.land(refresh).await, Some(1));
        fleet.all_read(2, "invalidate during refresh").await;
    }
}

/// E3, SD1: a refresh is seen by the other instance; what it replaces is readable until then.
#[tokio::test]
async fn a_refresh_reaches_the_other_instance() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        assert_eq!((fleet.read(&fleet.here).await, fleet.read(&fleet.there).await), (Some(1), Some(1)));
        fleet.origin.commit("k", 2);
        let here = fleet.here.clone();
        let refresh = tokio::spawn(async move { plain(of("acme", here.refresh(&key())).await.unwrap()) });
        fleet.origin.at_gate(1).await;
        assert_eq!(fleet.land(refresh).await, Some(2));
        fleet.all_read(2, "refresh").await;
    }
}

/// SA5, E4: a cancelled load gives its lease up: the next caller does not wait for its end.
#[tokio::test]
async fn a_cancelled_load_gives_its_lease_up() {
    for fleet in setups() {
        fleet.origin.commit("k", 1);
        let load = fleet.load_in_flight(&fleet.here).await;
        load.abort();
        assert!(load.await.unwrap_err().is_cancelled());
        fleet.all_read(1, "after a cancelled load").await;
    }
}

/// SD1: a change at one instance is seen by the other, and messages by hand are understood.
#[tokio::test]
async fn every_kind_of_message_reaches_the_other_instance() {
    for fleet in setups() {
        let mut version = 0;
        let domain = || "rows".into();
        for message in [
            Invalidation::key("acme:rows:k"),
            Invalidation::Prefix("acme:".into()),
            Invalidation::Domain { tenant: Some(support::tenant("acme")), domain: domain() },
            Invalidation::Domain { tenant: None, domain: domain() },
            Invalidation::Tag { tenant: Some(support::tenant("acme")), tag: "all".into() },
            Invalidation::All,
        ] {
            version += 1;
            fleet.origin.commit("k", version);
            // The far tier is changed first, as a publisher must.
            of("acme", fleet.there.clear()).await.unwrap();
            assert_eq!(fleet.read(&fleet.here).await, Some(version), "{}: {message:?}", fleet.name);
            let loads = fleet.origin.loads();
            fleet.bus.publish(&message).await.unwrap();
            assert_eq!(fleet.here.peek_of("acme"), None, "{}: {message:?}", fleet.name);
            assert_eq!(fleet.origin.loads(), loads);
        }
    }
}

trait Peek {
    fn peek_of(&self, tenant: &str) -> Option<u64>;
}

impl Peek for TenantCache<String, u64> {
    fn peek_of(&self, tenant: &str) -> Option<u64> {
        use futures_util::FutureExt;
        let peek = of(tenant, async { plain(self.peek(&key()).unwrap()) });
        peek.now_or_never().expect("a peek does not wait")
    }
}
