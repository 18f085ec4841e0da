//! Three instances on one far tier and one bus: what is changed at one is seen by the others, once, in any order.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cache_core::bus::Sinks;
use cache_core::{
    BackendErrorKind, BusState, CacheError, CacheService, FlushReason, Invalidation, InvalidationBus,
    InvalidationSink, Subscription, Trust,
};
use cache_moka::MokaCacheService;
use conformance::faults::{Gate, Method};
use futures_util::FutureExt;
use support::nodes::{Event, Fleet, NEW, OLD, key, soon};
use support::{Origin, of, plain, tenant, versions, versions_with};
use tenant_cache::{Caches, Source, TenantCache};

/// SD1, SE7: whatever happens at one node is seen by all three, and costs the others no question and no message.
#[tokio::test]
async fn what_happens_at_one_node_is_seen_by_all() {
    for event in Event::ALL {
        let fleet = Fleet::new(Origin::open());
        fleet.origin.commit("k", OLD);
        for node in &fleet.nodes {
            assert_eq!(fleet.read(node).await.0, Some(OLD));
            assert_eq!(fleet.read(node).await.1, Source::Near);
        }
        let heard = Arc::new(Heard::default());
        let _subscription = fleet.bus.subscribe(heard.clone());
        fleet.origin.commit("k", NEW);
        fleet.nodes.iter().for_each(|node| drop(node.far.take_calls()));
        event.happen(&fleet.nodes[0]).await;
        for node in &fleet.nodes[1..] {
            assert_eq!(node.peek(), None, "{event:?}: forgotten when the call returned");
            assert_eq!(node.far.take_calls(), [], "{event:?}: hearing of it asks nobody anything");
        }
        assert_eq!(heard.messages(), 1, "{event:?}: one message, which nobody repeats");
        fleet.old_is_nowhere(&format!("{event:?}")).await;
    }
}

/// SD2, P6: what could not be removed is an error and is not told as done; the others go on with what the far tier
/// holds, and the node that failed does not serve its own old row from memory.
#[tokio::test]
async fn a_failed_removal_is_not_told_as_done() {
    let fleet = Fleet::new(Origin::open());
    fleet.origin.commit("k", OLD);
    for node in &fleet.nodes {
        fleet.read(node).await;
    }
    let heard = Arc::new(Heard::default());
    let _subscription = fleet.bus.subscribe(heard.clone());
    let node = &fleet.nodes[0];
    fleet.origin.commit("k", NEW);
    node.far.set_gate(Method::Invalidate, Gate::Error(BackendErrorKind::Unavailable));
    let failed = of("acme", node.cache.invalidate(&key())).await.unwrap_err();
    assert!(failed.is_transient(), "{failed:?}");
    assert_eq!((heard.messages(), node.peek()), (0, None));
    node.far.set_gate(Method::Invalidate, Gate::Open);
    Event::Invalidate.happen(node).await;
    fleet.old_is_nowhere("removed at the second try").await;
}

/// P1, P6: the own memory is cleared *after* the far tier was asked: what a reader fetched back while the removal was on
/// its way does not stay, also when the removal fails in the end.
#[tokio::test]
async fn what_was_fetched_back_during_a_failing_removal_does_not_stay() {
    let fleet = Fleet::new(Origin::open());
    fleet.origin.commit("k", OLD);
    let node = &fleet.nodes[0];
    fleet.read(node).await;
    node.far.set_gate(Method::Invalidate, Gate::Hold);
    fleet.origin.commit("k", NEW);
    let cache = node.cache.clone();
    let removal = tokio::spawn(async move { of("acme", cache.invalidate(&key())).await });
    soon(node.far.at_gate(Method::Invalidate, 1)).await;
    fleet.hand.advance(Duration::from_secs(10));
    assert_eq!(fleet.read(node).await, (Some(OLD), Source::Far), "the far tier still holds it");
    node.far.set_gate(Method::Invalidate, Gate::Error(BackendErrorKind::Unavailable));
    soon(removal).await.unwrap().unwrap_err();
    assert_eq!(node.peek(), None);
}

/// E11, COHERENCE 3.4: whoever is told of a change finds the far tier changed already; told first, a reader could fetch
/// the old row back.
#[tokio::test]
async fn who_is_told_finds_the_far_tier_changed() {
    for event in Event::ALL {
        let fleet = Fleet::new(Origin::open());
        fleet.origin.commit("k", OLD);
        fleet.read(&fleet.nodes[0]).await;
        let looking = Arc::new(Looking { store: fleet.store.clone(), seen: Mutex::default() });
        let before = looking.look();
        let _subscription = fleet.bus.subscribe(looking.clone());
        Event::happen(event, &fleet.nodes[0]).await;
        let seen = looking.seen.lock().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|seen| *seen != before), "{event:?}");
    }
}

/// P6: the far tier did it and its answer was lost: the caller is told of the failure, and nobody keeps the old row.
#[tokio::test]
async fn a_removal_whose_answer_is_lost_is_seen_by_all() {
    let fleet = Fleet::new(Origin::open());
    fleet.origin.commit("k", OLD);
    for node in &fleet.nodes {
        fleet.read(node).await;
    }
    let node = &fleet.nodes[0];
    fleet.origin.commit("k", NEW);
    node.far.set_gate(Method::Invalidate, Gate::LostAnswer(BackendErrorKind::Unavailable));
    of("acme", node.cache.invalidate(&key())).await.unwrap_err();
    fleet.old_is_nowhere("a lost answer").await;
}

/// SD7: three writers insert at the same time, and their leases are taken in every order: all nodes and the far tier end
/// on one value.
#[tokio::test]
async fn three_writers_end_on_one_value() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let fleet = Fleet::new(Origin::open());
        let inserts: Vec<_> = fleet
            .nodes
            .iter()
            .zip(10..)
            .map(|(node, value)| {
                node.far.set_gate(Method::TakeLease, Gate::Hold);
                let cache = node.cache.clone();
                tokio::spawn(async move { of("acme", cache.insert(&key(), value)).await })
            })
            .collect();
        for node in &fleet.nodes {
            soon(node.far.at_gate(Method::TakeLease, 1)).await;
        }
        for at in order {
            let node = &fleet.nodes[at];
            node.far.set_gate(Method::TakeLease, Gate::Open);
            let landed = async {
                while !inserts[at].is_finished() {
                    tokio::task::yield_now().await;
                }
            };
            soon(landed).await;
            // Each node reads in between, and keeps what it read.
            for node in &fleet.nodes {
                fleet.read(node).await;
            }
        }
        for insert in inserts {
            insert.await.unwrap().unwrap();
        }
        let last = 10 + order[2] as u64;
        for node in &fleet.nodes {
            assert_eq!(fleet.read(node).await.0, Some(last), "{order:?}");
        }
        assert_eq!(fleet.origin.loads(), 0);
    }
}

/// SD8: messages that come late, twice and in any order: what counts in the end is the state of the far tier.
#[tokio::test]
async fn the_order_of_messages_does_not_matter() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        let store = Arc::new(MokaCacheService::default());
        let origin = Origin::open();
        let instance = || {
            let post = Arc::new(Post::default());
            let caches = Caches::builder().far(store.clone()).bus(post.clone()).build().unwrap();
            let tagged =
                |caches| versions_with(caches, &origin, |domain| domain.tags(|_| vec!["all".into()]));
            (post, tagged(&caches), caches)
        };
        let ((sent, writer, writers), (post, reader, _caches)) = (instance(), instance());
        let read = async || plain(of("acme", reader.get(&key())).await.unwrap());
        origin.commit("k", 1);
        assert_eq!(read().await, Some(1));
        // Four changes, each removed in its own way; the reader is told of none of them yet.
        for version in 2..=5 {
            origin.commit("k", version);
            of("acme", async {
                match version {
                    2 => writer.invalidate(&key()).await,
                    3 => writer.invalidate_tag("all").await,
                    4 => writer.invalidate_all().await,
                    _ => writers.invalidate_prefix("acme:").await.map(drop),
                }
            })
            .await
            .unwrap();
            of("acme", writer.get(&key())).await.unwrap();
        }
        let messages = sent.sent.lock().unwrap().clone();
        assert_eq!(messages.len(), 4);
        assert_eq!(read().await, Some(1), "nothing was told");
        for at in order {
            post.sinks.apply(&messages[at]);
            post.sinks.apply(&messages[at]);
            assert_eq!(read().await, Some(5), "{order:?}: any of them leads to the far tier");
        }
        post.sinks.apply(&messages[0]);
        assert_eq!(read().await, Some(5), "{order:?}: and one that comes very late is a miss, no more");
    }
}

/// SD10, SG5: domains and tenants that share a bus and a far tier do not cross, also where one's name begins with the
/// other's.
#[tokio::test]
async fn names_that_begin_alike_do_not_cross() {
    let bus: Arc<dyn InvalidationBus> = Arc::new(concurrency::LocalBus::new());
    let store = Arc::new(MokaCacheService::builder().bus(Arc::clone(&bus)).build().unwrap());
    let (caches, origin) = (Caches::builder().far(store).build().unwrap(), Origin::open());
    let rows = versions(&caches, &origin);
    let row: TenantCache<String, u64> = caches
        .domain("row")
        .scope(cache_core::Scope::Tenant)
        .load(|_: String| async { Ok::<_, std::io::Error>(Some(7)) })
        .unwrap();
    origin.commit("k", 1);
    let fill = async || {
        for id in ["acme", "acm", "acme:rows"] {
            of(id, rows.get(&key())).await.unwrap();
            of(id, row.get(&key())).await.unwrap();
        }
    };
    let kept = |cache: &TenantCache<String, u64>| {
        ["acme", "acm", "acme:rows"].map(|id| {
            let peek = of(id, async { cache.peek(&key()).unwrap().is_some() });
            peek.now_or_never().unwrap()
        })
    };
    let domain = |name: &str| Invalidation::Domain { tenant: Some(tenant("acm")), domain: name.into() };
    for (message, in_rows, in_row) in [
        (Invalidation::key("acm:rows:k"), [true, false, true], [true; 3]),
        (Invalidation::key("acme:row:k"), [true; 3], [false, true, true]),
        (domain("row"), [true; 3], [true, false, true]),
        (domain("rows"), [true, false, true], [true; 3]),
        (Invalidation::Prefix("acme:row:".into()), [true; 3], [false, true, true]),
        (Invalidation::Tag { tenant: Some(tenant("acme")), tag: "k".into() }, [true; 3], [true; 3]),
    ] {
        fill().await;
        bus.publish(&message).await.unwrap();
        assert_eq!((kept(&rows), kept(&row)), (in_rows, in_row), "{message:?}");
    }
}

/// SD12: a storm of messages asks the far tier nothing, begins no load, and leaves nothing in memory.
#[tokio::test]
async fn a_storm_of_messages_asks_nobody() {
    let fleet = Fleet::new(Origin::open());
    fleet.origin.commit("k", OLD);
    let node = &fleet.nodes[1];
    fleet.read(node).await;
    drop(node.far.take_calls());
    let (loads, entries) = (fleet.origin.loads(), node.cache.stats().size);
    for n in 0..100_000 {
        fleet.bus.publish(&Invalidation::key(format!("acme:rows:{n}"))).await.unwrap();
    }
    assert_eq!(node.far.take_calls(), []);
    assert_eq!((fleet.origin.loads(), node.cache.stats().size), (loads, entries));
    assert_eq!(node.peek(), Some(OLD), "what no message named stays");
}

/// SF10, I3: emptying memory is one step and no walk: the dead entries are still there, and nobody gets them.
#[tokio::test]
async fn emptying_memory_is_no_walk() {
    let (post, origin) = (Arc::new(Post::default()), Origin::open());
    let caches = Caches::builder().bus(post.clone()).build().unwrap();
    let cache = versions_with(&caches, &origin, |domain| domain.capacity(10_000));
    for n in 0..1_000 {
        origin.commit(&n.to_string(), n);
        of("acme", cache.get(&n.to_string())).await.unwrap();
    }
    let before = cache.stats();
    post.sinks.flush(FlushReason::Gap);
    let after = cache.stats();
    assert_eq!((after.size, after.evicted_invalidated), (before.size, before.evicted_invalidated));
    for n in 0..1_000 {
        let found = of("acme", cache.lookup(&n.to_string())).await.unwrap();
        assert_eq!(found.source, Source::Origin, "{n}");
    }
}

/// SF6: two instances whose wall clocks are two hours apart agree on when an entry is dead, for each knows by how
/// much it differs from the server.
#[tokio::test]
async fn wall_clocks_that_differ_do_not_matter() {
    let (store_hand, origin) = (cache_core::ManualClock::new(), Origin::open());
    let store: Arc<dyn CacheService> =
        Arc::new(MokaCacheService::builder().clock(store_hand.clock()).build().unwrap());
    let hour = Duration::from_secs(3_600);
    let instance = |ahead: Duration, offset_ms: i64| {
        let (hand, post) = (cache_core::ManualClock::new(), Arc::new(Post::default()));
        hand.advance(ahead);
        post.trust.set_server_offset_ms(offset_ms);
        let caches = Caches::builder().far(store.clone()).bus(post).clock(hand.clock()).build().unwrap();
        let cache = versions_with(&caches, &origin, |domain| {
            domain.ttl(Duration::from_secs(60)).near_ttl(Duration::from_millis(1))
        });
        (hand, cache)
    };
    // The server is an hour behind the one and an hour ahead of the other.
    let fleet = [instance(2 * hour, -3_600_000), instance(Duration::ZERO, 3_600_000)];
    let pass = |time: Duration| {
        store_hand.advance(time);
        fleet.iter().for_each(|(hand, _)| hand.advance(time));
    };
    for writer in [0, 1] {
        let (writer, reader) = (&fleet[writer].1, &fleet[1 - writer].1);
        let key = format!("of {}", writer.stats().loads);
        origin.commit(&key, 1);
        let read = async |cache: &TenantCache<String, u64>| of("acme", cache.lookup(&key)).await.unwrap();
        assert_eq!(read(writer).await.source, Source::Origin);
        assert_eq!(read(reader).await.source, Source::Far, "it is alive for the other one");
        pass(Duration::from_secs(59));
        assert_eq!(read(reader).await.source, Source::Far, "and still is");
        origin.commit(&key, 2);
        pass(Duration::from_secs(2));
        assert_eq!(plain(read(reader).await.value), Some(2), "and dies for both");
    }
}

/// Looks at the far tier whenever it is told something: the entry, and the numbers of its groups.
#[derive(Debug)]
struct Looking {
    store: Arc<MokaCacheService>,
    seen: Mutex<Vec<Look>>,
}

type Look = Vec<Option<bytes::Bytes>>;

impl Looking {
    fn look(&self) -> Look {
        let keys = ["acme:rows:k", "gen:all", "gen:d:rows", "gen:t:acme:rows", "gen:g:acme:all"];
        let look = self.store.get_many_bytes(&keys).now_or_never();
        look.expect("memory does not wait").unwrap()
    }
}

impl InvalidationSink for Looking {
    fn apply(&self, _: &Invalidation) {
        self.seen.lock().unwrap().push(self.look());
    }

    fn flush(&self, _: FlushReason) {}
}

/// Counts messages.
#[derive(Debug, Default)]
struct Heard(AtomicUsize);

impl Heard {
    fn messages(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl InvalidationSink for Heard {
    fn apply(&self, _: &Invalidation) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn flush(&self, _: FlushReason) {}
}

/// A bus that delivers to its own sinks at once, and keeps what is for others until the test hands it on.
#[derive(Debug)]
struct Post {
    sinks: Sinks,
    sent: Mutex<Vec<Invalidation>>,
    trust: Arc<Trust>,
}

impl Default for Post {
    fn default() -> Self {
        Self { sinks: Sinks::default(), sent: Mutex::default(), trust: Arc::new(Trust::always()) }
    }
}

#[async_trait]
impl InvalidationBus for Post {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.sinks.apply(message);
        self.sent.lock().unwrap().push(message.clone());
        Ok(())
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        self.sinks.subscribe(sink)
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust)
    }

    fn state(&self) -> BusState {
        BusState::default()
    }
}
